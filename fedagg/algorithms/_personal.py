"""A model of each client's own beside the common one: Ditto and APFL."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import fedagg
from fedagg.algorithms._parts import (
    check_population,
    collections_of,
    parameters_of,
    shifted,
    two_keys,
    with_collections,
    with_parameters,
)


def ditto(
    loss: Any,
    optimizer: optax.GradientTransformation,
    aggregator: fedagg.Aggregator,
    *,
    clients: int,
    pull: float = 1.0,
    own_epochs: int = 1,
    server_optimizer: optax.GradientTransformation | None = None,
    on_host: bool = False,
    **options: Any,
) -> fedagg.Aggregator:
    """Trains the common model by FedAvg, and beside it one of each client's own.

    A client's own model minimizes its loss and `pull / 2` times its squared distance
    from the common one that the server told.

    | state | |
    | --- | --- |
    | `state.variables` | the common model, which is that of FedAvg |
    | a client's memory | its own model, at first the common one of `init` |

    A client works twice as long as in FedAvg, and sends as much. Reports `ditto/loss`,
    that of clients' own models, beside what `local_training` reports.

    Args:
        loss: as `local_training` takes it.
        optimizer: of clients, for both models.
        aggregator: any.
        clients: how many there are.
        pull: lambda in the paper. Zero is training alone.
        own_epochs: passes over the examples for the own model.
        server_optimizer: from Optax. None is `optax.sgd(1.0)`.
        on_host: whether memories are given to `next` and come back, as `memory=`.
        **options: of `local_training`; `epochs` are those of the common model.

    Raises:
        ValueError: if a number is out of range.
        TypeError: if an argument is of another type.

    Reference: Li et al., "Ditto: Fair and Robust Federated Learning Through
        Personalization", 2021, algorithm 1.
    """
    check_population(clients)
    if not pull >= 0.0:
        raise ValueError(f"pull must not be negative, got {pull=}.")
    common = fedagg.local_training(loss, optimizer, **options)

    def work(model: Any, row: Any, key: Any, own: Any) -> Any:
        key, other = two_keys(key)
        change, metrics = common(model, row, key)
        there = parameters_of(model)

        def back(at: Any) -> Any:
            return optax.tree.scale(pull, optax.tree.sub(at, there))

        pulled = optax.chain(shifted(back), optimizer)
        alone = fedagg.local_training(loss, pulled, **options | {"epochs": own_epochs})
        moved, of_own = alone(own, row, other)
        metrics = {**metrics, "ditto/loss": of_own["training/loss"]}
        return change, metrics, jax.tree.map(jnp.add, own, moved)

    kept = None if on_host else clients
    return _with_own_models(work, server_optimizer, aggregator, kept)


def apfl(
    loss: Any,
    optimizer: optax.GradientTransformation,
    aggregator: fedagg.Aggregator,
    *,
    clients: int,
    own_part: float = 0.5,
    server_optimizer: optax.GradientTransformation | None = None,
    on_host: bool = False,
    **options: Any,
) -> fedagg.Aggregator:
    """Trains the common model, and of each client what to mix with it.

    A client uses `own_part * own + (1 - own_part) * common`, and trains `own` such that
    the mixture has a small loss, in the same steps in which it trains its copy of the
    common model, on the same batches.

    | state | |
    | --- | --- |
    | `state.variables` | the common model, which is that of FedAvg |
    | a client's memory | `own`, at first the common model of `init` |

    A client computes two gradients in a step, and sends as much as in FedAvg. Batch
    statistics of the mixture stay in its memory.

    Args:
        loss: as `local_training` takes it.
        optimizer: of clients, for both models, entry by entry.
        aggregator: any.
        clients: how many there are.
        own_part: alpha in the paper, from 0 to 1, the same for all clients and rounds.
        server_optimizer: from Optax. None is `optax.sgd(1.0)`.
        on_host: whether memories are given to `next` and come back, as `memory=`.
        **options: of `local_training`, but for `proximal`.

    Raises:
        ValueError: if a number is out of range.
        TypeError: if an argument is of another type.

    Reference: Deng et al., "Adaptive Personalized Federated Learning", 2020,
        algorithm 1.
    """
    check_population(clients)
    if not 0.0 <= own_part <= 1.0:
        raise ValueError(f"own_part must be from 0 to 1, got {own_part=}.")

    def mixed(own: Any, common: Any) -> Any:
        return optax.tree.add_scale(
            optax.tree.scale(own_part, own), 1.0 - own_part, common
        )

    def work(model: Any, row: Any, key: Any, own: Any) -> Any:
        def loss_of_both(both: Any, examples: Any, key: Any) -> Any:
            told = jax.lax.stop_gradient(both["params"]["common"])
            mixture = mixed(both["params"]["own"], told)
            of_common, changed = loss(one_of(both, "common"), examples, key)
            of_own = one_of(both | {"params": {"own": mixture}}, "own")
            of_mixture, changed_own = loss(of_own, examples, key)
            # Its gradient alone: the loss reported is that of the common model.
            nothing = of_mixture - jax.lax.stop_gradient(of_mixture)
            changed = {
                "common": {**both["common"], **changed},
                "own": {**both["own"], **changed_own},
            }
            return of_common + nothing, changed

        def one_of(both: Any, name: str) -> Any:
            model_of = with_collections(model, both[name])
            return with_parameters(model_of, both["params"][name])

        both = {
            "params": {"common": parameters_of(model), "own": parameters_of(own)},
            "common": collections_of(model),
            "own": collections_of(own),
        }
        train = fedagg.local_training(loss_of_both, optimizer, **options)
        change, metrics = train(both, row, key)
        moved = optax.tree.add(own, one_of(change, "own"))
        return one_of(change, "common"), metrics, moved

    kept = None if on_host else clients
    return _with_own_models(work, server_optimizer, aggregator, kept)


def _with_own_models(
    work: Any,
    server_optimizer: optax.GradientTransformation | None,
    aggregator: fedagg.Aggregator,
    clients: int | None,
) -> fedagg.Aggregator:
    """Averaging in which each client keeps a model, at first the common one."""
    return fedagg.federated_averaging(
        fedagg.RememberingWork(lambda model: model, work),
        server_optimizer or optax.sgd(1.0),
        aggregator,
        clients=clients,
    )
