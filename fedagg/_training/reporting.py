"""What the server makes of clients' sums: totals, and how they are spread."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedagg._training.over_clients import spread, spread_of_histogram
from fedagg._training.own_results import Metric, OwnResult, finalized
from fedagg._trees import rowwise


class Evaluated(NamedTuple):
    """What clients' examples say of a model, by the names of the metrics."""

    total: dict[str, jax.Array]  # of all examples of all clients
    histograms: dict[str, jax.Array]  # [b], over clients, of the metrics with bins
    clients: dict[str, jax.Array] | None  # [n, ...], of each; NaN of who says nothing


class Summed(NamedTuple):
    """What is summed over clients, all float32."""

    results: dict[str, OwnResult]
    clients: jax.Array  # [] one
    examples: jax.Array  # []


def reported(
    asked: Mapping[str, tuple[Metric, Any]],
    summed: Summed,
    alone: dict[str, jax.Array] | None,
    percentiles: Sequence[float],
    is_private: bool,
) -> tuple[Evaluated, dict[str, jax.Array]]:
    """The value and the metrics of an evaluation.

    `asked` has each metric and its edges, and `alone` clients' own, if they are known.
    """
    value = Evaluated({}, {}, alone)
    found = {
        "evaluation/clients": summed.clients,
        "evaluation/examples": summed.examples,
    }
    for name, (metric, edges) in asked.items():
        result = summed.results[name]
        total = finalized(metric[1], result.sums)
        if not is_private:  # or noise would be taken for what spoils a sum
            total = jnp.where(result.spoilt > 0.0, jnp.nan, total)
        value.total[name] = total
        found[f"{name}/not_finite"] = result.says_not
        if total.ndim:
            continue
        found[name] = total
        found[f"{name}/by_client"] = result.value / result.says
        over_clients = {}
        if edges is not None:
            value.histograms[name] = result.histogram
            over_clients = spread_of_histogram(result.histogram, edges, percentiles)
        elif alone is not None:
            over_clients = spread(rowwise.taken_together(alone[name]), percentiles)
        found |= {f"{name}/{x}": y for x, y in over_clients.items()}
    return value, found
