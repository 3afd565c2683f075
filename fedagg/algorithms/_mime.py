"""MimeLite: clients step with the server's optimizer, and leave its state as it is."""

from typing import Any

import optax

import fedagg
from fedagg.algorithms._parts import gradient_at, parameters_of, two_keys


def mime_lite(
    loss: Any,
    optimizer: optax.GradientTransformation,
    aggregator: fedagg.Aggregator,
    *,
    server_optimizer: optax.GradientTransformation | None = None,
    **options: Any,
) -> fedagg.Aggregator:
    """Gives clients the server's momentum, or other statistics, and moves these once.

    In each of its steps a client uses the optimizer's state that the server told it, as
    it is. The server then moves that state by the mean of the clients' gradients at the
    model that they began with, over all of their examples.

    | state | |
    | --- | --- |
    | `state.variables` | `{"model", "optimizer"}`, as is the value of a round |
    | a client's memory | none |

    A client goes through its examples once more than in FedAvg, and sends a gradient
    beside the change, twice the bytes. Batch statistics are averaged as they are.

    Args:
        loss: as `local_training` takes it.
        optimizer: from Optax. The paper's momentum is
            `optax.chain(optax.ema(beta, debias=False), optax.scale(-rate))`;
            `optax.adam` corrects its bias by the number of rounds, which stands still
            while clients step, and `optax.ema` corrects it unless told not to.
        aggregator: any. Weights are the numbers of examples.
        server_optimizer: of the model. None is `optax.sgd(1.0)`, as in the paper.
        **options: of `local_training`: `batch_size`, `epochs` and others.

    Raises:
        TypeError: if an argument is of another type.

    Reference: Karimireddy et al., "Breaking the centralized barrier for cross-device
        federated learning", 2021, algorithm 1, MimeLite.
    """
    server = fedagg.ServerStep.of(server_optimizer or optax.sgd(1.0))

    def work(variables: Any, row: Any, key: Any) -> Any:
        model, state = variables["model"], variables["optimizer"]

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            return optimizer.update(updates, state, params)[0], state

        frozen = optax.GradientTransformation(lambda params: state, update)
        key, other = two_keys(key)
        train = fedagg.local_training(loss, frozen, **options)
        change, metrics = train(model, row, key)
        gradient, _ = gradient_at(loss, model, row, other)
        return {"model": change, "gradient": gradient}, metrics

    def step(variables: Any, change: Any, metrics: Any, state: Any) -> Any:
        model, told = variables["model"], variables["optimizer"]
        _, told = optimizer.update(change["gradient"], told, parameters_of(model))
        model, state = server.step(model, change["model"], metrics, state)
        return {"model": model, "optimizer": told}, state

    def init(variables: Any) -> Any:
        return server.init(variables["model"])

    def sent(variables: Any) -> Any:
        model = variables["model"]
        return {"model": model, "gradient": parameters_of(model)}

    training = fedagg.federated_averaging(
        work, fedagg.ServerStep(init, step, sent), aggregator
    )
    return training._replace(
        init=lambda model: training.init(
            {"model": model, "optimizer": optimizer.init(parameters_of(model))}
        )
    )
