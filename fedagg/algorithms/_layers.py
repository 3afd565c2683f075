"""Layers that stay with their client: FedPer, FedBN and FedRep."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fedagg
from fedagg.algorithms._parts import check_population, joined, moving, parts_of


def personal_layers(
    work: Callable[..., Any],
    aggregator: fedagg.Aggregator,
    *,
    personal: Sequence[str],
    clients: int,
    server_optimizer: optax.GradientTransformation | None = None,
    on_host: bool = False,
) -> fedagg.Aggregator:
    """Leaves some layers with each client, and averages the others.

    | | `personal` |
    | --- | --- |
    | FedPer | the last layers, `["*/head/*"]` |
    | FedBN | layers that normalize, `["*BatchNorm*"]`, their statistics too |

    | state | |
    | --- | --- |
    | `state.variables` | the model; its personal layers stay those of `init` |
    | a client's memory | its personal layers, at first those of `init` |

    What is personal is not sent, clipped or noised. A client's own model has the layers
    of its memory in place of the server's.

    Args:
        work: of a client, as `local_training` makes it.
        aggregator: any.
        personal: patterns of paths, in which `*` is for any characters, slashes too.
        clients: how many there are.
        server_optimizer: from Optax. None is `optax.sgd(1.0)`.
        on_host: whether memories are given to `next` and come back, as `memory=`.

    Raises:
        ValueError: in `init` and `next`, if no leaf is personal, or each.
        TypeError: if an argument is of another type.

    Reference: Arivazhagan et al., "Federated Learning with Personalization Layers",
        2019, algorithms 1 and 2; Li et al., "FedBN: Federated Learning on Non-IID
        Features via Local Batch Normalization", 2021, algorithm 1.
    """
    check_population(clients)
    server = fedagg.ServerStep.of(server_optimizer or optax.sgd(1.0))

    def begin(model: Any) -> Any:
        return parts_of(model, personal)[1]

    def on_own(model: Any, row: Any, key: Any, own: Any) -> Any:
        shared, _ = parts_of(model, personal)
        change, metrics = work(joined(shared, own), row, key)
        change, change_of_own = parts_of(change, personal)
        return change, metrics, jax.tree.map(jnp.add, own, change_of_own)

    def step(model: Any, change: Any, metrics: Any, state: Any) -> Any:
        nothing = optax.tree.zeros_like(begin(model))
        return server.step(model, joined(change, nothing), metrics, state)

    def sent(model: Any) -> Any:
        return parts_of(model, personal)[0]

    return fedagg.federated_averaging(
        fedagg.RememberingWork(begin, on_own),
        fedagg.ServerStep(server.init, step, sent),
        aggregator,
        clients=None if on_host else clients,
    )


def fedrep(
    loss: Any,
    optimizer: optax.GradientTransformation,
    aggregator: fedagg.Aggregator,
    *,
    personal: Sequence[str],
    clients: int,
    head_optimizer: optax.GradientTransformation | None = None,
    head_epochs: int = 5,
    server_optimizer: optax.GradientTransformation | None = None,
    on_host: bool = False,
    **options: Any,
) -> fedagg.Aggregator:
    """Trains a client's own head on what all clients share, then that on the new head.

    `personal_layers`, of clients who first train their personal layers alone, for
    `head_epochs`, and then the shared ones alone.

    | state | |
    | --- | --- |
    | `state.variables` | the model; its personal layers stay those of `init` |
    | a client's memory | its personal layers, at first those of `init` |

    What is personal is not sent. Gradients are of the whole model in both phases.

    Args:
        loss: as `local_training` takes it.
        optimizer: of the shared layers, at clients.
        aggregator: any.
        personal: patterns of paths, as in `personal_layers`.
        clients: how many there are.
        head_optimizer: of the personal layers. None is `optimizer`.
        head_epochs: passes over the examples for the personal layers.
        server_optimizer: from Optax. None is `optax.sgd(1.0)`.
        on_host: whether memories are given to `next` and come back, as `memory=`.
        **options: of `local_training`; `epochs` are those of the shared layers.

    Raises:
        ValueError: as `personal_layers` does.
        TypeError: if an argument is of another type.

    Reference: Collins et al., "Exploiting Shared Representations for Personalized
        Federated Learning", 2021, algorithm 1.
    """

    def work(model: Any, row: Any, key: Any) -> Any:
        keys = (None, None) if key is None else jax.random.split(key)
        shared, own = parts_of(model, personal)
        head = moving(head_optimizer or optimizer, model, own)
        body = moving(optimizer, model, shared)
        of_head = fedagg.local_training(loss, head, **options | {"epochs": head_epochs})
        of_body = fedagg.local_training(loss, body, **options)
        first, _ = of_head(model, row, keys[0])
        second, metrics = of_body(optax.tree.add(model, first), row, keys[1])
        return optax.tree.add(first, second), metrics

    return personal_layers(
        work,
        aggregator,
        personal=personal,
        clients=clients,
        server_optimizer=server_optimizer,
        on_host=on_host,
    )
