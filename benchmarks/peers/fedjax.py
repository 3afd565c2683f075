"""FedJAX: a Python loop over clients, each a tree of JAX arrays. It has no zeroing.

The mean is `mean_aggregator`, the sum is the `tree_sum` beside the `tree_mean` which
that aggregator consists of. Clipping is `tree_clip_by_global_norm`, compiled.
"""

import importlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.peers.rounds import Clients, Round


def rounds(clients: Clients) -> Iterator[Round]:
    # FedJAX calls this name, which JAX has removed; on a JAX that still has it, a norm
    # takes eight times as long and is off by 2e-4.
    vars(jax)["tree_map"] = jax.tree.map
    fedjax = importlib.import_module("fedjax")
    aggregator = fedjax.aggregators.mean_aggregator()
    state = aggregator.init()
    clip = jax.jit(fedjax.tree_util.tree_clip_by_global_norm)
    updates = [jax.tree.map(jnp.array, update) for update in clients.updates]
    sent = [
        (b"%d" % i, update, weight)
        for i, (update, weight) in enumerate(zip(updates, clients.weights, strict=True))
    ]

    def clipped_mean(sent: list[tuple]) -> Any:
        clipped = ((client, clip(update, 1.0), 1.0) for client, update, _ in sent)
        return aggregator.apply(clipped, state)[0]

    yield Round("sum", "tree_sum", fedjax.tree_util.tree_sum, updates)
    yield Round(
        "mean", "mean_aggregator", lambda sent: aggregator.apply(sent, state)[0], sent
    )
    calls = "tree_clip_by_global_norm, mean_aggregator"
    yield Round("clipped mean", calls, clipped_mean, sent)
