"""Noise of a Toeplitz matrix over rounds, integers all the way.

`toeplitz_noise(1.0, 0.5, 100, column)` is matrix factorization with any Toeplitz
strategy, banded or that of a BLT; with `column=[1.0]` it is `gaussian_noise`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._mechanism import Mechanism
from fedagg._messages.marks import NoisedModulo
from fedagg._noise.sum_grid import (
    SumGrid,
    accounted,
    draw_error,
    integer_noise,
    no_noise,
    noised,
)
from fedagg._privacy.noise_source import NoiseSource
from fedagg._privacy.private import check_clip, check_multiplier
from fedagg._privacy.private_mean import private_mean
from fedagg._sentence import prints_as_its_call
from fedagg._trees import pytree, rowwise
from fedagg._trees.loops import in_steps
from fedagg._types import PyTree, Stage

# Parts of earlier noise are in units of two to minus so many.
_BITS = 12


class BandState(NamedTuple):
    """Earlier noise, in steps, that the next rounds take back."""

    rounds: jax.Array  # [] uint32, so far
    noise: PyTree  # [bands - 1, ...] int32, round t in row t modulo bands - 1


@prints_as_its_call
def toeplitz_noise(
    noise_multiplier: float,
    clip: float,
    clients_per_round: float,
    column: Any,
    *,
    name: str = "toeplitz_noise",
) -> Stage:
    """A mean whose noise is correlated over rounds by a Toeplitz matrix.

    Noise `inverse(C) @ draws` for the lower triangular Toeplitz matrix `C` with this
    first column, as `jax-privacy` finds it for bands, and for BLTs
    (`toeplitz_coefs`): what `matrix_factorization_noise` makes of floats for any
    privatizer, of integers. It is accounted as `Mechanism.matrix(noise_multiplier,
    column)`; `banded_noise` chooses the column itself.

    | guarantee | |
    | --- | --- |
    | protected | a client, with all that it holds, over all rounds together |
    | relation | "zero_out", "replace_one"; "add_or_remove" but for a fixed size |
    | against | all who see what comes out; not the server, with its sums and state |
    | sampling | none, `cyclic` of a period of `k` or more, `separated` |
    | outside | a key that is known; a client in two rows, or behind two clients |

    Sums and noise are integers, as in `gaussian_noise`, with `C` in units of `2**-12`
    of its first entry, which is what is accounted. What rounding may add to what a
    client moves, less than `sqrt(d * (k - 1))` steps of `d` entries and a column of
    `k`, is taken off its clip.

    Noise stays at the server. The state holds `k - 1` values like the template in
    int32, and must be kept as secret as the sums. Clients count once, whatever their
    weight; who is protected from whom, NaN, absent clients, the denominator, the key,
    and what does not go with this are as in `gaussian_noise`.

    Reports `{name}/clip` `[]` and `{name}/noised_norm` `[]`, the norm of the noised
    mean.

    Args:
        noise_multiplier: standard deviation of a draw, in units of `clip`.
        clip: the largest norm, over all leaves of a value together. Positive.
        clients_per_round: the denominator, a number that is known beforehand.
        column: the first column of `C`, `[k]`, zero from there on. Its first entry is
            positive.
        name: what the metrics are filed under.

    Raises:
        ValueError: if an argument is out of range, or entries are so many or so large
            that sums of them leave 32 bits; in `server`, without a key.
        TypeError: if `clip` is a `Bound`; in `client`, for a leaf that is not of a
            float dtype.

    Reference: Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A
        Unified Approach to Private Training", 2023, algorithm 1; Dvijotham et al.,
        "Efficient and Near-Optimal Noise Generation for Streaming Differential
        Privacy", 2024, section 4.
    """
    check_multiplier(noise_multiplier)
    check_clip(clip=clip)
    given = np.asarray(column, np.float64)
    if given.ndim != 1 or not np.all(np.isfinite(given)) or not np.all(given[:1] > 0.0):
        raise ValueError(
            "column must be the first of a Toeplitz matrix, numbers [k] with a positive"
            f" one at the beginning; got {column!r}."
        )
    if not given.size:
        raise ValueError("column must have an entry, got none.")
    norm = float(np.linalg.norm(given))
    return private_mean(
        noise_multiplier / norm,
        clip,
        clients_per_round,
        column_noise(given / norm),
        name=name,
    )


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
        raise ValueError("bands: so many, or so large, that sums of parts wrap around.")
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
        i = in_steps(i)
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
