"""The grid of a distributed mechanism: the length of its steps, and its noise in steps.

Clipped vectors become integers on a grid. Its step is as fine as the modulus allows for
the sum of the largest cohort, and its noise is enough in that of the smallest.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

from fedagg._client_noise.conditional_rounding import bound_of
from fedagg._noise.integer_noise import LARGEST_STDDEV
from fedagg._privacy.private import check_positive, split_noise
from fedagg._trees import checks

# Steps of a clip, at most: integers stay below 2**24, up to which float32 is exact.
_MOST_STEPS = 2.0**22


class Calibration(NamedTuple):
    """What a distributed mechanism keeps to, whatever the length of its vectors."""

    multiplier: float  # of the noise on values, in clips
    count_stddev: float | None  # of that on the count below a learnt clip
    bits: int
    smallest_cohort: int  # whose noise is enough
    largest_cohort: int  # whose sums seldom wrap around
    beta: float
    wrap_probability: float


class Grid(NamedTuple):
    """Integers of a vector with so many entries. Sizes are in steps of the grid."""

    size: int
    steps: float  # of the clip
    bound: float  # what the L2 norm of a client's integers is within
    stddev: float  # of the noise that one client adds to an entry
    count_steps: int  # that a client moves the count of those below the clip by
    count_stddev: float  # of the noise that one client adds to it

    @property
    def bound_of_sizes(self) -> float:
        """What the L1 norm of a client's integers is within, each of them its square.

        Reference: Agarwal, Kairouz and Liu, "The Skellam Mechanism for Differentially
            Private Federated Learning", 2021, section 4.
        """
        return self.bound * min(math.sqrt(self.size), self.bound)


def calibrate(
    noise_multiplier: float,
    clients_per_round: float,
    *,
    bits: int,
    smallest_cohort: int | None,
    largest_cohort: int | None,
    beta: float,
    wrap_probability: float,
    learns: bool,
    count_stddev: float | None,
) -> Calibration:
    """Checks the arguments of a mechanism and splits its noise.

    Args:
        noise_multiplier: as `skellam` takes it, and so are all but `learns`.
        clients_per_round: likewise.
        bits: likewise.
        smallest_cohort: likewise.
        largest_cohort: likewise.
        beta: likewise.
        wrap_probability: likewise.
        learns: whether the clip is learnt, from a count that is noised as well.
        count_stddev: likewise.

    Raises:
        ValueError: if one is out of range, or has no use.
    """
    check_positive(clients_per_round=clients_per_round)
    if count_stddev is not None and not learns:
        raise ValueError(
            "count_stddev goes with a clip that is learnt, for which clients are "
            f"counted; got {count_stddev=} and a fixed clip."
        )
    multiplier, stddev = split_noise(
        noise_multiplier, clients_per_round, count_stddev if learns else math.inf
    )
    expected = math.ceil(clients_per_round)
    smallest = expected if smallest_cohort is None else smallest_cohort
    largest = max(smallest, expected) if largest_cohort is None else largest_cohort
    checks.check_whole(1, smallest_cohort=smallest, largest_cohort=largest)
    if smallest > largest:
        raise ValueError(
            "smallest_cohort must be at most largest_cohort, got "
            f"{smallest} and {largest}."
        )
    checks.check_whole(2, 32, bits=bits)
    checks.check_within("[0, 1)", beta=beta)
    checks.check_within("(0, 1)", wrap_probability=wrap_probability)
    return Calibration(
        multiplier,
        stddev if learns else None,
        int(bits),
        int(smallest),
        int(largest),
        beta,
        wrap_probability,
    )


def grid_for(calibration: Calibration, size: int, name: str) -> Grid:
    """The finest grid on which sums of the largest cohort seldom wrap around.

    A sum's entry is taken for one of a normal variable, whose deviation is that of a
    rotated vector of as many clips as the largest cohort has clients, their noise, and
    a half a step of rounding for each. The range holds `k` deviations on either side,
    where `k` makes the chance to be outside of them `wrap_probability`. The step is no
    finer than noise of 1800 steps a client needs: less would gain nothing.

    Raises:
        ValueError: if bits are too few, with the numbers.

    Reference: Kairouz, Liu and Steinke, 2021, section 4; Agarwal, Kairouz and Liu,
        2021, section 4; TensorFlow Federated 0.87, `DistributedDpSumFactory`.
    """
    bits, largest = calibration.bits, calibration.largest_cohort
    k = -NormalDist().inv_cdf(calibration.wrap_probability / 2.0)
    share = calibration.multiplier / math.sqrt(calibration.smallest_cohort)
    room = 4.0**bits - largest * k**2
    spread = largest**2 / size + largest * share**2
    steps = math.sqrt(max(0.0, room) / spread) / (2.0 * k)
    steps = min(steps, _MOST_STEPS)
    if share > 0.0:
        steps = min(steps, LARGEST_STDDEV / share)
    stddev = share * steps
    if steps < 1.0 or 0.0 < stddev < 1.0:
        raise ValueError(
            f"{name}: {bits} bits are too few for sums of {largest} clients "
            f"in {size} entries: a clip would have {steps:.3g} steps, and a client's "
            f"noise a deviation of {stddev:.3g}. Both need one. Take more bits."
        )
    bound = bound_of(steps, calibration.beta, size)
    return Grid(size, steps, bound, stddev, *_count_grid(calibration, k, name))


def _count_grid(calibration: Calibration, k: float, name: str) -> tuple[int, float]:
    """The steps that a client moves the count by, and its noise on it."""
    if calibration.count_stddev is None:
        return 0, 0.0
    bits, largest = calibration.bits, calibration.largest_cohort
    # A client moves the count by half of what its deviation is given in.
    share = 2.0 * calibration.count_stddev / math.sqrt(calibration.smallest_cohort)
    reach = largest + k * share * math.sqrt(largest)
    steps = (2.0 ** (bits - 1) - 1.0) / reach
    if share > 0.0:
        steps = min(steps, LARGEST_STDDEV / share)
    steps = math.floor(min(steps, 1024.0))
    if steps < 1 or 0.0 < steps * share < 1.0:
        raise ValueError(
            f"{name}: {bits} bits are too few to learn a clip from "
            f"{largest} clients with noise of {calibration.count_stddev:g} on their "
            f"count, which reaches {reach:.0f} steps. Take more bits."
        )
    return steps, steps * share
