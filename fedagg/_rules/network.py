"""Order statistics by a network: the same comparisons of whole rows for any data.

A CPU sorts columns one entry at a time by `jax.lax.sort`. Comparisons of rows are of
many columns an instruction. Where one row comes out of them, XLA makes one loop of all,
which runs on all cores and keeps a column's entries in registers: each function here
returns one row `[k]`, of rows `[k]` of clients.
"""

import functools

import jax
import jax.numpy as jnp

from fedagg._rules.geometry import liars_left
from fedagg._rules.ordering import between
from fedagg._trees import pytree
from fedagg._trees.weights import is_present

MOST = 64  # clients, beyond which it takes seconds to compile for a CPU
MOST_ELSEWHERE = 16  # and for a GPU, where it is as quick as a read

_Rows = list[jax.Array]


def median(x: jax.Array, weight: jax.Array, f: int = 0) -> jax.Array:
    """The median of what is given in each column of `[n, k]`; zero of nothing.

    An entry is given that is finite, and of one whose weight `[n]` is not zero.
    """
    del f
    rows, given = _given(x, weight)
    # Every second entry that is not given comes first, the others last, so that the
    # middle of those given stays in the middle.
    away, keyed = jnp.full_like(rows[0], jnp.inf), []
    for row, there in zip(rows, given, strict=True):
        keyed.append(jnp.where(there, row, away))
        away = jnp.where(there, away, -away)
    n, odd, ordered = len(rows), away < 0.0, _sorted(keyed)
    middle, before = ordered[(n - 1) // 2], ordered[max(n // 2 - 1, 0)]
    if n % 2:
        low, high = jnp.where(odd, before, middle), middle
    else:
        low, high = middle, jnp.where(odd, middle, ordered[n // 2])
    return jnp.where(jnp.isfinite(low), between(low, high), 0.0)


def trimmed_mean(x: jax.Array, weight: jax.Array, f: int) -> jax.Array:
    """The mean without the `f` smallest entries, and as many largest.

    One that is not given is one of the `f`.
    """
    rows, given = _given(x, weight)
    number, trimmed = _number_and_liars(given, weight, f, rows[0].dtype)
    kept = number - trimmed
    share = jnp.maximum(kept - trimmed, 1.0)
    total = jnp.zeros_like(share)
    for i, row in enumerate(_sorted(_keyed(rows, given))):
        # Divided before they are added, so that large entries do not overflow.
        is_kept = (trimmed <= float(i)) & (kept > float(i))
        total += jnp.where(is_kept, row / share, 0.0)
    return total


def mean_around_median(x: jax.Array, weight: jax.Array, f: int) -> jax.Array:
    """The mean without the `f` entries that are farthest from the median.

    Of entries that are equally far from it, each counts for a part.
    """
    rows, given = _given(x, weight)
    number, left_out = _number_and_liars(given, weight, f, rows[0].dtype)
    return _around(_sorted(_keyed(rows, given)), number, left_out, f)


def mean_of_nearest(
    x: jax.Array, weight: jax.Array, left_out: jax.Array, most: int
) -> jax.Array:
    """The same without so many `[]`, which are `most` or fewer."""
    rows, given = _given(x, weight)
    number, _ = _number_and_liars(given, weight, 0, rows[0].dtype)
    left_out = jnp.broadcast_to(left_out.astype(number.dtype), number.shape)
    return _around(_sorted(_keyed(rows, given)), number, left_out, most)


def _around(
    ordered: _Rows, number: jax.Array, left_out: jax.Array, most: int
) -> jax.Array:
    low, following = _window(ordered, jnp.floor((number - 1.0) / 2.0), 2)
    odd = jnp.floor(number / 2.0) * 2.0 < number
    middle = between(low, jnp.where(odd, low, following))
    # Those kept stand side by side, from one of the first `most + 1` on.
    kept = jnp.maximum(number - left_out, 1.0)
    starts = min(most, len(ordered) - 1) + 1
    farthest = jnp.full_like(middle, jnp.inf)
    ends = _window(ordered, kept - 1.0, starts)
    for first, last in zip(ordered[:starts], ends, strict=True):
        farthest = jnp.minimum(farthest, jnp.maximum(middle - first, last - middle))
    inside = edge = number_inside = number_edge = jnp.zeros_like(middle)
    for row in ordered:
        away, there = jnp.abs(row - middle), row < jnp.inf
        is_inside, is_edge = away < farthest, (away == farthest) & there
        # A part is added, so that large entries do not overflow.
        inside += jnp.where(is_inside, row / MOST, 0.0)
        edge += jnp.where(is_edge, row / MOST, 0.0)
        number_inside += jnp.where(is_inside, 1.0, 0.0)
        number_edge += jnp.where(is_edge, 1.0, 0.0)
    room = (kept - number_inside) / jnp.maximum(number_edge, 1.0)
    return jnp.where(number > 0.0, (inside + edge * room) / (kept / MOST), 0.0)


def _given(x: jax.Array, weight: jax.Array) -> tuple[_Rows, _Rows]:
    """The rows of a matrix, and where their entries are given."""
    rows, present = [pytree.wide(x[i]) for i in range(len(x))], is_present(weight)
    return rows, [present[i] & jnp.isfinite(row) for i, row in enumerate(rows)]


def _keyed(x: _Rows, given: _Rows) -> _Rows:
    """With infinity for what is not given."""
    pairs = zip(x, given, strict=True)
    return [jnp.where(there, entry, jnp.inf) for entry, there in pairs]


def _number_and_liars(
    given: _Rows, weight: jax.Array, f: int, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """How many are given, and may lie of them: `f`, less those found out `[k]`.

    As floats, which are exact for so few.
    """
    number = jnp.zeros(given[0].shape, dtype)
    for there in given:
        number += there.astype(dtype)
    return number, liars_of_columns(number, weight, f)


def liars_of_columns(number: jax.Array, weight: jax.Array, f: int) -> jax.Array:
    """How many may lie of those given `[k]`, as a number like theirs."""
    present = jnp.sum(is_present(weight), dtype=number.dtype)
    return liars_left(f, number, present - number)


def _window(ordered: _Rows, rank: jax.Array, size: int) -> _Rows:
    """So many entries of each column from a rank `[k]` on; infinite after the last."""
    step, after = 1 << (len(ordered) - 1).bit_length(), jnp.full_like(rank, jnp.inf)
    window = [*ordered, *[after] * (step + size)]
    while step := step // 2:
        # What is left of the rank is less than a step.
        moved, length = rank >= float(step), size + step - 1
        pairs = zip(window[step : step + length], window[:length], strict=True)
        window = [jnp.where(moved, *pair) for pair in pairs]
        rank = jnp.where(moved, rank - float(step), rank)
    return window[:size]


def _sorted(rows: _Rows) -> _Rows:
    return _compared(rows, _sorting(len(rows)))


def _compared(rows: _Rows, pairs: tuple[tuple[int, int], ...]) -> _Rows:
    """The rows after comparisons, of which each puts the smaller entries first."""
    rows = list(rows)
    for i, j in pairs:
        first, second = rows[i], rows[j]
        wrong = second < first
        rows[i] = jax.lax.select(wrong, second, first)
        rows[j] = jax.lax.select(wrong, first, second)
    return rows


@functools.cache
def _sorting(wires: int) -> tuple[tuple[int, int], ...]:
    """Batcher's network by odd-even merges: the places that are compared, in order."""
    pairs, size = [], 1
    while size < wires:
        step = size
        while step:
            pairs += [
                (i + j, i + j + step)
                for j in range(step % size, wires - step, 2 * step)
                for i in range(min(step, wires - j - step))
                if (i + j) // (2 * size) == (i + j + step) // (2 * size)
            ]
            step //= 2
        size *= 2
    return tuple(pairs)
