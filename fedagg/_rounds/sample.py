"""A few clients' values as they are, to look at when a run goes wrong."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedagg._aggregator import Aggregator
from fedagg._messages.marks import Single
from fedagg._messages.message import Message
from fedagg._rounds.steps import Work, made_of
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree, rowwise, table
from fedagg._trees.kinds import check_kind
from fedagg._trees.weights import as_weights, is_present
from fedagg._types import Output, PyTree, Update

# Stream of a round's key beside the server's, which is the last, and the clients'.
_CHOICE = 2**32 - 3


class SampleState(NamedTuple):
    """What a round leaves behind."""

    aggregator: PyTree
    sample: Update  # value [clients, ...] and weight [clients], zero where nobody is


class _Sent(NamedTuple):
    value: PyTree
    sample: Single


@prints_as_its_call
def with_sample(aggregator: Aggregator, clients: int) -> Aggregator:
    """Keeps the values of a few clients of each round, for debugging.

    `state.sample` is an `Update` of the last round's: values `[clients, ...]` as the
    clients made them, before any stage, and weights `[clients]`, zero in rows for which
    nobody was there. They are drawn anew in each round, each set of present clients
    with the same chance. All else is the round of the aggregator, with the same draws.

    The server sees these clients in the clear, and `server_view` says so. Where `next`
    is given `work`, the clients of the sample do it twice. In `federated_averaging` the
    sample is `state.aggregator.sample`.

    Args:
        aggregator: what `aggregator`, `combining` or a recipe made.
        clients: how many. Positive.

    Raises:
        ValueError: if `clients` is not positive; beside a private stage or a secure
            sum, unless one is `without_guarantee`; in `next`, without a key, and for
            values that are not like the template.
        TypeError: if `aggregator` is none; from `steps`, as there are none.

    Reference: TensorFlow Federated,
        `tff.aggregators.UnweightedReservoirSamplingFactory`.
    """
    check_kind(Aggregator, aggregator=aggregator)
    checks.check_whole(1, clients=clients)
    _check_hidden(aggregator)

    def init(template: PyTree) -> SampleState:
        value = rowwise.repeat(pytree.zeros(template), clients)
        nobody = Update(value, jnp.zeros(clients, jnp.float32))
        return SampleState(aggregator.init(template), nobody)

    def next(
        state: SampleState,
        updates: PyTree,
        weights: Any = None,
        key: jax.Array | None = None,
        *,
        work: Work | None = None,
        memory: PyTree = None,
    ) -> Any:
        key = checks.check_key(key, "with_sample", "clients")
        given = {} if memory is None else {"memory": memory}
        made: Any = aggregator.next(
            state.aggregator, updates, weights, key, work=work, **given
        )
        output, kept = (made, None) if memory is None else made
        weights = as_weights(weights, checks.count_clients(updates))
        chosen = _chosen(weights, clients, jax.random.fold_in(key, _CHOICE))
        sample = _sampled(chosen, updates, weights, key, memory, work)
        sample = _like(sample, state.sample)
        output = Output(SampleState(output.state, sample), *output[1:])
        return output if memory is None else (output, kept)

    def message(template: PyTree) -> Message:
        sent = aggregator.message(template)
        sample = Single(pytree.abstract(template))
        return sent._replace(value=_Sent(sent.value, sample))

    return Aggregator(init, next, message=message)


def _check_hidden(aggregator: Aggregator) -> None:
    """Raises a ValueError where single clients are not to be seen."""
    if aggregator.stage is None:
        return
    traits = aggregator.stage.traits
    hides = traits.is_private or traits.is_secret
    if hides and not traits.without_guarantee:
        raise ValueError(
            f"aggregator: {traits.name} hides what single clients send, and a sample "
            "shows some. without_guarantee(stage) says that this is meant."
        )


def _chosen(weights: jax.Array, count: int, key: jax.Array) -> jax.Array:
    """So many clients of those present, by number; others where they do not suffice."""
    draws = jax.random.uniform(key, weights.shape, jnp.float32)
    order = jnp.argsort(jnp.where(is_present(weights), draws, 2.0))
    return order[:count].astype(jnp.uint32)


def _sampled(
    chosen: jax.Array,
    updates: PyTree,
    weights: jax.Array,
    key: jax.Array,
    memory: PyTree,
    work: Work | None,
) -> Update:
    """Those clients' updates, stacked, zero for who is absent."""
    rows, examples = table.apart(updates)
    rows = table.without_examples_of_absent(rows, is_present(weights))
    stacked = jax.tree.map(jnp.asarray, (rows, weights, memory))
    clients = rowwise.take(stacked, chosen)

    def made(client: tuple[Any, jax.Array]) -> Update:
        (row, weight, memory), number = client
        row = table.together(row, examples)
        update, _, _ = made_of(
            row, weight, jax.random.fold_in(key, number), memory, work
        )
        return pytree.keep(is_present(update.weight), update)

    return jax.lax.map(made, (clients, chosen))


def _like(sample: Update, before: Update) -> Update:
    """The sample with as many rows as the one before, in its dtypes."""
    if not pytree.is_alike(sample, before):
        raise ValueError(
            "updates: with_sample expected clients' values like the template given to "
            "init; it goes with what aggregator and combining make."
        )
    zeros = pytree.zeros(before)
    rows = jnp.arange(len(sample.weight))
    return rowwise.set_rows(zeros, rows, pytree.cast_like(sample, before))
