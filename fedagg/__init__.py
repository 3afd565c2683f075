"""Federated aggregation in JAX: many clients' updates into one.

An aggregator is a pair of pure functions, `init` and `next`, made of stages: what each
client computes, a sum over clients, and what the server makes of the sum.
"""

from fedagg._aggregator import aggregator
from fedagg._bounding import clipping, zeroing
from fedagg._bounds import quantile_bound
from fedagg._chain import chain
from fedagg._execution import across, at_once, in_chunks
from fedagg._local_training import linen_loss, local_training, nnx_loss
from fedagg._mean import mean
from fedagg._median import median
from fedagg._recipes import robust_aggregator
from fedagg._training import federated_averaging, pad_clients
from fedagg._types import Aggregator, Bound, Output, Rule, Stage, Update

__all__ = [
    "Aggregator",
    "Bound",
    "Output",
    "Rule",
    "Stage",
    "Update",
    "across",
    "aggregator",
    "at_once",
    "chain",
    "clipping",
    "federated_averaging",
    "in_chunks",
    "linen_loss",
    "local_training",
    "mean",
    "median",
    "nnx_loss",
    "pad_clients",
    "quantile_bound",
    "robust_aggregator",
    "zeroing",
]
