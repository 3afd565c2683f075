"""Order statistics of each column of clients' entries, of which some are not given."""

import jax
import jax.numpy as jnp


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
    number = _count(given)
    away = jnp.abs(x - _middle(_ordered(x, given), number)[None])
    away = jnp.where(given, away, jnp.inf)
    kept = jnp.maximum(number - left_out, 1)
    farthest = _at(_ordered(away, given), kept - 1)[None]
    inside, edge = given & (away < farthest), given & (away == farthest)
    room = (kept - _count(inside)).astype(x.dtype)
    room /= jnp.maximum(_count(edge), 1).astype(x.dtype)
    part = jnp.where(inside, 1.0, jnp.where(edge, room[None], 0.0))
    terms = jnp.where(given, x, 0.0) / kept.astype(x.dtype)[None] * part
    return jnp.sum(terms, axis=0)


def weighted_median_of(x: jax.Array, given: jax.Array, weight: jax.Array) -> jax.Array:
    """The value with half of the weight `[n]` on either side; zero of no entry."""
    ordered, weights = _ordered_with(x, given, weight)
    below = 2.0 * jnp.cumsum(weights, axis=0)
    total = jnp.sum(weights, axis=0, keepdims=True)
    # Where the half falls between two entries, the mean of both.
    low = _at(ordered, jnp.sum(below < total, axis=0, dtype=jnp.int32))
    high = _at(ordered, jnp.sum(below <= total, axis=0, dtype=jnp.int32))
    high = jnp.where(jnp.isfinite(high), high, low)  # rounding put it past the last
    return jnp.where(jnp.any(given, axis=0), low / 2.0 + high / 2.0, 0.0)


def weighted_trimmed_mean_of(
    x: jax.Array, given: jax.Array, trimmed: jax.Array, weight: jax.Array
) -> jax.Array:
    """What `trimmed_mean_of` keeps, each entry by its client's weight `[n]`."""
    number = _count(given)
    ordered, weights = _ordered_with(x, given, weight)
    rank = _ranks(len(x))
    kept = (rank >= trimmed[None]) & (rank < (number - trimmed)[None])
    weights = jnp.where(kept, weights, 0.0)
    total = jnp.sum(weights, axis=0)
    shares = (
        weights / jnp.where(total > 0.0, total, 1.0)[None]
    )  # zero if nobody is kept
    return jnp.sum(jnp.where(kept, ordered, 0.0) * shares, axis=0)


def _count(given: jax.Array) -> jax.Array:
    return jnp.sum(given, axis=0, dtype=jnp.int32)


def _ranks(n: int) -> jax.Array:
    return jnp.arange(n, dtype=jnp.int32)[:, None]


def _at(ordered: jax.Array, rank: jax.Array) -> jax.Array:
    """The entry of each column that has this rank `[k]`."""
    last = len(ordered) - 1
    return jnp.take_along_axis(ordered, jnp.clip(rank, 0, last)[None], axis=0)[0]


def _middle(ordered: jax.Array, number: jax.Array) -> jax.Array:
    low, high = _at(ordered, (number - 1) // 2), _at(ordered, number // 2)
    # Halved before they are added, so that two large entries do not overflow.
    return low / 2.0 + jnp.where(number > 0, high, low) / 2.0


def _ordered(x: jax.Array, given: jax.Array) -> jax.Array:
    """Columns in ascending order, with infinity for what is not given."""
    return jnp.sort(jnp.where(given, x, jnp.inf), axis=0)


def _ordered_with(
    x: jax.Array, given: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The same, and each entry's weight, which is zero for what is not given."""
    weights = jnp.where(given, weight.astype(x.dtype)[:, None], 0.0)
    keyed = jnp.where(given, x, jnp.inf)
    ordered, weights = jax.lax.sort((keyed, weights), dimension=0, num_keys=1)
    return ordered, weights
