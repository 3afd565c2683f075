"""Entries of a rank among those of many clients, found by counting.

Floats are ordered as integers are, so that the entry of a rank is found bit by bit: 32
counts of the entries below a threshold, half of them of the upper 16 bits of entries
and half of the lower ones, find any float32, exactly. Nothing is sorted, and the
program is as large for a thousand clients as for a hundred.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._trees import pytree
from fedagg._trees.loops import in_steps
from fedagg._trees.weights import is_present

_TOGETHER = 32  # rows that one loop over columns reads, sixteen times
_ONCE = 16  # the same where it reads them once, and takes as long to compile
_WORTH = 2**17  # entries of these, from which on it is worth more cores

_ALL_BUT_SIGN = np.int32(2**31 - 1)

_NOT_GIVEN = _ALL_BUT_SIGN  # its place, after all that is finite


def given_of(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Entries in float32, NaN where they are not given: no comparison holds for it."""
    x, present = pytree.wide(x), is_present(weight)
    given = jnp.where(present[:, None] & jnp.isfinite(x), x, jnp.nan)
    return jax.lax.optimization_barrier(given)


def at_ranks(
    given: jax.Array, ranks: list[jax.Array], times: jax.Array | None = None
) -> list[jax.Array]:
    """The given entries of each column that have these ranks.

    Each is there so many `times` `[n]`, or once.
    """
    bits = jax.lax.bitcast_convert_type(given, jnp.int32)
    # Of negative floats the larger bits are the smaller number.
    place = jnp.where(bits < 0, bits ^ _ALL_BUT_SIGN, bits)
    place = jnp.where(jnp.isnan(given), _NOT_GIVEN, place)
    upper = (place >> 16).astype(jnp.int16)
    lower = ((place & 0xFFFF) - 2**15).astype(jnp.int16)
    upper, lower = jax.lax.optimization_barrier((upper, lower))
    return [_entry(upper, lower, rank, times) for rank in ranks]


def _entry(
    upper: jax.Array, lower: jax.Array, rank: jax.Array, times: jax.Array | None
) -> jax.Array:
    """The float32 whose place has this rank among those in two halves."""
    top = _of_rank(upper, rank, times)
    rest = jnp.where(upper == top[None], lower, jnp.int16(2**15 - 1))  # or above
    below = count(upper, lambda row: row < top, times)
    bottom = _of_rank(jax.lax.optimization_barrier(rest), rank - below, times)
    place = (top.astype(jnp.int32) << 16) | (bottom.astype(jnp.int32) + 2**15)
    bits = jnp.where(place < 0, place ^ _ALL_BUT_SIGN, place)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _of_rank(x: jax.Array, rank: jax.Array, times: jax.Array | None) -> jax.Array:
    """The entry of each column of int16 that has this rank."""

    def narrowed(i: jax.Array, least: jax.Array) -> jax.Array:
        """One more bit of the largest number below which there are up to `rank`."""
        up = least + (jnp.int32(2**15) >> _shared(i, x).astype(jnp.int32))
        threshold = jax.lax.optimization_barrier(up.astype(jnp.int16))
        below = count(x, lambda row: row < threshold, times, _TOGETHER)
        return jnp.where(below <= rank, up, least)

    least = jnp.full(rank.shape, -(2**15), jnp.int32)
    return jax.lax.fori_loop(0, 16, narrowed, least).astype(jnp.int16)


def next_to(
    given: jax.Array, low: jax.Array, rank: jax.Array, times: jax.Array | None
) -> jax.Array:
    """The entry of a rank that is that of `low`, or the next one."""

    def larger(row: jax.Array) -> jax.Array:
        return jnp.where(row > low, row, jnp.inf)

    high = over_rows(larger, given, jnp.full_like(low, jnp.inf), jnp.minimum)
    return jnp.where(count(given, lambda row: row <= low, times) > rank, low, high)


def number_of(given: jax.Array, times: jax.Array | None = None) -> jax.Array:
    return count(given, lambda row: row == row, times)


def count(
    x: jax.Array,
    which: Callable[[jax.Array], jax.Array],
    times: jax.Array | None = None,
    together: int = _ONCE,
) -> jax.Array:
    """How many entries of each column, int32, each so many `times` `[n]` or once."""
    if times is not None:
        nothing = jnp.zeros(x.shape[1], times.dtype)

        def time_of(row: jax.Array, time: jax.Array) -> jax.Array:
            return jnp.where(which(row), time, 0)

        return over_rows(time_of, x, nothing, times=times, together=together)
    # As many lanes of a register as there are entries of 16 bits.
    dtype = jnp.int16 if len(x) < 2**15 and x.dtype == jnp.int16 else jnp.int32
    nothing = jnp.zeros(x.shape[1], dtype)
    total = over_rows(
        lambda row: which(row).astype(dtype), x, nothing, together=together
    )
    return total.astype(jnp.int32)


def over_rows(
    of: Callable[..., jax.Array],
    x: jax.Array,
    nothing: jax.Array,
    join: Callable[[jax.Array, jax.Array], jax.Array] = jnp.add,
    times: jax.Array | None = None,
    together: int = _ONCE,
) -> jax.Array:
    """What `of` makes of each row, and its weight, joined, some rows at a time."""
    groups, rest = divmod(len(x), together)
    both = (x,) if times is None else (x, times)

    def joined(start: jax.Array | int, size: int, total: jax.Array) -> jax.Array:
        for i in range(size):  # each by itself: a slice of many would be a copy
            row = [
                jax.lax.dynamic_index_in_dim(y, start + i, keepdims=False) for y in both
            ]
            total = join(total, of(*row))
        return total

    total = joined(groups * together, rest, nothing)
    return jax.lax.fori_loop(
        0,
        groups,
        lambda i, total: joined(_shared(i, x) * together, together, total),
        total,
    )


def _shared(i: jax.Array, x: jax.Array) -> jax.Array:
    """The index of a loop over rows, which all cores share if they are wide."""
    return in_steps(i) if _TOGETHER * x.shape[1] >= _WORTH else i
