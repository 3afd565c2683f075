"""TFF: aggregation processes in its default local context. It has no median.

That context is a server in C++ which TFF starts; values go there and back by gRPC.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.peers.rounds import Clients, Round


def rounds(clients: Clients) -> Iterator[Round]:
    tff = importlib.import_module("tensorflow_federated")
    factories = tff.aggregators
    updates = [list(update.values()) for update in clients.updates]
    weights = [np.float32(weight) for weight in clients.weights]
    value_type = tff.to_type([(np.float32, x.shape) for x in updates[0]])
    unweighted, weighted = (value_type,), (value_type, tff.to_type(np.float32))

    def one_round(factory: Any, types: tuple) -> Callable[[tuple], Any]:
        process = factory.create(*types)
        state = process.initialize()
        return lambda sent: list(process.next(state, *sent).result)

    yield Round(
        "sum", "SumFactory", one_round(factories.SumFactory(), unweighted), (updates,)
    )
    yield Round(
        "mean",
        "MeanFactory",
        one_round(factories.MeanFactory(), weighted),
        (updates, weights),
    )
    clipped = factories.clipping_factory(1.0, factories.UnweightedMeanFactory())
    yield Round(
        "clipped mean",
        "clipping_factory, UnweightedMeanFactory",
        one_round(clipped, unweighted),
        (updates,),
    )
    yield Round(
        "robust",
        "learning.robust_aggregator",
        one_round(tff.learning.robust_aggregator(), weighted),
        (updates, weights),
    )
