"""How a number is spread over clients: percentiles, and the means of either end.

From each client's own number, sorted; or from a histogram, which can be summed.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

_TENTH = 0.1


def spread(values: jax.Array, percentiles: Sequence[float]) -> dict[str, jax.Array]:
    """Percentiles and tenths of numbers `[n]`; those that are not finite do not count.

    Percentiles are interpolated as NumPy's are. All are NaN where nobody counts.
    """
    is_finite = jnp.isfinite(values)
    ordered = jnp.sort(jnp.where(is_finite, values, jnp.inf))
    count = jnp.sum(is_finite, dtype=jnp.int32)
    last = jnp.maximum(count - 1, 0)

    def percentile(q: float) -> jax.Array:
        place = q / 100.0 * last.astype(jnp.float32)
        low = jnp.floor(place).astype(jnp.int32)
        part = place - low.astype(jnp.float32)
        a, b = ordered[low], ordered[jnp.minimum(low + 1, last)]
        return a + part * (b - a)

    ranks = jnp.arange(len(values), dtype=jnp.int32)
    tenth = (count + 9) // 10  # rounded up: at least one client

    def mean(there: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(there, ordered, 0.0)) / tenth.astype(jnp.float32)

    found = {f"percentile_{q:g}": percentile(q) for q in percentiles}
    found["lowest_tenth"] = mean(ranks < tenth)
    found["highest_tenth"] = mean((ranks >= count - tenth) & (ranks < count))
    return {name: jnp.where(count > 0, x, jnp.nan) for name, x in found.items()}


def in_bins(value: jax.Array, edges: jax.Array) -> jax.Array:
    """A histogram `[b]` of one number; beyond the edges it is in an outer bin."""
    place = jnp.searchsorted(edges[1:-1], value, side="right")
    return (jnp.arange(len(edges) - 1) == place).astype(jnp.float32)


def spread_of_histogram(
    counts: jax.Array, edges: Any, percentiles: Sequence[float]
) -> dict[str, jax.Array]:
    """The same from counts `[b]`, spread evenly within each bin.

    Each is within the width of a bin of that of the numbers, if all are between the
    edges.
    """
    edges = jnp.asarray(edges, jnp.float32)
    counts = jnp.maximum(counts, 0.0)  # noise may have made one negative
    total = jnp.sum(counts)
    shares = counts / jnp.where(total > 0.0, total, 1.0)
    after = jnp.cumsum(shares)
    before = after - shares
    widths = edges[1:] - edges[:-1]

    def quantile(part: float) -> jax.Array:
        at = jnp.argmax((after >= part * after[-1]) & (shares > 0.0))
        within = (part * after[-1] - before[at]) / shares[at]
        return edges[at] + jnp.clip(within, 0.0, 1.0) * widths[at]

    def mean(low: float, high: float) -> jax.Array:
        """Of what is between two parts of all."""
        taken = jnp.clip(jnp.minimum(after, high) - jnp.maximum(before, low), 0.0, None)
        start = jnp.clip(low - before, 0.0, None)
        share = jnp.where(shares > 0.0, shares, 1.0)
        middles = edges[:-1] + (start + taken / 2.0) / share * widths
        return jnp.sum(jnp.where(taken > 0.0, taken * middles, 0.0)) / jnp.sum(taken)

    found = {f"percentile_{q:g}": quantile(q / 100.0) for q in percentiles}
    found["lowest_tenth"] = mean(0.0, _TENTH)
    found["highest_tenth"] = mean(1.0 - _TENTH, 1.0)
    return {name: jnp.where(total > 0.0, x, jnp.nan) for name, x in found.items()}
