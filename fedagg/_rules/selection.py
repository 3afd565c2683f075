"""Order statistics of many clients by counting, where a network would be too large.

The entry of a rank is found bit by bit: 16 counts of the entries up to three thresholds
find any float32, exactly. Nothing is sorted or copied, and the program is as large for
a thousand clients as for a hundred. Functions are those of `network`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._rules.network import liars_of_columns
from fedagg._trees import pytree

_TOGETHER = 32  # rows that one loop over columns reads
_DIGIT = 10  # bits of a count; there are three in an integer
_MOST = 30 * _TOGETHER  # rows counted before a digit would overflow

_SIGN = np.uint32(1 << 31)

# `(row, there)`, of `[k]` and `[]`, to what is added up over rows.
_OfRow = Callable[[jax.Array, jax.Array], jax.Array]


def median(x: jax.Array, present: jax.Array, f: int = 0) -> jax.Array:
    """The median of what is given in each column of `[n, k]`; zero of nothing."""
    del f
    number = _number(x, present)
    low = _at_rank(x, present, (number - 1) // 2)
    high = _next(x, present, low, number // 2)
    # Halved before they are added, so that two large entries do not overflow.
    return jnp.where(number > 0, low / 2.0 + high / 2.0, 0.0)


def trimmed_mean(x: jax.Array, present: jax.Array, f: int) -> jax.Array:
    """The mean without the `f` smallest entries, and as many largest.

    One that is not given is one of the `f`.
    """
    number = _number(x, present)
    trimmed = liars_of_columns(number, present, f)
    low = _at_rank(x, present, trimmed)
    high = _at_rank(x, present, number - trimmed - 1)
    share = jnp.maximum(number - 2 * trimmed, 1).astype(low.dtype)

    def inside(row: jax.Array, there: jax.Array) -> jax.Array:
        # Divided before they are added, so that large entries do not overflow.
        return jnp.where(there & (row > low) & (row < high), row / share, 0.0)

    total = _over_rows(inside, x, present, jnp.zeros_like(low))
    # Of those equal to either end, as many as are left after the trimmed ones.
    of_low = _number(x, present, lambda row: row <= low) - trimmed
    of_high = number - trimmed - _number(x, present, lambda row: row < high)
    ends = low * (of_low.astype(low.dtype) / share)
    ends += high * (of_high.astype(low.dtype) / share)
    mean = jnp.where(low < high, total + ends, low)
    return jnp.where(number > 0, mean, 0.0)


def mean_around_median(x: jax.Array, present: jax.Array, f: int) -> jax.Array:
    """The mean without the `f` entries that are farthest from the median.

    Of entries that are equally far from it, each counts for a part.
    """
    number, middle = _number(x, present), median(x, present)

    def away(row: jax.Array) -> jax.Array:
        return jnp.abs(row - middle)

    kept = jnp.maximum(number - liars_of_columns(number, present, f), 1)
    farthest = _at_rank(x, present, kept - 1, away)
    inside = _number(x, present, lambda row: away(row) < farthest)
    edge = _number(x, present, lambda row: away(row) == farthest)
    share, inside, edge = (n.astype(middle.dtype) for n in (kept, inside, edge))
    room = (share - inside) / jnp.maximum(edge, 1.0)

    def part(row: jax.Array, there: jax.Array) -> jax.Array:
        is_kept = there & jnp.isfinite(row) & (away(row) <= farthest)
        term = jnp.where(is_kept, row / share, 0.0)
        return term * jnp.where(away(row) < farthest, 1.0, room)

    total = _over_rows(part, x, present, jnp.zeros_like(middle))
    return jnp.where(number > 0, total, 0.0)


def _at_rank(
    x: jax.Array,
    present: jax.Array,
    rank: jax.Array,
    of: Callable[[jax.Array], jax.Array] = lambda row: row,
) -> jax.Array:
    """The given entry of each column, or what `of` makes of it, that has this rank."""

    # NaN is below no threshold, infinity below none that matters, and what is minus
    # infinity below all.
    def is_below_all(row: jax.Array, there: jax.Array) -> jax.Array:
        return (there & (of(row) == -jnp.inf)).astype(jnp.int32)

    rank = rank + _over_rows(is_below_all, x, present, jnp.zeros_like(rank))

    def narrowed(i: jax.Array, least: jax.Array) -> jax.Array:
        """Two more bits of the smallest key up to which there are more than `rank`."""
        step = (30 - 2 * i).astype(jnp.uint32)
        keys = [least + (jnp.uint32(j) << step) for j in (1, 2, 3)]
        ends = [_from_key(key - jnp.uint32(1)) for key in keys]
        first, second, third = jax.lax.optimization_barrier(ends)

        def digits(row: jax.Array, there: jax.Array) -> jax.Array:
            entry = of(row)
            place = jnp.where(entry <= third, 1 << 2 * _DIGIT, 0)
            place += jnp.where(entry <= second, 1 << _DIGIT, 0)
            place += jnp.where(entry <= first, 1, 0)
            return jnp.where(there, place, 0)

        found = [jnp.zeros_like(rank)] * 3
        for start in range(0, len(x), _MOST):
            rows, there = x[start : start + _MOST], present[start : start + _MOST]
            total = _over_rows(digits, rows, there, jnp.zeros_like(rank))
            counts = [total >> j * _DIGIT & (1 << _DIGIT) - 1 for j in range(3)]
            found = [a + b for a, b in zip(found, counts, strict=True)]
        for count in found:
            least += (count <= rank).astype(jnp.uint32) << step
        return least

    least = jnp.zeros(rank.shape, jnp.uint32)
    entry = _from_key(jax.lax.fori_loop(0, 16, narrowed, least))
    # Below the smallest normal number, thresholds may be taken as zero.
    return jnp.where(jnp.abs(entry) < jnp.finfo(entry.dtype).tiny, 0.0, entry)


def _next(
    x: jax.Array, present: jax.Array, low: jax.Array, rank: jax.Array
) -> jax.Array:
    """The entry of a rank that is that of `low`, or the next one."""

    def larger(row: jax.Array, there: jax.Array) -> jax.Array:
        return jnp.where(there & (row > low), row, jnp.inf)

    nothing = jnp.full_like(low, jnp.inf)
    high = _over_rows(larger, x, present, nothing, jnp.minimum)
    is_low = _number(x, present, lambda row: row <= low) > rank
    return jnp.where(is_low, low, high)


def _number(
    x: jax.Array,
    present: jax.Array,
    which: Callable[[jax.Array], jax.Array] = jnp.isfinite,
) -> jax.Array:
    """How many of the entries given of each column `[k]`, all or which."""

    def one(row: jax.Array, there: jax.Array) -> jax.Array:
        return (there & jnp.isfinite(row) & which(row)).astype(jnp.int32)

    return _over_rows(one, x, present, jnp.zeros(x.shape[1], jnp.int32))


def _over_rows(
    of: _OfRow,
    x: jax.Array,
    present: jax.Array,
    nothing: jax.Array,
    join: Callable[[jax.Array, jax.Array], jax.Array] = jnp.add,
) -> jax.Array:
    """What `of` makes of each row, joined, some rows at a time."""
    groups, rest = divmod(len(x), _TOGETHER)

    def joined(start: jax.Array | int, size: int, total: jax.Array) -> jax.Array:
        for i in range(size):  # each by itself: a slice of many would be a copy
            row = jax.lax.dynamic_index_in_dim(x, start + i, keepdims=False)
            there = jax.lax.dynamic_index_in_dim(present, start + i, keepdims=False)
            total = join(total, of(pytree.wide(row), there))
        return total

    total = joined(groups * _TOGETHER, rest, nothing)
    return jax.lax.fori_loop(
        0, groups, lambda i, total: joined(i * _TOGETHER, _TOGETHER, total), total
    )


def _from_key(key: jax.Array) -> jax.Array:
    """The float32 of a place in their order, infinite beyond the largest."""
    bits = jnp.where(key >= _SIGN, key ^ _SIGN, ~key)
    x = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(jnp.isnan(x), jnp.where(key >= _SIGN, jnp.inf, -jnp.inf), x)
