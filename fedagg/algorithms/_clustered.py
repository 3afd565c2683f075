"""IFCA: clients choose among some models the one that suits them, and train that."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import fedagg
from fedagg.algorithms._parts import (
    check_population,
    check_sums,
    counted_training,
    loss_at,
    two_keys,
)


def ifca(
    loss: Any,
    optimizer: optax.GradientTransformation,
    aggregator: fedagg.Aggregator,
    *,
    models: int,
    server_optimizer: optax.GradientTransformation | None = None,
    **options: Any,
) -> fedagg.Aggregator:
    """Trains several models, each by the clients whose loss is the least under it.

    `init` takes the models stacked, `[models, ...]` on every leaf, which must differ:
    `jax.vmap(lambda key: model.init(key, inputs))(jax.random.split(key, models))`.

    | state | |
    | --- | --- |
    | `state.variables` | the models, stacked, as is the value of a round |
    | a client's memory | none: a client chooses anew in each round |

    A client tries all models on its examples. It sends zeros for those that it did not
    choose, so that the server need not see which it was, and a number for each model,
    `models` times the bytes of FedAvg. A model that nobody chose stays as it was. Where
    losses are equal the first model is chosen; one whose loss is NaN is not.

    Args:
        loss: as `local_training` takes it.
        optimizer: of clients.
        aggregator: any but one of a rule, for which those who did not choose a model
            would have sent zeros. Weights are the numbers of examples.
        models: how many, k in the paper.
        server_optimizer: from Optax. None is `optax.sgd(1.0)`. One with momentum moves
            models that nobody chose, too.
        **options: of `local_training`: `batch_size`, `epochs` and others.

    Raises:
        ValueError: if `models` is no positive integer, or for an aggregator of a rule;
            in `init` and `next`, for models that are not so many.
        TypeError: if an argument is of another type.

    Reference: Ghosh et al., "An Efficient Framework for Clustered Federated Learning",
        2020, algorithm 1, model averaging.
    """
    check_population(models, "models")
    check_sums(aggregator, "ifca")
    server = fedagg.ServerStep.of(server_optimizer or optax.sgd(1.0))
    train = counted_training(loss, optimizer, **options)

    def work(stacked: Any, row: Any, key: Any) -> Any:
        key, other = two_keys(key)
        losses = jax.vmap(lambda model: loss_at(loss, model, row, other))(stacked)
        chosen = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
        change, metrics, steps = train(
            jax.tree.map(lambda x: x[chosen], stacked), row, key
        )
        alone = jax.tree.map(
            lambda x, all_of: jnp.zeros_like(all_of).at[chosen].set(x), change, stacked
        )
        counts = jnp.where(steps > 0.0, jax.nn.one_hot(chosen, models), 0.0)
        return {"models": alone, "counts": counts}, metrics

    def step(stacked: Any, change: Any, metrics: Any, state: Any) -> Any:
        counts = change["counts"]
        share = 1.0 / jnp.where(counts > 0.0, counts, 1.0)

        def mean(x: jax.Array) -> jax.Array:
            return jnp.reshape(share, (-1, *[1] * (x.ndim - 1))).astype(x.dtype) * x

        means = jax.tree.map(mean, change["models"])
        return server.step(stacked, means, metrics, state)

    def sent(stacked: Any) -> Any:
        are_all = jax.tree.map(lambda x: x.shape[:1] == (models,), stacked)
        if not jax.tree.all(are_all):
            raise ValueError(
                f"variables: expected {models} models, stacked on a leading axis of "
                f"every leaf; got shapes {jax.tree.map(jnp.shape, stacked)}."
            )
        return {"models": stacked, "counts": jnp.zeros(models)}

    return fedagg.federated_averaging(
        work, fedagg.ServerStep(server.init, step, sent), aggregator
    )
