"""Order statistics of many clients by counting, where a network would be too large.

Functions are those of `network`.
"""

import jax
import jax.numpy as jnp

from fedagg._rules.counting import (
    at_ranks,
    count,
    given_of,
    next_to,
    number_of,
    over_rows,
)
from fedagg._rules.network import liars_of_columns
from fedagg._rules.ordering import between, ratio
from fedagg._trees.weights import in_parts, in_units


def median(x: jax.Array, weight: jax.Array, f: int = 0) -> jax.Array:
    """The median of what is given in each column of `[n, k]`; zero of nothing."""
    del f
    given = given_of(x, weight)
    return _middle(given, number_of(given))


def weighted_median(x: jax.Array, weight: jax.Array, f: int = 0) -> jax.Array:
    """The same, where each entry counts as often as its client's weight says."""
    del f
    given, times = given_of(x, weight), in_parts(weight)
    return _middle(given, number_of(given, times), times)


def trimmed_mean(x: jax.Array, weight: jax.Array, f: int) -> jax.Array:
    """The mean without the `f` smallest entries, and as many largest.

    One that is not given is one of the `f`.
    """
    given, number, trimmed, (low, of_low), (high, of_high) = _ends(x, weight, f)
    share = jnp.maximum(number - 2 * trimmed, 1).astype(low.dtype)

    def inside(row: jax.Array) -> jax.Array:
        # Divided before they are added, so that large entries do not overflow.
        return jnp.where((row > low) & (row < high), row / share, 0.0)

    total = over_rows(inside, given, jnp.zeros_like(low))
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
        ratio(kept, count(given, lambda row, end=end: row == end), low.dtype)
        for end, kept in ((low, of_low), (high, of_high))
    )

    def kept(row: jax.Array, weight: jax.Array) -> jax.Array:
        inside = jnp.where((row > low) & (row < high), 1.0, 0.0)
        edge = jnp.where(row == low, part_low, jnp.where(row == high, part_high, 0.0))
        return weight * (inside + edge)

    total = over_rows(kept, given, jnp.zeros_like(low), times=weight)
    total = jnp.where(total > 0.0, total, 1.0)

    def term(row: jax.Array, weight: jax.Array) -> jax.Array:
        # A share first, so that large entries do not overflow.
        share = kept(row, weight) / total
        return jnp.where((row >= low) & (row <= high), row * share, 0.0)

    mean = over_rows(term, given, jnp.zeros_like(low), times=weight)
    return jnp.where(number > 0, jnp.where(low < high, mean, low), 0.0)


def _ends(x: jax.Array, weight: jax.Array, f: int) -> tuple:
    """What is given, how many are, how many are trimmed, and both ends of the others.

    With each end, how many of those equal to it are left after the trimmed ones.
    """
    given = given_of(x, weight)
    number = number_of(given)
    trimmed = liars_of_columns(number, weight, f)
    low, high = at_ranks(given, [trimmed, number - trimmed - 1])
    of_low = count(given, lambda row: row <= low) - trimmed
    of_high = number - trimmed - count(given, lambda row: row < high)
    return given, number, trimmed, (low, of_low), (high, of_high)


def mean_around_median(x: jax.Array, weight: jax.Array, f: int) -> jax.Array:
    """The mean without the `f` entries that are farthest from the median.

    Of entries that are equally far from it, each counts for a part.
    """
    given = given_of(x, weight)
    number = number_of(given)
    return _around(given, number, liars_of_columns(number, weight, f))


def mean_of_nearest(x: jax.Array, weight: jax.Array, left_out: jax.Array) -> jax.Array:
    """The same without so many `[]`."""
    given = given_of(x, weight)
    number = number_of(given)
    return _around(given, number, jnp.broadcast_to(left_out, number.shape))


def _around(given: jax.Array, number: jax.Array, left_out: jax.Array) -> jax.Array:
    middle = _middle(given, number)

    def away(row: jax.Array) -> jax.Array:
        return jnp.abs(row - middle)

    kept = jnp.maximum(number - left_out, 1)
    (farthest,) = at_ranks(jnp.abs(given - middle[None]), [kept - 1])
    inside = count(given, lambda row: away(row) < farthest)
    edge = count(given, lambda row: away(row) == farthest)
    share, room = kept.astype(middle.dtype), ratio(kept - inside, edge, middle.dtype)

    def part(row: jax.Array) -> jax.Array:
        term = jnp.where(away(row) <= farthest, row / share, 0.0)
        return term * jnp.where(away(row) < farthest, 1.0, room)

    total = over_rows(part, given, jnp.zeros_like(middle))
    return jnp.where(number > 0, total, 0.0)


def _middle(
    given: jax.Array, number: jax.Array, times: jax.Array | None = None
) -> jax.Array:
    """The median of entries of which so many are given; zero of none."""
    low = at_ranks(given, [(number - 1) >> 1], times)[0]
    high = next_to(given, low, number >> 1, times)
    return jnp.where(number > 0, between(low, high), 0.0)
