"""Federated averaging: clients train inside the sum, and the server takes a step."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedagg._trees import checks, pytree
from fedagg._trees.weights import as_weights
from fedagg._types import Aggregator, Output, PyTree

ClientWork = Callable[
    [PyTree, Any, jax.Array | None], tuple[PyTree, dict[str, jax.Array]]
]


class TrainingState(NamedTuple):
    """What the server carries from round to round."""

    variables: PyTree  # the model, as given to `init`
    optimizer: PyTree
    aggregator: PyTree


def federated_averaging(
    client_work: ClientWork,
    server_optimizer: optax.GradientTransformation,
    aggregator: Aggregator,
) -> Aggregator:
    """Makes a round of federated training, again as an `(init, next)` pair.

    `init(variables)` takes the model: a pytree of parameters, or, as Flax has it, a
    dict of collections with the parameters under "params". The state has the model as
    `state.variables`.

    `next(state, client_data, weights=None, key=None)` runs `client_work` for each row
    of `client_data` inside the aggregator's sum, so that no stack of updates exists
    unless the way to sum wants one; aggregates the changes; and steps the server. Its
    value is the new model, its metrics those of the aggregator and of the client work.

    The server optimizer takes the aggregated change, negated, for a gradient of the
    parameters. Collections beside "params", such as batch statistics, are moved by the
    aggregated change as it is: with a mean, to the mean of the clients' statistics. In
    a round with nobody present the model and the optimizer stay as they are.

    With `local_training`: FedAvg is `optax.sgd(1.0)` at the server; FedSGD is one epoch
    of one batch with `optax.sgd(1.0)` at the clients; FedProx is `proximal > 0`; Adam
    at the server is FedAdam, and so on.

    Args:
        client_work: `(variables, row, key) -> (change, metrics)`, for one client. The
            change is what the client would add to the model; the key is
            `jax.random.fold_in(key, i)` for row `i`.
        server_optimizer: from Optax.
        aggregator: any.

    Raises:
        TypeError: in `next`, as `aggregator` does.
        ValueError: in `next`, as `aggregator` does.

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
        Decentralized Data", 2017, algorithm 1; Reddi et al., "Adaptive Federated
        Optimization", 2021, algorithm 1.
    """

    def init(variables: PyTree) -> TrainingState:
        variables = jax.tree.map(jnp.asarray, variables)
        return TrainingState(
            variables,
            server_optimizer.init(split_model(variables)[0]),
            aggregator.init(variables),
        )

    def next(
        state: TrainingState,
        client_data: PyTree,
        weights: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Output:
        present = as_weights(weights, checks.count_clients(client_data)) > 0.0
        work = jax.tree_util.Partial(client_work, state.variables)
        change = aggregator.next(state.aggregator, client_data, weights, key, work=work)
        parameters, collections = split_model(state.variables)
        towards, collections_change = split_model(change.value)
        step, optimizer = server_optimizer.update(
            pytree.negative(towards), state.optimizer, parameters
        )
        variables = join_model(
            optax.apply_updates(parameters, step),
            pytree.add(collections, collections_change),
        )
        # A momentum would move the model in a round without anybody too.
        variables, optimizer = pytree.where(
            jnp.any(present),
            (variables, optimizer),
            (state.variables, state.optimizer),
        )
        state = TrainingState(variables, optimizer, change.state)
        return Output(state, variables, change.metrics)

    return Aggregator(init, next)


def split_model(variables: PyTree) -> tuple[PyTree, PyTree]:
    """The parameters, and the collections beside them: None where it is all one."""
    if not isinstance(variables, Mapping) or "params" not in variables:
        return variables, None
    rest = {name: x for name, x in variables.items() if name != "params"}
    return variables["params"], rest


def join_model(parameters: PyTree, collections: PyTree) -> PyTree:
    """The inverse of `split_model`."""
    return parameters if collections is None else {"params": parameters, **collections}
