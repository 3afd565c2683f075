"""FedDyn: a penalty of each client's own makes all agree on one minimum."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import fedagg
from fedagg.algorithms._parts import (
    check_population,
    counted_training,
    parameters_of,
    scaled,
    shifted,
    weight_metric,
    with_parameters,
)


def feddyn(
    loss: Any,
    optimizer: optax.GradientTransformation,
    aggregator: fedagg.Aggregator,
    *,
    clients: int,
    alpha: float = 0.1,
    on_host: bool = False,
    **options: Any,
) -> fedagg.Aggregator:
    """Minimizes each client's loss with a penalty that follows what it did before.

    A client minimizes `loss(x) - <own, x> + alpha / 2 |x - server|^2`, where `own` is
    its gradient at the minimum of the round before, and the server moves the mean by
    the mean of these. Once nothing changes all clients' minima are the same point, that
    of the mean loss.

    | state | |
    | --- | --- |
    | `state.variables` | the model, as in `federated_averaging` |
    | `state.optimizer` | the server's h, like the parameters, which nobody is told |
    | a client's memory | its `own`, like the parameters, zero at first |

    A client sends as many bytes as in FedAvg. Every client with an example counts once,
    whatever its weight. The sum in h is divided by the number of all clients. Rounding
    by a compressor stays in h; a rule and noise are refused.

    Args:
        loss: as `local_training` takes it.
        optimizer: of clients. The paper has them reach the minimum: give them steps.
        aggregator: with a `mean`.
        clients: how many there are, m in the paper.
        alpha: the penalty. Positive; the paper has 0.1, 0.01 and 0.001.
        on_host: whether memories are given to `next` and come back, as `memory=`.
        **options: of `local_training`, but for `proximal`, which is `alpha`.

    Raises:
        ValueError: for an aggregator without a mean, and numbers out of range.
        TypeError: if an argument is of another type.

    Reference: Acar et al., "Federated Learning Based on Dynamic Regularization", 2021,
        algorithm 1.
    """
    check_population(clients)
    if not alpha > 0.0:
        raise ValueError(f"alpha must be positive, got {alpha=}.")
    weight = weight_metric(aggregator, "feddyn")
    server = fedagg.ServerStep.of(optax.sgd(1.0))

    def begin(model: Any) -> Any:
        return optax.tree.zeros_like(parameters_of(model))

    def work(model: Any, row: Any, key: Any, own: Any) -> Any:
        minus = shifted(lambda at: jax.tree.map(jnp.negative, own))
        train = counted_training(
            loss, optax.chain(minus, optimizer), proximal=alpha, **options
        )
        change, metrics, steps = train(model, row, key)
        now = optax.tree.add_scale(own, -alpha, parameters_of(change))
        return fedagg.Update(change, steps > 0.0), metrics, now

    def step(model: Any, change: Any, metrics: Any, h: Any) -> Any:
        moved, share = parameters_of(change), metrics[weight] / clients
        h = optax.tree.sub(h, scaled(alpha * share, moved))
        moved = optax.tree.add_scale(moved, -1.0 / alpha, h)
        change = with_parameters(change, moved)
        return server.step(model, change, metrics, server.init(model))[0], h

    return fedagg.federated_averaging(
        fedagg.RememberingWork(begin, work),
        fedagg.ServerStep(begin, step),
        aggregator,
        clients=None if on_host else clients,
    )
