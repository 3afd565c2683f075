"""Flower: clients as lists of NumPy arrays, or as records. It has no sum or zeroing.

The functions are those that its strategies are made of. Its fixed clipping subtracts
the model from what came, clips by `clip_inputs_inplace` and adds the model again; here
what came are updates already. `aggregate_arrayrecords` is what its newer strategies
call, with arrays that came serialized, in records.
"""

import functools
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import reference_of_rules as rules
from benchmarks.peers.rounds import Clients, Round

Results = list[tuple[list[np.ndarray], int]]
_FEW = 64  # clients, beyond whom Bulyan takes many minutes


def rounds(clients: Clients) -> Iterator[Round]:
    functions = importlib.import_module("flwr.server.strategy.aggregate")
    privacy = importlib.import_module("flwr.supercore.differential_privacy")
    newer = importlib.import_module("flwr.serverapp.strategy.strategy_utils")
    results = [
        (list(update.values()), int(weight))
        for update, weight in zip(clients.updates, clients.weights, strict=True)
    ]

    def clipped_mean(results: Results) -> list[np.ndarray]:
        for arrays, _ in results:
            privacy.clip_inputs_inplace(arrays, 1.0)
        return functions.aggregate([(arrays, 1) for arrays, _ in results])

    def mean_of_records(records: list[Any]) -> list[np.ndarray]:
        mean = newer.aggregate_arrayrecords(records, "num-examples")
        return mean.to_numpy_ndarrays()

    yield Round("mean", "aggregate", functions.aggregate, results)
    records = _records(results)
    yield Round("mean", "aggregate_arrayrecords", mean_of_records, records)
    calls = "clip_inputs_inplace, aggregate"
    yield Round("clipped mean", calls, clipped_mean, results, _copy)
    yield Round("median", "aggregate_median", functions.aggregate_median, results)
    yield from _rules(functions, results)


def _rules(functions: Any, results: Results) -> Iterator[Round]:
    """Its multi-Krum weighs clients, so that all weigh one here."""
    n, f = len(results), rules.liars(len(results))
    results = [(arrays, 1) for arrays, _ in results]
    yield Round(
        "trimmed mean",
        "aggregate_trimmed_avg",
        # A hair above the part of the liars, which is rounded down.
        lambda results: functions.aggregate_trimmed_avg(results, (f + 0.01) / n),
        results,
    )
    # It adds up the distances to a client fewer than is done here for as many liars.
    for aggregator, kept in (("Krum", 0), ("multi-Krum", n - f)):
        choose = functools.partial(
            functions.aggregate_krum, num_malicious=f - 1, to_keep=kept
        )
        yield Round(aggregator, "aggregate_krum", choose, results)
    if n <= _FEW:
        yield Round(
            "Bulyan",
            "aggregate_bulyan, aggregate_krum",
            lambda results: functions.aggregate_bulyan(
                results, f, functions.aggregate_krum, to_keep=0
            ),
            results,
            list,  # clients are taken out of it
            functools.partial(rules.bulyan, fewer=1),
        )


def _copy(results: Results) -> Results:
    return [([x.copy() for x in arrays], weight) for arrays, weight in results]


def _records(results: Results) -> list[Any]:
    """The contents of replies to a round of training, as a server gets them."""
    app = importlib.import_module("flwr.app")
    return [
        app.RecordDict(
            {
                "arrays": app.ArrayRecord(arrays),
                "metrics": app.MetricRecord({"num-examples": examples}),
            }
        )
        for arrays, examples in results
    ]
