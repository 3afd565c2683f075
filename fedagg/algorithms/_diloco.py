"""DiLoCo: replicas of a large model that meet once in hundreds of steps."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import fedagg
from fedagg.algorithms._parts import (
    check_population,
    parameters_of,
    with_collections,
    with_parameters,
)


def diloco(
    loss: Any,
    optimizer: optax.GradientTransformation,
    aggregator: fedagg.Aggregator,
    *,
    replicas: int,
    server_optimizer: optax.GradientTransformation | None = None,
    on_host: bool = False,
) -> fedagg.Aggregator:
    """Trains replicas for many steps of AdamW each, and moves all by their mean change.

    A row of client data is a round of one replica's batches, `[steps, batch, ...]` on
    every leaf. Each replica begins with the server's model and goes on with the state
    of its own optimizer: moments, and the count by which Adam corrects its bias, are
    those of all of its steps, of earlier rounds too. The mean change is a gradient to
    the server's Nesterov momentum.

    | state | |
    | --- | --- |
    | `state.variables` | the model, as in `federated_averaging` |
    | `state.optimizer` | the server's momentum |
    | a replica's memory | the state of its optimizer |

    A replica sends its change, once a round. On a mesh, with an aggregator that sums
    `across(mesh)`, it stays on its device. With `clients` numbers of a
    `with_error_feedback` client data are `((batches, numbers), numbers)`.

    Args:
        loss: as `local_training` takes it.
        optimizer: of replicas. The paper has
            `optax.adamw(4e-4, weight_decay=0.1)` with a warm-up.
        aggregator: any. A `zeroing` before its mean leaves out a replica that diverged,
            which keeps the state that it had.
        replicas: how many there are, k in the paper.
        server_optimizer: from Optax. None is
            `optax.sgd(0.7, momentum=0.9, nesterov=True)`, the paper's.
        on_host: whether memories are given to `next` and come back, as `memory=`.

    Raises:
        ValueError: if `replicas` is no positive integer.
        TypeError: if an argument is of another type.

    Reference: Douillard et al., "DiLoCo: Distributed Low-Communication Training of
        Language Models", 2023, algorithm 1.
    """
    check_population(replicas, "replicas")

    def begin(model: Any) -> Any:
        return optimizer.init(parameters_of(model))

    def work(model: Any, batches: Any, key: Any, state: Any) -> Any:
        def inner(carry: Any, batch: Any) -> Any:
            model, state, number = carry
            own = None if key is None else jax.random.fold_in(key, number)

            def mean_loss(parameters: Any) -> Any:
                losses, changed = loss(with_parameters(model, parameters), batch, own)
                return jnp.mean(losses), changed

            at = parameters_of(model)
            (value, changed), gradient = jax.value_and_grad(mean_loss, has_aux=True)(at)
            update, state = optimizer.update(gradient, state, at)
            model = with_parameters(model, optax.apply_updates(at, update))
            model = with_collections(model, changed)
            return (model, state, number + 1), value

        first = model, state, jnp.uint32(0)
        (end, state, _), losses = jax.lax.scan(inner, first, batches)
        change = jax.tree.map(jnp.subtract, end, model)
        return change, {"training/loss": jnp.mean(losses)}, state

    outer = optax.sgd(0.7, momentum=0.9, nesterov=True)
    return fedagg.federated_averaging(
        fedagg.RememberingWork(begin, work),
        server_optimizer or outer,
        aggregator,
        clients=None if on_host else replicas,
    )
