"""Noise of any correlation over rounds, by an optax-style privatizer.

With one that draws anew in each round this is `gaussian_noise`, with a buffered linear
Toeplitz matrix the mechanism of Dvijotham et al. 2024.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedagg._mechanism import Mechanism
from fedagg._messages.marks import NoisedModulo
from fedagg._noise.sum_grid import SumGrid
from fedagg._privacy.noise_source import NoiseSource
from fedagg._privacy.private import check_clip
from fedagg._privacy.private_mean import private_mean
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree
from fedagg._trees.keys import with_keys, without_keys
from fedagg._trees.template import Template
from fedagg._types import PyTree, Stage


class PrivatizerState(NamedTuple):
    """A privatizer's state without its keys, which each round brings."""

    template: Template
    arrays: PyTree


@prints_as_its_call
def matrix_factorization_noise(
    privatizer: Any,
    clip: float,
    clients_per_round: float,
    *,
    mechanism: Mechanism | None = None,
    name: str = "matrix_factorization_noise",
) -> Stage:
    """A mean whose noise is correlated over rounds as a privatizer makes it.

    A privatizer is a pair `(init, update)` as in optax, whose `update(sum, state)`
    returns the sum with noise and its next state; such as `jax-privacy` has for banded
    and for BLT matrices, which take `dtype=jnp.float32`. It is given the sum in units
    of `clip`, in float32, to which one client adds a norm of at most one in a round.
    The server releases the noised sum times `clip / clients_per_round`.

    The epsilon of its noise follows from the matrix and from who takes part when. A
    privatizer does not say what it was made with: `guarantee` takes it from
    `mechanism`, `Mechanism.matrix(stddev, strategy)`. `banded_noise` has both from the
    same numbers.

    | guarantee | |
    | --- | --- |
    | protected | a client, with all that it holds, over all rounds together |
    | relation | "zero_out", "replace_one"; "add_or_remove" but for a fixed size |
    | against | all who see what comes out; not the server, with its sums and state |
    | sampling | none, `cyclic`, `separated`, as the bands of `mechanism` allow |
    | outside | whether the privatizer draws as `mechanism` says; a key that is known |

    Where the privatizer's state has typed keys, they are made anew from each round's
    key, and not kept: it must draw fresh noise from them, and remember old noise as
    arrays. One that keeps a key to itself, as `jax-privacy`'s of a dense matrix does,
    draws from that alone, the same in every run: such a key must be new and secret.

    Sums are integers, as in `gaussian_noise`, until the privatizer is given them in
    float32: of `n` clients a rounding of `2**-24` of `n` clips at most, so that one
    client moves what it sees by `1 + n * 2**-23` clips at most. Its noise is of floats,
    whose low bits may tell (Mironov 2012), and `guarantee` says so of its result. Of a
    Toeplitz matrix, a BLT's as well, `toeplitz_noise` makes it of integers.

    Noise stays at the server; its state must be kept as secret as the sums. Clients
    count once, whatever their weight; who is protected from whom, NaN, absent clients,
    the denominator, and what does not go with this are as in `gaussian_noise`.

    Reports `{name}/clip` `[]` and `{name}/noised_norm` `[]`, the norm of the noised
    mean. How large the noise is in a round, the privatizer alone knows.

    Args:
        privatizer: the pair above, made for a clip of one.
        clip: the largest norm, over all leaves of a value together. Positive.
        clients_per_round: the denominator, a number that is known beforehand.
        mechanism: what the privatizer was made with. With None, `guarantee` refuses.
        name: what the metrics are filed under.

    Raises:
        ValueError: if a number is out of range; in `server`, without a key.
        TypeError: if `clip` is a `Bound`; in `init` and `client`, for a leaf that is
            not of a float dtype.

    Reference: Choquette-Choo et al., "(Amplified) Banded Matrix Factorization", 2023,
        algorithm 1; Dvijotham et al., "Efficient and Near-Optimal Noise Generation for
        Streaming Differential Privacy", 2024.
    """
    check_clip(clip=clip)
    # The noise multiplier is the privatizer's own.
    source = privatizer_noise(privatizer, name, mechanism)
    return private_mean(1.0, clip, clients_per_round, source, name=name)


def privatizer_noise(
    privatizer: Any, name: str, mechanism: Mechanism | None = None
) -> NoiseSource:
    """The noise of a privatizer that was made for sums in units of the clip."""

    def fresh(template: Template) -> PyTree:
        zeros = template.unravel(jnp.zeros(template.size, jnp.float32))
        return privatizer.init(zeros)

    def init(template: PyTree) -> PrivatizerState:
        checks.check_floating(template, name)
        made = Template.of(template)
        return PrivatizerState(made, without_keys(fresh(made)))

    def add(state: PrivatizerState, total: NoisedModulo, grid: SumGrid, key: jax.Array):
        integers = total.wrapped()
        state.template.check(integers)
        like = jax.eval_shape(lambda: fresh(state.template))
        whole = with_keys(state.arrays, like, key)
        sums = jax.tree.map(lambda x: x.astype(jnp.float32) / grid.steps, integers)
        noised, whole = privatizer.update(sums, whole)
        state = state._replace(arrays=without_keys(whole))
        return state, pytree.scale(jnp.float32(grid.steps), noised), None

    return NoiseSource(init, add, lambda z, grids: mechanism)
