"""FedRecon: clients make their own layers anew in each round, and keep nothing."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

import fedagg
from fedagg.algorithms._parts import joined, moving, parts_of


def fedrecon(
    loss: Any,
    optimizer: optax.GradientTransformation,
    aggregator: fedagg.Aggregator,
    *,
    local: Sequence[str],
    local_optimizer: optax.GradientTransformation | None = None,
    local_epochs: int = 1,
    server_optimizer: optax.GradientTransformation | None = None,
    **options: Any,
) -> fedagg.Aggregator:
    """Trains the shared layers on local ones that each client remakes in each round.

    Client data are a pair `(support, query)`, each as `local_training` takes it. From
    the local layers of `init` a client trains these alone on its support set, and then
    the shared ones alone on its query set.

    | state | |
    | --- | --- |
    | `state.variables` | the model; its local layers stay those of `init` |
    | a client's memory | none, so that a client may come but once |

    Local layers are not sent. Reports `reconstruction/loss`, that on support sets,
    beside what `local_training` reports of query sets.

    Args:
        loss: as `local_training` takes it.
        optimizer: of the shared layers, at clients.
        aggregator: any. Weights are the numbers of examples of query sets.
        local: patterns of paths, as in `personal_layers`.
        local_optimizer: of the local layers. None is `optimizer`.
        local_epochs: passes over the support set.
        server_optimizer: from Optax. None is `optax.sgd(1.0)`.
        **options: of `local_training`; `epochs` are those of the shared layers.

    Raises:
        ValueError: in `init` and `next`, if no leaf is local, or each.
        TypeError: if an argument is of another type; in `next`, for other client data.

    Reference: Singhal et al., "Federated Reconstruction: Partially Local Federated
        Learning", 2021, algorithm 1.
    """
    server = fedagg.ServerStep.of(server_optimizer or optax.sgd(1.0))

    def work(model: Any, row: Any, key: Any) -> Any:
        support, query = row
        keys = (None, None) if key is None else jax.random.split(key)
        shared, own = parts_of(model, local)
        remaking = moving(local_optimizer or optimizer, model, own)
        moved = moving(optimizer, model, shared)
        remake = fedagg.local_training(
            loss, remaking, **options | {"epochs": local_epochs}
        )
        train = fedagg.local_training(loss, moved, **options)
        remade, of_support = remake(model, support, keys[0])
        # What the support set made of statistics in shared layers is not sent.
        start = joined(shared, optax.tree.add(own, parts_of(remade, local)[1]))
        change, metrics = train(start, query, keys[1])
        metrics = {**metrics, "reconstruction/loss": of_support["training/loss"]}
        return parts_of(change, local)[0], metrics

    def step(model: Any, change: Any, metrics: Any, state: Any) -> Any:
        nothing = optax.tree.zeros_like(parts_of(model, local)[1])
        return server.step(model, joined(change, nothing), metrics, state)

    def sent(model: Any) -> Any:
        return parts_of(model, local)[0]

    return fedagg.federated_averaging(
        work, fedagg.ServerStep(server.init, step, sent), aggregator
    )
