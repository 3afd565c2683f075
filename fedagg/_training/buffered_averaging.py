"""Asynchronous rounds: the server steps when a buffer of clients is full.

A client trains on the model that it was given, however long it takes, and encodes its
change when it is back, by what clients are told then. So all messages of a buffer agree
on bounds, rotations and seeds, and a buffer is a round like any other: of a sum, with
whatever stages it has.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedagg._aggregator import Aggregator, has_steps
from fedagg._sentence import prints_as_its_call
from fedagg._training import arrivals
from fedagg._training.checked import check_state
from fedagg._training.federated_averaging import TrainingState, federated_averaging
from fedagg._training.population import RememberingWork
from fedagg._training.server_step import ServerStep
from fedagg._training.stale import Aged, StaleRow, step_of_newest, work_on_stale
from fedagg._trees import checks, rowwise, table
from fedagg._trees.buffers import check_buffer, inverse_root
from fedagg._trees.keys import as_key
from fedagg._trees.kinds import check_function, check_kind
from fedagg._trees.weights import as_weights, is_present
from fedagg._types import Output, PyTree

# Stream of the clock's key, beside those of the clients and of the server.
_CLOCK = 2**32 - 4


class BufferedState(NamedTuple):
    """What the server carries from step to step."""

    training: TrainingState  # as of `federated_averaging`
    models: PyTree  # [max_staleness + 1, ...], that of step v at v modulo their number
    clock: arrivals.Clock


@prints_as_its_call
def buffered_averaging(
    client_work: Callable[..., Any] | RememberingWork,
    server_optimizer: optax.GradientTransformation | ServerStep,
    aggregator: Aggregator,
    *,
    clients: int,
    buffer: int,
    concurrency: int,
    duration: Callable[[jax.Array, jax.Array], Any],
    discount: Callable[[jax.Array], Any] = inverse_root,
    max_staleness: int = 10,
    separation: int = 1,
    timeout: float = float("inf"),
) -> Aggregator:
    """Simulates asynchronous training, FedBuff, again as an `(init, next)` pair.

    So many clients are away at a time, each training on the model that the server had
    when it began. Who comes back goes into the buffer, and somebody else is sent out.
    A full buffer is a round of the aggregator, and the server takes a step: that is one
    `next`, and its clients' training runs inside the sum.

    Of these clients one in two takes ten times as long as the others::

        training = buffered_averaging(
            lambda w, x, key: (0.5 * (x - w), {}),  # halfway to its own value
            optax.sgd(1.0),
            robust_aggregator(),
            clients=8,
            buffer=2,
            concurrency=4,
            duration=lambda client, key: jnp.where(client % 2, 10.0, 1.0),
        )
        state, data = training.init(jnp.zeros(3)), jnp.ones((8, 3))
        state, model, metrics = training.next(state, data, key=jax.random.key(0))

    `init(variables)` takes the model. `next(state, client_data, weights=None, key=...)`
    takes the data of *all* clients, a row each, and their weights; one of weight zero
    is never sent out. `state.training` is that of `federated_averaging`, with the model
    as `state.training.variables`, which is the value as well.

    | | |
    | --- | --- |
    | staleness | steps of the server since a client began |
    | a stale change | is multiplied by the discount, before all stages |
    | bounds, seeds, numbers of rounds | are those of the buffer, for every message |
    | what the sum is divided by | the aggregator's own: the weights in a `mean`, and |
    | | where none are given the size of the buffer, as in the paper |
    | a client too stale | is not in the buffer, and counted |
    | one whose seconds are NaN, | is lost: its place is free after the timeout, and |
    | negative or above the timeout | it may come again |
    | a NaN in a change | is for the aggregator's stages, as in any round |
    | nobody left to come | the rest of the buffer's clients are absent |
    | nobody stale | a round of `federated_averaging`, but for rounding |

    To divide by the sum of discounts would undo them where all are equally stale, and
    for a buffer of one.

    Reports `buffered/seconds` `[]` since the last step, `buffered/clients` in the
    buffer, their mean `buffered/staleness`, NaN of nobody, and how many were `lost` or
    `too_stale`. A step also ends with what it has after `100 * (buffer + concurrency)`
    places that became free.

    With noise, a client is in one buffer at most of `separation`, so that its price is
    `guarantee(training, ..., neighbors="zero_out",
    participation=separated(separation, size=buffer))`, without amplification: who is
    quick is no secret draw. When clients come back is told, and no noise hides it.

    Args:
        client_work: as in `federated_averaging`. A `RememberingWork` has the memories
            of all clients in `state.training.memories`.
        server_optimizer: likewise.
        aggregator: any that has steps. That of `with_error_feedback` has none.
        clients: how many there are.
        buffer: clients in a step, K in the paper.
        concurrency: clients that are away at a time, as far as there are any: M.
        duration: `(client, key) -> seconds`, from the number of a client `[]` and a key
            of its own, traced.
        discount: `(staleness) -> factor`, from a float `[]`. None of it should be above
            one, where nobody is stale. The default is `1 / sqrt(1 + staleness)`.
        max_staleness: the most that counts. So many models and one are in the state.
        separation: steps from one that a client is in to the next, at least.
        timeout: seconds after which a client is given up.

    Raises:
        TypeError: if an argument is of another type, or the aggregator has no steps; in
            `next`, as `federated_averaging` does, and for changes of integers.
        ValueError: if a number is out of range, or `clients` are fewer than a buffer;
            in `next`, without a key or for data of another number of clients, and as
            `federated_averaging` does.

    Reference: Nguyen et al., "Federated Learning with Buffered Asynchronous
        Aggregation", 2022, algorithm 1, section 3, and section 5 for the discount.
    """
    check_kind(Aggregator, aggregator=aggregator)
    if not has_steps(aggregator):
        raise TypeError(
            f"aggregator: expected one that has steps, got {aggregator}. One made by "
            "hand, or by with_error_feedback, does not say what single clients do."
        )
    check_buffer(clients, buffer, concurrency, max_staleness, separation, discount)
    checks.check_above_zero(timeout=timeout)
    check_function("(client, key)", duration=duration)
    is_step = isinstance(server_optimizer, ServerStep)
    step = server_optimizer if is_step else ServerStep.of(server_optimizer)
    remembers = isinstance(client_work, RememberingWork)
    plain = federated_averaging(
        client_work, step, aggregator, clients=clients if remembers else None
    )
    rules = arrivals.Rules(
        *(clients, buffer, concurrency, duration),
        *(max_staleness, separation, float(timeout)),
    )

    training = federated_averaging(
        work_on_stale(client_work, discount),
        step_of_newest(step),
        aggregator,
        clients=clients if remembers else None,
    )

    def init(variables: PyTree) -> BufferedState:
        state = plain.init(variables)
        models = rowwise.repeat(state.variables, max_staleness + 1)
        return BufferedState(state, models, arrivals.first_clock(rules))

    def next(
        state: BufferedState,
        client_data: PyTree,
        weights: Any = None,
        key: jax.Array | None = None,
    ) -> Output:
        check_state(BufferedState, state, "state.training.variables")
        key = checks.check_key(as_key(key), "buffered_averaging", "clients")
        n = checks.count_clients(client_data, "client_data")
        checks.check_whole(clients, clients, **{"rows of client_data": n})
        weights = as_weights(weights, n)
        clock, found = arrivals.next_arrivals(
            rules, state.clock, is_present(weights), jax.random.fold_in(key, _CLOCK)
        )
        is_there = jnp.arange(buffer) < found.count
        staleness = (state.clock.number - found.versions).astype(jnp.float32)
        data = table.map_data(
            lambda x: x[found.clients],
            lambda x: jnp.asarray(x)[found.clients],
            client_data,
        )
        rows = StaleRow(data, found.versions % (max_staleness + 1), staleness)
        aged = Aged(state.training.variables, state.models)
        output = training.next(
            state.training._replace(variables=aged),
            (rows, found.clients) if remembers else rows,
            jnp.where(is_there, weights[found.clients], 0.0),
            key,
        )
        variables = output.value.newest
        models = rowwise.put_rows(
            state.models,
            clock.number % (max_staleness + 1),
            jax.tree.map(lambda x: x[None], variables),
        )
        after = output.state._replace(variables=variables)
        count = jnp.float32(found.count)
        told = {
            "seconds": found.seconds,
            "clients": count,
            "staleness": jnp.sum(jnp.where(is_there, staleness, 0.0)) / count,
            "lost": jnp.float32(found.lost),
            "too_stale": jnp.float32(found.too_stale),
        }
        reports = {f"buffered/{name}": x for name, x in told.items()}
        return Output(
            BufferedState(after, models, clock), variables, output.metrics | reports
        )

    return Aggregator(init, next, message=aggregator.message, stage=aggregator.stage)
