"""FedNova: changes of clients who took many steps and few, made alike."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import fedagg
from fedagg.algorithms._parts import (
    counted_training,
    parameters_of,
    scaled,
    with_parameters,
)


def fednova(
    loss: Any,
    optimizer: optax.GradientTransformation,
    aggregator: fedagg.Aggregator,
    *,
    server_optimizer: optax.GradientTransformation | None = None,
    proximal: float = 0.0,
    **options: Any,
) -> fedagg.Aggregator:
    """Averages directions of clients, and takes a step as long as their mean one.

    FedAvg minimizes a loss in which a client counts the more the more steps it takes.
    Here a client divides its change by how far its optimizer would have gone along a
    gradient of one: `rate * steps` for plain SGD, and what it is with momentum or a
    proximal term. The server multiplies the mean by the mean of these. Batch statistics
    are averaged as they are. Weights are the numbers of examples.

    | state | |
    | --- | --- |
    | `state.variables` | the model, as in `federated_averaging` |
    | a client's memory | none |

    A client sends one number more than in FedAvg. It is part of the value, and so goes
    through compressors, clips and noise with it.

    Args:
        loss: as `local_training` takes it.
        optimizer: of clients, linear in the gradient, as `optax.sgd(0.1, momentum=0.9)`
            is. How far Adam goes is taken from a constant gradient as well.
        aggregator: any.
        server_optimizer: from Optax. None is `optax.sgd(1.0)`.
        proximal: as `local_training` takes it.
        **options: of `local_training`: `batch_size`, `epochs` and others.

    Raises:
        TypeError: if an argument is of another type.

    Reference: Wang et al., "Tackling the Objective Inconsistency Problem in
        Heterogeneous Federated Optimization", 2020, equations 4 to 6 and section 5.
    """
    server = fedagg.ServerStep.of(server_optimizer or optax.sgd(1.0))
    train = counted_training(loss, optimizer, proximal=proximal, **options)

    def distance(steps: jax.Array) -> jax.Array:
        """How far the optimizer goes in so many steps along a gradient of one."""

        def body(_: Any, carry: Any) -> Any:
            at, state = carry
            moved, state = optimizer.update(1.0 + proximal * at, state, at)
            return optax.apply_updates(at, moved), state

        start = jnp.float32(0.0)
        first = start, optimizer.init(start)
        return -jax.lax.fori_loop(0, steps.astype(jnp.int32), body, first)[0]

    def work(model: Any, row: Any, key: Any) -> Any:
        change, metrics, steps = train(model, row, key)
        far = distance(steps)
        towards = scaled(1.0 / jnp.where(far > 0.0, far, 1.0), parameters_of(change))
        sent = {"model": with_parameters(change, towards), "distance": far}
        return sent, {**metrics, "fednova/steps": steps}

    def step(model: Any, change: Any, metrics: Any, state: Any) -> Any:
        towards = scaled(change["distance"], parameters_of(change["model"]))
        change = with_parameters(change["model"], towards)
        return server.step(model, change, metrics, state)

    def sent(model: Any) -> Any:
        return {"model": model, "distance": jnp.float32(0.0)}

    return fedagg.federated_averaging(
        work, fedagg.ServerStep(server.init, step, sent), aggregator
    )
