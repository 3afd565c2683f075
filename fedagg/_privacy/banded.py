"""Banded matrix factorization: noise that cancels over the rounds a client rests.

`banded_noise(1.0, 0.5, 100, bands=10, rounds=500)` is the mechanism of Choquette-Choo
et al. 2023; with one band it is `gaussian_noise`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._mechanism import Mechanism
from fedagg._messages.marks import NoisedModulo
from fedagg._privacy.noise_source import NoiseSource
from fedagg._privacy.private import check_clip, check_multiplier
from fedagg._privacy.private_mean import private_mean
from fedagg._privacy.sum_grid import (
    SumGrid,
    accounted,
    draw_error,
    integer_noise,
    no_noise,
    noised,
)
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree, rowwise
from fedagg._types import PyTree, Stage

# Parts of earlier noise are in units of two to minus so many.
_BITS = 12


class BandState(NamedTuple):
    """Earlier noise, in steps, that the next rounds take back."""

    rounds: jax.Array  # [] uint32, so far
    noise: PyTree  # [bands - 1, ...] int32, round t in row t modulo bands - 1


@prints_as_its_call
def banded_noise(
    noise_multiplier: float,
    clip: float,
    clients_per_round: float,
    *,
    bands: int,
    rounds: int,
    name: str = "banded_noise",
) -> Stage:
    """A mean whose noise cancels over the rounds that a client rests.

    Noise `inverse(C) @ draws`, for the banded Toeplitz matrix `C` that makes the errors
    of sums over rounds the smallest on average, as `jax-privacy` finds it. Its columns
    have a norm of one: a client which is in rounds at least `bands` apart pays for each
    what it pays for one of `gaussian_noise` with the same multiplier, while sums over
    rounds have less noise. With a `cyclic` sampler of a period of at least `bands` the
    draw amplifies that; for `separated` clients it holds without.

    | guarantee | |
    | --- | --- |
    | protected | a client, with all that it holds, over all rounds together |
    | relation | "zero_out", "replace_one"; "add_or_remove" but for a fixed size |
    | against | all who see what comes out; not the server, with its sums and state |
    | sampling | none, `cyclic` of a period of `bands` or more, `separated` |
    | outside | a key that is known; a client in two rows, or behind two clients |

    Sums and noise are integers, as in `gaussian_noise`, with `C` in units of `2**-12`
    of its first entry. What rounding may add to what a client moves, less than
    `sqrt(d * (bands - 1))` steps of `d` entries, is taken off its clip.

    Noise stays at the server. The state holds `bands - 1` values like the template in
    int32, and must be kept as secret as the sums. Clients count once, whatever their
    weight; who is protected from whom, NaN, absent clients, the denominator, the key,
    and what does not go with this are as in `gaussian_noise`.

    Reports `{name}/clip` `[]` and `{name}/noised_norm` `[]`, the norm of the noised
    mean.

    Args:
        noise_multiplier: standard deviation of a draw, in units of `clip`.
        clip: the largest norm, over all leaves of a value together. Positive.
        clients_per_round: the denominator, a number that is known beforehand.
        bands: rounds over which noise is correlated, at most those that clients rest.
            One is independent noise.
        rounds: what the matrix is made best for. More or fewer are as private.
        name: what the metrics are filed under.

    Raises:
        ValueError: if a number is out of range; in `server`, without a key.
        TypeError: if `clip` is a `Bound`; in `client`, for a leaf that is not of a
            float dtype.
        ImportError: if `jax-privacy` is not there.

    Reference: Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A
        Unified Approach to Private Training", 2023, section 4 and algorithm 1.
    """
    check_multiplier(noise_multiplier)
    check_clip(clip=clip)
    checks.check_whole(1, rounds=rounds)
    checks.check_whole(1, int(rounds), bands=bands)
    return private_mean(
        noise_multiplier,
        clip,
        clients_per_round,
        column_noise(best_column(int(rounds), int(bands))),
        name=name,
    )


def best_column(rounds: int, bands: int) -> np.ndarray:
    """The first column `[bands]` of the best banded Toeplitz matrix, of norm one."""
    try:
        from jax_privacy.matrix_factorization import toeplitz
    except ImportError as error:
        raise ImportError(
            "banded_noise needs jax-privacy: pip install 'fedagg[privacy]'."
        ) from error
    # jax-privacy mixes dtypes and ranks, which a user may have forbidden.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = toeplitz.optimize_banded_toeplitz(n=rounds, bands=bands)
    column = np.asarray(found, np.float64)
    return column / np.linalg.norm(column)


def column_noise(column: np.ndarray) -> NoiseSource:
    """Noise of which each round takes back parts of those before, all of it integers.

    Of a column `(1, c[1], ...)`, in units of `2**-12`, and draws `z` that are as much
    wider as the column is longer than one, a round has the noise
    `y[t] = z[t] - ceil(c[1] y[t - 1] + ...)`. A client that moves the sums by `x` is
    hidden as if it moved the draws by what makes `y - x` of `y`: the column times `x`,
    and less than a step an entry in the rounds in which the column reaches back to one
    that the client is in, `bands - 1` for each, which its clip is made smaller by. That
    part depends on what was released before, and its bound does not.

    Reference: Smith and Thakurta, "Fully Adaptive Composition for Gaussian Differential
        Privacy", 2022, section 1.
    """
    behind = max(1, len(column) - 1)
    # The part of the noise of a round `k + 1` rounds ago.
    back = np.zeros(behind, np.int32)
    back[: len(column) - 1] = np.round(-column[1:] / column[0] * 2**_BITS)
    if np.sum(np.abs(back)) >= 2 ** (31 - _BITS):
        raise ValueError("bands: so many that sums of their parts wrap around.")
    given = np.append(1.0, -back[: len(column) - 1] / 2**_BITS)
    length = float(np.linalg.norm(given))

    def init(template: PyTree) -> BandState:
        zeros = no_noise(template)
        return BandState(jnp.uint32(0), rowwise.repeat(zeros, behind))

    def add(state: BandState, total: NoisedModulo, grid: SumGrid, key: jax.Array):
        row = state.rounds % behind
        ago = (
            state.rounds + behind - 1 - jnp.arange(behind, dtype=jnp.uint32)
        ) % behind
        taken = _parts_of(state.noise, jnp.asarray(back)[ago])
        noise = taken
        if grid.deviation > 0.0:
            drawn = integer_noise(length * grid.deviation, key, taken)
            noise = pytree.add(drawn, taken)
        kept = jax.tree.map(lambda x, new: x.at[row].set(new), state.noise, noise)
        return BandState(state.rounds + 1, kept), noised(total, noise), None

    def drawn_on(grid: SumGrid) -> SumGrid:
        return grid._replace(deviation=length * grid.deviation)

    def mechanism(noise_multiplier: float, grids: tuple[SumGrid, ...]) -> Mechanism:
        del noise_multiplier
        multiplier = accounted(tuple(map(drawn_on, grids))) / length
        return Mechanism.matrix(multiplier, given / length)

    return NoiseSource(
        init,
        add,
        mechanism,
        draw_error=lambda grid: draw_error(drawn_on(grid).deviation),
        shift=lambda size: math.sqrt(size * (len(column) - 1)),
    )


def _parts_of(noise: PyTree, parts: jax.Array) -> PyTree:
    """The sum of rows times parts in units of `2**-12`, rounded down to int32."""

    def add(i: jax.Array, sums: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        row = rowwise.take(noise, i)
        high = jax.tree.map(lambda s, x: s + parts[i] * (x >> _BITS), sums[0], row)
        low = jax.tree.map(
            lambda s, x: s + parts[i] * (x & (2**_BITS - 1)), sums[1], row
        )
        return high, low

    zeros = pytree.zeros(rowwise.abstract_row(noise))
    # Apart, so that no sum is beyond what 32 bits hold before it is divided.
    high, low = jax.lax.fori_loop(0, len(parts), add, (zeros, zeros))
    return jax.tree.map(lambda x, y: x + (y >> _BITS), high, low)
