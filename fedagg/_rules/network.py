"""Order statistics by a network: the same comparisons of whole rows for any data.

A CPU sorts columns one entry at a time by `jax.lax.sort`. Comparisons of rows are of
many columns an instruction. Where one row comes out of them, XLA makes one loop of all,
which runs on all cores and keeps a column's entries in registers: each function here
returns one row `[k]`, of rows `[k]` of clients.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedagg._rules.geometry import liars_left
from fedagg._trees import pytree

MOST = 64  # clients, beyond which it takes seconds to compile

_DIGIT = 128.0  # more than there are clients

_Rows = list[jax.Array]


def median(x: jax.Array, present: jax.Array, f: int = 0) -> jax.Array:
    """The median of what is given in each column of `[n, k]`; zero of nothing.

    An entry is given that is finite, and of one who is present `[n]`.
    """
    del f
    rows, given = _given(x, present)
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
    # Halved before they are added, so that two large entries do not overflow.
    return jnp.where(jnp.isfinite(low), low / 2.0 + high / 2.0, 0.0)


def trimmed_mean(x: jax.Array, present: jax.Array, f: int) -> jax.Array:
    """The mean without the `f` smallest entries, and as many largest.

    One that is not given is one of the `f`.
    """
    rows, given = _given(x, present)
    number, trimmed = _number_and_liars(given, present, f, rows[0].dtype)
    kept = number - trimmed
    share = jnp.maximum(kept - trimmed, 1.0)
    total = jnp.zeros_like(share)
    for i, row in enumerate(_ordered(rows, given)):
        # Divided before they are added, so that large entries do not overflow.
        is_kept = (trimmed <= float(i)) & (kept > float(i))
        total += jnp.where(is_kept, row / share, 0.0)
    return total


def mean_around_median(x: jax.Array, present: jax.Array, f: int) -> jax.Array:
    """The mean without the `f` entries that are farthest from the median.

    Of entries that are equally far from it, each counts for a part.
    """

    # What each of these returns is worked out once, as a program of its own. In one
    # with the others XLA would do it again for each entry that depends on it.
    def apart(fn: Callable[[], jax.Array]) -> jax.Array:
        nothing = pytree.zeros(jax.eval_shape(fn))
        return jax.lax.cond(jnp.any(present), fn, lambda: nothing)

    def farthest_of_those_kept() -> jax.Array:
        rows, given = _given(x, present)
        number, left_out = _number_and_liars(given, present, f, middle.dtype)
        ordered = _ordered([jnp.abs(row - middle) for row in rows], given)
        return _at(ordered, number - left_out - 1.0)

    def distances() -> list[tuple[jax.Array, jax.Array, jax.Array]]:
        """The rows, how far each is from the median, and where it is given."""
        rows, given = _given(x, present)
        away = [jnp.abs(row - middle) for row in rows]
        return list(zip(rows, away, given, strict=True))

    def counted() -> jax.Array:
        """How many are given, as far as the farthest, and nearer: digits of a float."""
        total = jnp.zeros_like(middle)
        for _, away, there in distances():
            edge = jnp.where(away == farthest, _DIGIT + _DIGIT**2, _DIGIT**2)
            digits = jnp.where(away < farthest, 1.0 + _DIGIT**2, edge)
            total += jnp.where(there, digits, 0.0)
        return total

    def mean() -> jax.Array:
        total = jnp.zeros_like(middle)
        for row, away, there in distances():
            # Divided before they are added, so that large entries do not overflow.
            # The quotient has one use, since XLA would write it down for two.
            kept_row = jnp.where(there & (away <= farthest), row, 0.0) / kept
            total += kept_row * jnp.where(away < farthest, 1.0, room)
        return total

    middle = apart(lambda: median(x, present))
    farthest = apart(farthest_of_those_kept)
    counts = apart(counted)
    number = jnp.floor(counts / _DIGIT**2)
    edge = jnp.floor(counts / _DIGIT) - _DIGIT * number
    inside = counts - _DIGIT * edge - _DIGIT**2 * number
    kept = jnp.maximum(number - liars_of_columns(number, present, f), 1.0)
    room = (kept - inside) / jnp.maximum(edge, 1.0)
    return jnp.where(number > 0.0, apart(mean), 0.0)


def _given(x: jax.Array, present: jax.Array) -> tuple[_Rows, _Rows]:
    """The rows of a matrix, and where their entries are given."""
    rows = [pytree.wide(x[i]) for i in range(len(x))]
    return rows, [present[i] & jnp.isfinite(row) for i, row in enumerate(rows)]


def _number_and_liars(
    given: _Rows, present: jax.Array, f: int, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """How many are given, and may lie of them: `f`, less those found out `[k]`.

    As floats, which are exact for so few.
    """
    number = jnp.zeros(given[0].shape, dtype)
    for there in given:
        number += there.astype(dtype)
    return number, liars_of_columns(number, present, f)


def liars_of_columns(number: jax.Array, present: jax.Array, f: int) -> jax.Array:
    """How many may lie of those given `[k]`, as a number like theirs."""
    return liars_left(f, number, jnp.sum(present, dtype=number.dtype) - number)


def _at(ordered: _Rows, rank: jax.Array) -> jax.Array:
    """The entry of each column that has this rank `[k]`, the first for one below."""
    entry = ordered[0]
    for i, other in enumerate(ordered[1:], 1):
        entry = jnp.where(rank == float(i), other, entry)
    return entry


def _ordered(x: _Rows, given: _Rows) -> _Rows:
    """In ascending order, with infinity for what is not given."""
    pairs = zip(x, given, strict=True)
    return _sorted([jnp.where(there, entry, jnp.inf) for entry, there in pairs])


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
