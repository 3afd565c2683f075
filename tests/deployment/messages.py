"""Rounds of each kind, and the messages of a few clients in them."""

from typing import Any

import jax
import jax.numpy as jnp

import fedagg
from tests.helpers import make_updates

CLIENTS = 5
TEMPLATE = {
    "b": jax.ShapeDtypeStruct((), jnp.float32),
    "h": jax.ShapeDtypeStruct((3,), jnp.bfloat16),
    "none": jax.ShapeDtypeStruct((0, 2), jnp.float32),
    "w": jax.ShapeDtypeStruct((7, 5), jnp.float32),
}

bound = fedagg.quantile_bound(1.0, 0.8, 0.2)
AGGREGATORS = {
    "mean": fedagg.aggregator(fedagg.zeroing(bound), fedagg.mean()),
    "quantization": fedagg.aggregator(fedagg.mean(), fedagg.quantization(3, 1)),
    "top_k": fedagg.aggregator(fedagg.clipping(3.0), fedagg.top_k(0.3)),
    "sign": fedagg.aggregator(fedagg.sign()),
    "random_k": fedagg.aggregator(fedagg.random_k(0.3)),
    "median": fedagg.combining(fedagg.median(), fedagg.clipping(bound)),
    "undone": fedagg.combining(
        fedagg.median(), fedagg.random_k(0.3), fedagg.clipping(bound)
    ),
    "secure": fedagg.aggregator(
        fedagg.secure_sum(
            fedagg.chain(fedagg.clipping(bound), fedagg.mean()),
            bound,
            largest_cohort=9,
            largest_weight=20.0,
            bits=23,
        )
    ),
    "skellam": fedagg.distributed_dp_aggregator(0.2, CLIENTS, 18),
    "grouped": fedagg.aggregator(
        fedagg.grouped(
            {
                "w": fedagg.chain(fedagg.clipping(bound), fedagg.quantization(4, 1)),
                "b": fedagg.secure_sum(fedagg.chain(), 5.0, largest_cohort=9, bits=11),
                "*": fedagg.mean(),
            }
        )
    ),
}


def messages_of(name: str, clients: int = CLIENTS) -> tuple[Any, list[Any]]:
    """The state of a first round, and the messages of its clients."""
    aggregator, key = AGGREGATORS[name], jax.random.key(3)
    state = aggregator.init(TEMPLATE)
    shared = aggregator.steps.broadcast(state)
    updates = make_updates(clients, template=TEMPLATE)
    rows = [jax.tree.map(lambda x, i=i: x[i], updates) for i in range(clients)]
    client = jax.jit(aggregator.steps.client)
    sent = [
        client(shared, *row, jax.random.fold_in(key, i)) for i, row in enumerate(rows)
    ]
    return state, sent
