"""A distributed mechanism described once: its stage, secure sum and curve follow.

`skellam` and `discrete_gaussian` make the descriptions. They differ in the law of the
integers that clients add, and in nothing else.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypedDict

from fedagg._bounding.bounds import quantile_bound
from fedagg._client_noise.distributed_noise import distributed_noise
from fedagg._client_noise.grid import Calibration, grid_for
from fedagg._compression.rotation import rotated_length
from fedagg._mechanism import Mechanism, RenyiCurve
from fedagg._noise.integer_noise import SharesOf
from fedagg._privacy.private import check_positive
from fedagg._rounds.chain import chain
from fedagg._secure.secure_sum import secure_modular_sum
from fedagg._sentence import with_sentence
from fedagg._trees.template import Template
from fedagg._types import Bound, PyTree, Stage


class Law(NamedTuple):
    """A law of integers, of which each client adds draws.

    Attributes:
        shares: from a standard deviation to the chances of integers.
        divergence: of the order, the L2 and the L1 norm of what is moved, its size, the
            deviation of one client's noise and how many clients add it: the Rényi
            divergence between their sum and the moved one, at most.
    """

    shares: SharesOf
    divergence: Callable[[int, float, float, int, float, int], float]


class Settings(TypedDict, total=False):
    """Options of every distributed mechanism, with the defaults of `skellam`."""

    bits: int
    smallest_cohort: int | None
    largest_cohort: int | None
    count_stddev: float | None
    rotation: str
    beta: float
    wrap_probability: float
    seed: int


class ClientNoise(NamedTuple):
    """A distributed mechanism, as `skellam` and `discrete_gaussian` describe it.

    Its methods are made of the same numbers, so that none is given twice:

    | method | makes | for |
    | --- | --- | --- |
    | `secure_sum(*stages)` | stages and the noise under a secure sum | `aggregator` |
    | `stage()` | the stage with the noise alone | a secure sum of your own |
    | `curve(template)` | the Rényi divergences of a round | `epsilon` |

    Attributes:
        law: of the integers that clients add.
        clip: the largest norm of a client, fixed or learnt.
        clients_per_round: the public denominator.
        calibration: the noise, the bits, and the smallest and the largest cohort.
        rotation: "hadamard" or "dft".
        seed: what rotations are drawn from. Public.
        name: what the metrics are filed under.
        sentence: how the mechanism prints: the call that made it.
    """

    law: Law
    clip: Bound
    clients_per_round: float
    calibration: Calibration
    rotation: str
    seed: int
    name: str
    sentence: str = "ClientNoise()"

    def stage(self) -> Stage:
        """The stage whose clients clip, round and noise, to be put in a secure sum."""
        stage = distributed_noise(
            self.law.shares,
            self.clip,
            self.clients_per_round,
            self.calibration,
            Mechanism(
                math.inf,
                curve=self.curve,
                sentence=repr(self),
                draw_error=self.draw_error,
            ),
            kind=self.rotation,
            seed=self.seed,
            name=self.name,
        )
        return with_sentence(stage, f"{self}.stage()")

    def secure_sum(self, *stages: Stage) -> Stage:
        """A chain of stages and the noise, of which the server sees a secure sum.

        It is `secure_modular_sum` with the bits and the largest cohort of the noise.

        Args:
            *stages: what comes before the noise, `zeroing` for one.

        Raises:
            ValueError: for stages in an order that `chain` refuses.
        """
        hidden = secure_modular_sum(
            chain(*stages, self.stage()),
            bits=self.calibration.bits,
            largest_cohort=self.calibration.largest_cohort,
        )
        return with_sentence(
            hidden, f"{self}.secure_sum({', '.join(map(repr, stages))})"
        )

    def curve(self, template: PyTree) -> RenyiCurve:
        """The Rényi divergences of a round with this noise, for `epsilon`.

        With `neighbors="add_or_remove"` a client's value is told from zeros; with
        `"replace_one"` from another value. Orders are integers. The curve does not
        depend on the size of the clip. A `participation` below one in `epsilon` takes
        it that nobody knows who takes part, while the server of a secure sum does:
        against it, leave that at one.

        Args:
            template: one client's value, arrays or `jax.ShapeDtypeStruct`.

        Raises:
            ValueError: if bits are too few, with the numbers.
        """
        size = rotated_length(self.rotation, Template.of(template).size)
        grid = grid_for(self.calibration, size, self.name)
        clients, divergence = self.calibration.smallest_cohort, self.law.divergence

        def curve(order: int, distance: float) -> float:
            l2, l1 = distance * grid.bound, distance * grid.bound_of_sizes
            values = divergence(order, l2, l1, size, grid.stddev, clients)
            if not grid.count_steps:
                return values
            moved = distance * grid.count_steps
            stddev = grid.count_stddev
            return values + divergence(order, moved, moved, 1, stddev, clients)

        return curve

    def draw_error(self, template: PyTree) -> float:
        """How far a round's draws are from their law in total variation, at most.

        Those of the smallest cohort, which are what is accounted.

        Args:
            template: one client's value, arrays or `jax.ShapeDtypeStruct`.

        Raises:
            ValueError: if bits are too few, with the numbers.
        """
        size = rotated_length(self.rotation, Template.of(template).size)
        grid = grid_for(self.calibration, size, self.name)
        draws = [(size, grid.stddev), (1, grid.count_stddev)]
        of_client = sum(n * self.law.shares(s).error for n, s in draws if s > 0.0)
        return self.calibration.smallest_cohort * of_client

    def __repr__(self) -> str:
        return self.sentence


def clip_of(
    clip: float,
    target_quantile: float | None,
    learning_rate: float,
    clients_per_round: float,
) -> Bound | float:
    """The clip that keywords of a stage describe: the number, or a bound that learns.

    Raises:
        ValueError: if an argument is out of range.
        TypeError: if `clip` is a `Bound`.
    """
    check_positive(clip=clip, clients_per_round=clients_per_round)
    if target_quantile is None:
        return clip
    return quantile_bound(
        clip, target_quantile, learning_rate, expected_num_clients=clients_per_round
    )
