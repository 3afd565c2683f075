"""Order statistics of many clients by counting, where a network would be too large.

Floats are ordered as integers are, so that the entry of a rank is found bit by bit: 32
counts of the entries below a threshold, half of them of the upper 16 bits of entries
and half of the lower ones, find any float32, exactly. Nothing is sorted, and the
program is as large for a thousand clients as for a hundred. Functions are those of
`network`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._rules.network import liars_of_columns
from fedagg._rules.ordering import ratio
from fedagg._trees import pytree
from fedagg._trees.loops import in_steps
from fedagg._trees.weights import in_parts, in_units, is_present

_TOGETHER = 32  # rows that one loop over columns reads

_ALL_BUT_SIGN = np.int32(2**31 - 1)

_NOT_GIVEN = _ALL_BUT_SIGN  # its place, after all that is finite


def median(x: jax.Array, weight: jax.Array, f: int = 0) -> jax.Array:
    """The median of what is given in each column of `[n, k]`; zero of nothing."""
    del f
    given = _given(x, weight)
    return _middle(given, _number(given))


def weighted_median(x: jax.Array, weight: jax.Array, f: int = 0) -> jax.Array:
    """The same, where each entry counts as often as its client's weight says."""
    del f
    given, times = _given(x, weight), in_parts(weight)
    return _middle(given, _number(given, times), times)


def trimmed_mean(x: jax.Array, weight: jax.Array, f: int) -> jax.Array:
    """The mean without the `f` smallest entries, and as many largest.

    One that is not given is one of the `f`.
    """
    given, number, trimmed, (low, of_low), (high, of_high) = _ends(x, weight, f)
    share = jnp.maximum(number - 2 * trimmed, 1).astype(low.dtype)

    def inside(row: jax.Array) -> jax.Array:
        # Divided before they are added, so that large entries do not overflow.
        return jnp.where((row > low) & (row < high), row / share, 0.0)

    total = _over_rows(inside, given, jnp.zeros_like(low))
    ends = low * (of_low.astype(low.dtype) / share)
    ends += high * (of_high.astype(low.dtype) / share)
    mean = jnp.where(low < high, total + ends, low)
    return jnp.where(number > 0, mean, 0.0)


def weighted_trimmed_mean(x: jax.Array, weight: jax.Array, f: int) -> jax.Array:
    """The same, where each entry that is kept counts by its client's weight.

    Of entries that are equal and not all kept, each counts for a part.
    """
    given, number, _, (low, of_low), (high, of_high) = _ends(x, weight, f)
    weight = in_units(weight).astype(low.dtype)
    part_low, part_high = (
        ratio(kept, _count(given, lambda row, end=end: row == end), low.dtype)
        for end, kept in ((low, of_low), (high, of_high))
    )

    def kept(row: jax.Array, weight: jax.Array) -> jax.Array:
        inside = jnp.where((row > low) & (row < high), 1.0, 0.0)
        edge = jnp.where(row == low, part_low, jnp.where(row == high, part_high, 0.0))
        return weight * (inside + edge)

    total = _over_rows(kept, given, jnp.zeros_like(low), times=weight)
    total = jnp.where(total > 0.0, total, 1.0)

    def term(row: jax.Array, weight: jax.Array) -> jax.Array:
        # A share first, so that large entries do not overflow.
        share = kept(row, weight) / total
        return jnp.where((row >= low) & (row <= high), row * share, 0.0)

    mean = _over_rows(term, given, jnp.zeros_like(low), times=weight)
    return jnp.where(number > 0, jnp.where(low < high, mean, low), 0.0)


def _ends(x: jax.Array, weight: jax.Array, f: int) -> tuple:
    """What is given, how many are, how many are trimmed, and both ends of the others.

    With each end, how many of those equal to it are left after the trimmed ones.
    """
    given = _given(x, weight)
    number = _number(given)
    trimmed = liars_of_columns(number, weight, f)
    low, high = _at_ranks(given, [trimmed, number - trimmed - 1])
    of_low = _count(given, lambda row: row <= low) - trimmed
    of_high = number - trimmed - _count(given, lambda row: row < high)
    return given, number, trimmed, (low, of_low), (high, of_high)


