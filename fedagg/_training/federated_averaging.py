"""Federated averaging: clients train inside the sum, and the server takes a step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from fedagg._aggregator import Aggregator, Steps
from fedagg._sentence import prints_as_its_call
from fedagg._training import models, population
from fedagg._training.checked import check_state, checked_work, count_clients_of
from fedagg._training.population import RememberingWork
from fedagg._training.server_step import ServerStep
from fedagg._trees import pytree, rowwise
from fedagg._trees.kinds import array_leaves, check_function, check_kind
from fedagg._trees.weights import as_weights, is_present
from fedagg._types import Output, PyTree

ClientWork = Callable[
    [PyTree, Any, jax.Array | None], tuple[PyTree, dict[str, jax.Array]]
]


class TrainingState(NamedTuple):
    """What the server carries from round to round."""

    variables: PyTree  # the model, as given to `init`
    optimizer: PyTree  # of the server, or what its step keeps
    aggregator: PyTree
    memories: PyTree = None  # of all clients, [clients, ...], if they are kept here


@prints_as_its_call
def federated_averaging(
    client_work: Callable[..., Any] | RememberingWork,
    server_optimizer: optax.GradientTransformation | ServerStep,
    aggregator: Aggregator,
    *,
    clients: int | None = None,
) -> Aggregator:
    """Makes a round of federated training, again as an `(init, next)` pair.

    `init(variables)` takes the model: a pytree of parameters, or, as Flax has it, a
    dict of collections with the parameters under "params". The state has the model as
    `state.variables`.

    `next(state, client_data, weights=None, key=None)` runs
    `client_work` for each row of `client_data` inside the aggregator's sum, so that no
    stack of updates exists unless the way to sum wants one; aggregates the changes; and
    steps the server. Its value is the new model, its metrics those of the aggregator
    and of the client work.

    Work that remembers, a `RememberingWork`, keeps something of each client. With
    `clients` all memories are in the state, as `state.memories`, and client data are a
    pair `(client_data, numbers)`, `[n]` integers that say who is in the round. Without,
    `next` takes `memory=`, `[n, ...]` on every leaf, and returns `(Output, memory)`:
    for memories that are kept elsewhere. Who is absent or refused keeps what it had.

    | one of the `numbers` | known before tracing | traced |
    | --- | --- | --- |
    | of nobody | a ValueError | is absent |
    | that another present client has | a ValueError | its first row counts |
    | of a row of weight zero | changes nothing | changes nothing |

    The server optimizer takes the aggregated change, negated, for a gradient of the
    parameters. Collections beside "params", such as batch statistics, are moved by the
    aggregated change as it is: with a mean, to the mean of the clients' statistics.

    With an aggregator that has a private stage, as `dp_aggregator`:

    | | |
    | --- | --- |
    | protected | a client, with all of its examples: `guarantee(training, ...)` |
    | the model, the optimizer, collections | follow from what is noised |
    | metrics of the client work | come out through `noised_metrics` alone |
    | a round with nobody present | takes a step, of noise, as every other |
    | a client in two rows of a round | moves the sum by two clips |

    Without one the model and the optimizer stay as they are in a round with nobody, and
    where the aggregated change is not finite, which `training/not_finite` `[]` counts.
    `weights` say who is there: where work or a stage makes all of them absent, the
    change is zero, and a momentum moves on.

    `steps` is the same round taken apart: `client` trains, `server` takes the step.

    With `local_training`: FedAvg is `optax.sgd(1.0)` at the server; FedSGD is one epoch
    of one batch with `optax.sgd(1.0)` at the clients; FedProx is `proximal > 0`; Adam
    at the server is FedAdam, and so on.

    Args:
        client_work: `(variables, row, key) -> (change, metrics)`, for one client. The
            change is what the client would add to the model; the key is
            `jax.random.fold_in(key, i)` for row `i`. Or a `RememberingWork`.
        server_optimizer: from Optax, or a `ServerStep`.
        aggregator: any. A pair made by hand counts as not private.
        clients: how many clients there are, of which each round has some, to keep their
            memories in the state. Positive; for a `RememberingWork` alone.

    Raises:
        TypeError: if an argument is of another type; in `next`, as `aggregator` does;
            with `clients`, for client data without numbers that are integers.
        ValueError: if `clients` is no positive integer or the work remembers nothing;
            in `init`, for a model without parameters; in `next`, as `aggregator` does,
            and for wrong numbers.

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
        Decentralized Data", 2017, algorithm 1; Reddi et al., "Adaptive Federated
        Optimization", 2021, algorithm 1.
    """
    population.check_clients(client_work, clients)
    function = population.function_of(client_work)
    check_function("(variables, row, key, ...)", client_work=function)
    is_step = isinstance(server_optimizer, ServerStep)
    server = server_optimizer if is_step else ServerStep.of(server_optimizer)
    check_kind(Aggregator, aggregator=aggregator)
    stage = aggregator.stage
    is_private = stage is not None and stage.traits.is_private

    def changing(variables: PyTree, *row_and_more: Any) -> Any:
        made = function(variables, *row_and_more)
        return checked_work(made, server.template(variables))

    def init(variables: PyTree) -> TrainingState:
        models.check_is_no_module(variables)
        variables = array_leaves(variables, "variables")
        models.check_has_parameters(variables)
        variables = jax.tree.map(jnp.asarray, variables)
        memories = None
        if clients is not None:
            memories = population.first_memories(client_work, variables, clients)
        return TrainingState(
            variables,
            server.init(variables),
            aggregator.init(server.template(variables)),
            memories,
        )

    def stepped(state: TrainingState, change: Output, is_anyone: jax.Array) -> Output:
        """The server's step, after the aggregator's."""
        before = state.variables, state.optimizer
        made, kept = server.step(before[0], change.value, change.metrics, before[1])
        after = models.in_containers_of(made, before[0]), kept
        is_finite = pytree.is_finite(change.value)
        # A momentum would move the model in a round without anybody too. Where there is
        # noise, a model that stays would tell that nobody was there.
        moves = (is_anyone & is_finite) | is_private
        variables, optimizer = pytree.where(moves, after, before)
        state = TrainingState(variables, optimizer, change.state, state.memories)
        lost = {} if is_private else {"training/not_finite": jnp.float32(~is_finite)}
        return Output(state, variables, change.metrics | lost)

    def next(
        state: TrainingState,
        client_data: PyTree,
        weights: Any = None,
        key: jax.Array | None = None,
        *,
        memory: PyTree = None,
    ) -> Any:
        check_state(TrainingState, state, "state.variables")
        if clients is None:
            population.check_memory(client_work, memory)
            weights = as_weights(weights, count_clients_of(client_data))
            return trained(state, client_data, weights, key, memory)
        if memory is not None:
            raise ValueError("memory: it is in the state, since there is clients=.")
        client_data, numbers = population.parted(client_data)
        n = count_clients_of(client_data)
        weights = as_weights(weights, n)
        numbers = population.check_numbers(numbers, n, clients, weights)
        places = rowwise.places_of(numbers, is_present(weights), clients)
        weights = jnp.where(places < clients, weights, 0.0)
        memories = jax.tree.map(jnp.asarray, state.memories)
        memory = rowwise.at_places(memories, places)
        output, rows = trained(state, client_data, weights, key, memory)
        memories = rowwise.set_rows(memories, places, rows)
        return output._replace(state=output.state._replace(memories=memories))

    def trained(
        state: TrainingState, data: PyTree, weights: jax.Array, key: Any, memory: PyTree
    ) -> Any:
        """The round, of clients with these memories."""
        takes = "(variables, row, key" + (")" if memory is None else ", memory)")
        check_function(takes, client_work=function)
        work = Partial(changing, state.variables)
        given = {} if memory is None else {"memory": memory}
        change = aggregator.next(
            state.aggregator, data, weights, key, work=work, **given
        )
        is_anyone = jnp.any(is_present(weights))
        if memory is None:
            return stepped(state, change, is_anyone)
        change, kept = change
        return stepped(state, change, is_anyone), kept

    steps = _steps(client_work, changing, aggregator.steps, stepped)
    return aggregator._replace(init=init, next=next, steps=steps)


class _Shared(NamedTuple):
    """What a client is told."""

    variables: PyTree
    aggregator: PyTree


def _steps(
    client_work: Any, changing: Callable, of: Steps, stepped: Callable[..., Output]
) -> Steps:
    """The steps of a training, from those of its aggregator."""

    def broadcast(state: TrainingState) -> _Shared:
        check_state(TrainingState, state, "state.variables")
        return _Shared(state.variables, of.broadcast(state.aggregator))

    def client(
        shared: _Shared,
        row: PyTree,
        weight: Any = 1.0,
        key: jax.Array | None = None,
        memory: PyTree = None,
    ) -> Any:
        work = Partial(changing, shared.variables)
        if memory is None and isinstance(client_work, RememberingWork):
            memory = population.first_memory(client_work, shared.variables)
        return of.client(shared.aggregator, row, weight, key, memory, work=work)

    def server(state: TrainingState, total: PyTree, key: Any = None) -> Output:
        # Who is absent sends nothing, so that there is somebody in a total.
        change = of.server(state.aggregator, total, key)
        return stepped(state, change, jnp.bool_(total is not None))

    return Steps(broadcast, client, of.add, server)
