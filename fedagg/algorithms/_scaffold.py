"""SCAFFOLD: control variates keep clients from drifting apart."""

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
)


def scaffold(
    loss: Any,
    rate: float,
    aggregator: fedagg.Aggregator,
    *,
    clients: int,
    server_optimizer: optax.GradientTransformation | None = None,
    on_host: bool = False,
    **options: Any,
) -> fedagg.Aggregator:
    """Corrects each step of a client by the mean of all clients' gradients.

    A client steps along `gradient - own + control`, where `own` is its control variate,
    the mean gradient along its steps of its last round, option II in the paper, and
    `control` the mean over all clients. So a client whose data are of one class only
    does not run off to its own minimum: where all take several steps SCAFFOLD comes to
    the minimum of the mean loss, and FedAvg does not.

    | state | |
    | --- | --- |
    | `state.variables` | `{"model", "control"}`, as is the value of a round |
    | a client's memory | its control variate, like the parameters |

    Every client with an example counts once, whatever its weight. It sends changes of
    the model and of its control variate, twice the bytes of FedAvg. The server divides
    the latter's sum by the number of all clients, so that `control` stays the mean of
    all memories also where clients are absent or refused. Rounding by a compressor
    stays in `control`; a rule and noise are refused.

    Args:
        loss: as `local_training` takes it.
        rate: of the clients' plain SGD. Positive.
        aggregator: with a `mean`.
        clients: how many there are, N in the paper.
        server_optimizer: from Optax. None is `optax.sgd(1.0)`, the paper's global rate
            of one.
        on_host: whether memories are given to `next` and come back, as `memory=`.
        **options: of `local_training`: `batch_size`, `epochs` and others.

    Raises:
        ValueError: for an aggregator without a mean, and numbers out of range.
        TypeError: if an argument is of another type.

    Reference: Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for
        Federated Learning", 2020, algorithm 1, option II.
    """
    check_population(clients)
    weight = weight_metric(aggregator, "scaffold")
    server = fedagg.ServerStep.of(server_optimizer or optax.sgd(1.0))

    # docs/algorithms.md shows what follows, down to the next comment.
    def begin(variables: Any) -> Any:
        return optax.tree.zeros_like(parameters_of(variables["model"]))

    def work(variables: Any, row: Any, key: Any, own: Any) -> Any:
        model, away = variables["model"], optax.tree.sub(variables["control"], own)
        sgd = optax.chain(shifted(lambda at: away), optax.sgd(rate))
        change, metrics, steps = counted_training(loss, sgd, **options)(model, row, key)
        mean = scaled(-1.0 / rate / jnp.maximum(steps, 1.0), parameters_of(change))
        now = optax.tree.where(steps > 0.0, optax.tree.sub(mean, away), own)
        sent = {"model": change, "control": optax.tree.sub(now, own)}
        return fedagg.Update(sent, steps > 0.0), metrics, now

    # The change of the control variate is summed, and not the variate.
    def step(variables: Any, change: Any, metrics: Any, state: Any) -> Any:
        model, state = server.step(variables["model"], change["model"], {}, state)
        share = metrics[weight] / clients
        control = jax.tree.map(
            jnp.add, variables["control"], scaled(share, change["control"])
        )
        return {"model": model, "control": control}, state

    training = fedagg.federated_averaging(
        fedagg.RememberingWork(begin, work),
        fedagg.ServerStep(lambda variables: server.init(variables["model"]), step),
        aggregator,
        clients=None if on_host else clients,
    )
    return training._replace(
        init=lambda model: training.init(
            {"model": model, "control": begin({"model": model})}
        )
    )
