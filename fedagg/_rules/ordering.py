"""Order statistics of each column of clients' entries, of which some are not given."""

import jax
import jax.numpy as jnp

from fedagg._trees.weights import in_parts, in_units


def median_of(x: jax.Array, given: jax.Array) -> jax.Array:
    """The median of each column of `[n, k]`, of what is given; zero of nothing."""
    number, ordered = _count(given), _ordered(x, given)
    return jnp.where(number > 0, _middle(ordered, number), 0.0)


def trimmed_mean_of(x: jax.Array, given: jax.Array, trimmed: jax.Array) -> jax.Array:
    """The mean without the `trimmed` `[k]` smallest entries, and as many largest."""
    number, ordered = _count(given), _ordered(x, given)
    rank = _ranks(len(x))
    kept = (rank >= trimmed[None]) & (rank < (number - trimmed)[None])
    # Divided before they are added, so that large entries do not overflow.
    share = jnp.maximum(number - 2 * trimmed, 1).astype(x.dtype)[None]
    return jnp.sum(jnp.where(kept, ordered / share, 0.0), axis=0)


def mean_around_median_of(
    x: jax.Array, given: jax.Array, left_out: jax.Array
) -> jax.Array:
    """The mean without the `left_out` `[k]` entries that are farthest from the median.

    Of entries that are equally far from it, each counts for a part.
    """
    number, ordered = _count(given), _ordered(x, given)
    middle = _middle(ordered, number)
    kept = jnp.maximum(number - left_out, 1)
    # Those kept stand side by side, from one of the first on.
    end = _ranks(len(x)) + kept[None] - 1
    last = jnp.take_along_axis(ordered, jnp.clip(end, 0, len(x) - 1), axis=0)
    reach = jnp.maximum(middle[None] - ordered, last - middle[None])
    reach = jnp.where(end < number[None], reach, jnp.inf)
    farthest = jnp.min(reach, axis=0, keepdims=True)
    away = jnp.abs(x - middle[None])
    inside, edge = given & (away < farthest), given & (away == farthest)
    room = ratio(kept - _count(inside), _count(edge), x.dtype)
    part = jnp.where(inside, 1.0, jnp.where(edge, room[None], 0.0)).astype(x.dtype)
    terms = jnp.where(given, x, 0.0) / kept.astype(x.dtype)[None] * part
    return jnp.sum(terms, axis=0)


def weighted_median_of(x: jax.Array, given: jax.Array, weight: jax.Array) -> jax.Array:
    """The value with half of the weight `[n]` on either side; zero of no entry."""
    # As whole numbers, of which sums are exact: the median with so many of each entry.
    times = jnp.where(given, in_parts(weight)[:, None], 0)
    pair = jnp.where(given, x, jnp.inf).T, times.T
    pair = jax.lax.sort(pair, dimension=1, num_keys=1, is_stable=False)
    ordered, times = (rows.T for rows in pair)
    up_to = jnp.cumsum(times, axis=0)
    total = up_to[-1]
    low = _at(ordered, _count(up_to <= ((total - 1) // 2)[None]))
    high = _at(ordered, _count(up_to <= (total // 2)[None]))
    return jnp.where(jnp.any(given, axis=0), between(low, high), 0.0)


def weighted_trimmed_mean_of(
    x: jax.Array, given: jax.Array, trimmed: jax.Array, weight: jax.Array
) -> jax.Array:
    """What `trimmed_mean_of` keeps, each entry by its client's weight `[n]`.

    Of entries that are equal and not all kept, each counts for a part.
    """
    number, ordered = _count(given), _ordered(x, given)
    first, last = trimmed, number - trimmed - 1
    low, high = _at(ordered, first), _at(ordered, last)

    def part(end: jax.Array, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Which are equal to one end, and what part of each is kept."""
        equal = given & (x == end[None])
        return equal, ratio(kept, _count(equal), x.dtype)[None]

    inside = given & (x > low[None]) & (x < high[None])
    is_low, low_part = part(low, _count(given & (x <= low[None])) - first)
    is_high, high_part = part(high, last + 1 - _count(given & (x < high[None])))
    parts = jnp.where(is_low, low_part, jnp.where(is_high, high_part, 0.0))
    weights = in_units(weight).astype(x.dtype)[:, None]
    weights = weights * jnp.where(inside, 1.0, parts).astype(x.dtype)
    total = jnp.sum(weights, axis=0)
    shares = weights / jnp.where(total > 0.0, total, 1.0)[None]
    mean = jnp.sum(jnp.where(shares > 0.0, x, 0.0) * shares, axis=0)
    return jnp.where(number > 0, jnp.where(low < high, mean, low), 0.0)


def _count(given: jax.Array) -> jax.Array:
    return jnp.sum(given, axis=0, dtype=jnp.int32)


def ratio(number: jax.Array, other: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Of one whole number to another, zero to zero, as exact as entries are."""
    return number.astype(dtype) / jnp.maximum(other, 1).astype(dtype)


def _ranks(n: int) -> jax.Array:
    return jnp.arange(n, dtype=jnp.int32)[:, None]


def _at(ordered: jax.Array, rank: jax.Array) -> jax.Array:
    """The entry of each column that has this rank `[k]`."""
    last = len(ordered) - 1
    return jnp.take_along_axis(ordered, jnp.clip(rank, 0, last)[None], axis=0)[0]


def _middle(ordered: jax.Array, number: jax.Array) -> jax.Array:
    low, high = _at(ordered, (number - 1) // 2), _at(ordered, number // 2)
    return between(low, jnp.where(number > 0, high, low))


def between(low: jax.Array, high: jax.Array) -> jax.Array:
    """The mean of two. Large ones do not overflow."""
    # If their sum does, they have one sign, and their difference does not. XLA adds
    # halves before it halves them.
    total = low + high
    return jnp.where(jnp.isfinite(total), total / 2.0, low + (high - low) / 2.0)


def _ordered(x: jax.Array, given: jax.Array) -> jax.Array:
    """Columns in ascending order, with infinity for what is not given.

    A GPU sorts rows in half the time, and what is equal in any order.
    """
    rows = jnp.where(given, x, jnp.inf).T
    return jax.lax.sort(rows, dimension=1, is_stable=False).T