def mean_around_median(x: jax.Array, weight: jax.Array, f: int) -> jax.Array:
    """The mean without the `f` entries that are farthest from the median.

    Of entries that are equally far from it, each counts for a part.
    """
    given = _given(x, weight)
    number = _number(given)
    middle = _middle(given, number)

    def away(row: jax.Array) -> jax.Array:
        return jnp.abs(row - middle)

    kept = jnp.maximum(number - liars_of_columns(number, weight, f), 1)
    (farthest,) = _at_ranks(jnp.abs(given - middle[None]), [kept - 1])
    inside = _count(given, lambda row: away(row) < farthest)
    edge = _count(given, lambda row: away(row) == farthest)
    share, room = kept.astype(middle.dtype), ratio(kept - inside, edge, middle.dtype)

    def part(row: jax.Array) -> jax.Array:
        term = jnp.where(away(row) <= farthest, row / share, 0.0)
        return term * jnp.where(away(row) < farthest, 1.0, room)

    total = _over_rows(part, given, jnp.zeros_like(middle))
    return jnp.where(number > 0, total, 0.0)


def _middle(
    given: jax.Array, number: jax.Array, times: jax.Array | None = None
) -> jax.Array:
    """The median of entries of which so many are given; zero of none."""
    low = _at_ranks(given, [(number - 1) >> 1], times)[0]
    high = _next(given, low, number >> 1, times)
    # Halved before they are added, so that two large entries do not overflow.
    return jnp.where(number > 0, low / 2.0 + high / 2.0, 0.0)


def _given(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Entries in float32, NaN where they are not given: no comparison holds for it."""
    x, present = pytree.wide(x), is_present(weight)
    given = jnp.where(present[:, None] & jnp.isfinite(x), x, jnp.nan)
    return jax.lax.optimization_barrier(given)


def _at_ranks(
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
    below = _count(upper, lambda row: row < top, times)
    bottom = _of_rank(jax.lax.optimization_barrier(rest), rank - below, times)
    place = (top.astype(jnp.int32) << 16) | (bottom.astype(jnp.int32) + 2**15)
    bits = jnp.where(place < 0, place ^ _ALL_BUT_SIGN, place)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _of_rank(x: jax.Array, rank: jax.Array, times: jax.Array | None) -> jax.Array:
    """The entry of each column of int16 that has this rank."""

    def narrowed(i: jax.Array, least: jax.Array) -> jax.Array:
        """One more bit of the largest number below which there are up to `rank`."""
        up = least + (jnp.int32(2**15) >> in_steps(i))
        threshold = jax.lax.optimization_barrier(up.astype(jnp.int16))
        below = _count(x, lambda row: row < threshold, times)
        return jnp.where(below <= rank, up, least)

    least = jnp.full(rank.shape, -(2**15), jnp.int32)
    return jax.lax.fori_loop(0, 16, narrowed, least).astype(jnp.int16)


def _next(
    given: jax.Array, low: jax.Array, rank: jax.Array, times: jax.Array | None
) -> jax.Array:
    """The entry of a rank that is that of `low`, or the next one."""

    def larger(row: jax.Array) -> jax.Array:
        return jnp.where(row > low, row, jnp.inf)

    high = _over_rows(larger, given, jnp.full_like(low, jnp.inf), jnp.minimum)
    return jnp.where(_count(given, lambda row: row <= low, times) > rank, low, high)


def _number(given: jax.Array, times: jax.Array | None = None) -> jax.Array:
    return _count(given, lambda row: row == row, times)


def _count(
    x: jax.Array,
    which: Callable[[jax.Array], jax.Array],
    times: jax.Array | None = None,
) -> jax.Array:
    """How many entries of each column, int32, each so many `times` `[n]` or once."""
    if times is not None:
        nothing = jnp.zeros(x.shape[1], times.dtype)
        return _over_rows(
            lambda row, time: jnp.where(which(row), time, 0), x, nothing, times=times
        )
    # As many lanes of a register as there are entries of 16 bits.
    dtype = jnp.int16 if len(x) < 2**15 and x.dtype == jnp.int16 else jnp.int32
    nothing = jnp.zeros(x.shape[1], dtype)
    total = _over_rows(lambda row: which(row).astype(dtype), x, nothing)
    return total.astype(jnp.int32)


def _over_rows(
    of: Callable[..., jax.Array],
    x: jax.Array,
    nothing: jax.Array,
    join: Callable[[jax.Array, jax.Array], jax.Array] = jnp.add,
    times: jax.Array | None = None,
) -> jax.Array:
    """What `of` makes of each row, and its weight, joined, some rows at a time."""
    groups, rest = divmod(len(x), _TOGETHER)
    both = (x,) if times is None else (x, times)

    def joined(start: jax.Array | int, size: int, total: jax.Array) -> jax.Array:
        for i in range(size):  # each by itself: a slice of many would be a copy
            row = [
                jax.lax.dynamic_index_in_dim(y, start + i, keepdims=False) for y in both
            ]
            total = join(total, of(*row))
        return total

    total = joined(groups * _TOGETHER, rest, nothing)
    return jax.lax.fori_loop(
        0,
        groups,
        lambda i, total: joined(in_steps(i) * _TOGETHER, _TOGETHER, total),
        total,
    )
