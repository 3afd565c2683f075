"""Error feedback: clients send what changed since their last message."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from fedagg._aggregator import Aggregator
from fedagg._execution.ways import SumOver
from fedagg._messages.marks import Single
from fedagg._messages.message import Message
from fedagg._rounds.aggregator import aggregator
from fedagg._rounds.chain import merge_metrics
from fedagg._rounds.steps import Work, alone, made_of, message_of, steps_of
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree, rowwise
from fedagg._trees.keys import as_key
from fedagg._trees.kinds import array_leaves, check_kind
from fedagg._trees.weights import as_weights, is_present
from fedagg._types import Output, PyTree, Stage, Update


class FeedbackState(NamedTuple):
    """What a round needs of the ones before."""

    memory: PyTree  # [clients, ...], what the server believes of each client's value
    mean: PyTree  # of the memory, over all clients
    stage: PyTree


class _Sent(NamedTuple):
    """What is summed of a client's message; zeros if it is left out."""

    value: PyTree  # as the server decodes it
    note: PyTree
    missing: jax.Array  # [] squared distance of memory and value
    squares: jax.Array  # [] of the value
    left_out: jax.Array  # []


@prints_as_its_call
def with_error_feedback(
    stage: Stage, clients: int, *, sum_over: SumOver | None = None
) -> Aggregator:
    """Averages clients who send, compressed, how their value differs from their memory.

    A client adds what it sent to its memory, and the server to its own copy of the
    mean, so that what one round leaves out comes in a later one. That makes biased
    compressors converge, if their squared error is below the square of the norm:
    `top_k` and `drive`, or unbiased ones with enough bits. `random_k`, `sign` and
    `terngrad`, whose error is above it, make the memory grow without end.

    `next(state, (updates, numbers), weights=None, key=None, *, work=None,
    memory=None)`: row `i` of `updates` is of the client with number `numbers[i]`,
    `[n]`, from 0 to `clients - 1`. A number that comes twice counts once, with its
    first row. The value is the mean of the memories of all clients, also of those who
    are not in this round. Weights say who is present, and nothing more. The memory,
    `state.memory` `[clients, ...]` in float32, starts at zero; it is the caller's to
    keep, as all of the state. In `federated_averaging`, client data are then
    `(data, numbers)`. What `work` keeps is another memory, given and returned as in
    `aggregator`.

    A client whose message decodes to something that is not finite, or whose number is
    out of range, is left out. With nobody present the value is the mean as it was.

    Reports `error_feedback/count` `[]`, the number of clients left out for what they
    sent, and `error_feedback/distortion` `[]`, the squared distances of memories from
    values over the squares of values, both summed over the clients of the round.

    Args:
        stage: the compressor. Clients decode their own messages as the server does, so
            what it keeps is public, draws nothing at the server, and does not depend on
            the sum of messages.
        clients: the number of all clients, whether in a round or not. Positive.
        sum_over: a way to sum, as `aggregator` takes it.

    Raises:
        ValueError: if `clients` is not positive, or the stage is private; in `next`,
            for a state with the memory of another number of clients, and as
            `aggregator` does.
        TypeError: in `next`, as `aggregator` does.

    Reference: Richtárik et al., "EF21: A New, Simpler, Theoretically Better, and
        Practically Faster Error Feedback", 2021, algorithm 2; with some of the clients
        in a round, Fatkhullin et al., "EF21 with Bells & Whistles", 2021, "EF21-PP".
    """
    check_kind(Stage, stage=stage)
    checks.check_whole(1, clients=clients)
    if stage.traits.is_private:
        raise ValueError(
            f"{stage.traits.name} noises a sum, and with_error_feedback has the server "
            "keep what each client sends: it does not go with it."
        )
    adding = aggregator(sum_over=sum_over)
    steps = steps_of(stage)

    def init(template: PyTree) -> FeedbackState:
        template = array_leaves(template, "template")
        mean = pytree.widen(pytree.zeros(template))
        memory = rowwise.repeat(mean, clients)
        return FeedbackState(memory, mean, stage.init(template))

    def next(
        state: FeedbackState,
        updates: tuple[PyTree, jax.Array],
        weights: Any = None,
        key: jax.Array | None = None,
        *,
        work: Work | None = None,
        memory: PyTree = None,
    ) -> Any:
        rows, numbers = _parted(updates)
        key = as_key(key)
        _check_memory(state.memory, clients)
        n = checks.count_clients(updates)
        weights = as_weights(weights, n)
        places = rowwise.places_of(numbers, is_present(weights), clients)
        weights = jnp.where(places < clients, weights, 0.0)
        seen = []  # a client's value, and what is added of its message

        def client(work: Any, state: PyTree, row: PyTree, key: Any, kept: Any):
            memory, before = kept
            made = made_of(row, jnp.float32(1.0), key, before, work)
            (value, weight), metrics, after = made
            checks.check_floating(value, "with_error_feedback")
            like, value = pytree.abstract(value), pytree.widen(value)
            change = pytree.subtract(value, memory)
            message = steps.client(stage.broadcast(state), change, 1.0, key)
            total, heard = alone(stage, state, message)
            seen.append((like, pytree.abstract(total.value)))
            heard = pytree.cast_like(heard, change)
            missing = pytree.squared_norm(pytree.subtract(change, heard))
            squares = pytree.squared_norm(value)
            is_finite = jnp.isfinite(pytree.squared_norm(heard)) & jnp.isfinite(missing)
            sent = _Sent(heard, total.note, missing, squares, jnp.float32(0.0))
            sent = pytree.keep(is_finite, sent)
            sent = sent._replace(left_out=(~is_finite).astype(jnp.float32))
            after = pytree.add(memory, heard), after
            return Update(sent, weight), metrics, pytree.where(is_finite, after, kept)

        believed = rowwise.at_places(state.memory, places)
        of_work = None if work is None else pytree.as_partial(work)
        together, kept = adding.next(
            (),
            rows,
            weights,
            key,
            work=Partial(client, of_work, state.stage),
            memory=(believed, memory),
        )
        believed, memory = kept
        sent: _Sent = together.value
        share = pytree.scale(jnp.float32(1.0 / clients), sent.value)
        # The sum of messages is not at hand, and no compressor's state depends on it.
        like, added = seen[0]
        nothing = pytree.zeros(added)
        after = stage.server(state.stage, nothing, sent.note, None).state
        output_state = FeedbackState(
            rowwise.set_rows(state.memory, places, believed),
            pytree.add(state.mean, share),
            after,
        )
        metrics = {
            "error_feedback/count": sent.left_out,
            # Without anything to send there is nothing missing.
            "error_feedback/distortion": sent.missing
            / jnp.where(sent.squares > 0.0, sent.squares, 1.0),
        }
        value = pytree.cast_like(output_state.mean, like)
        metrics = merge_metrics(metrics, together.metrics)
        output = Output(output_state, value, metrics)
        return output if memory is None else (output, memory)

    def message(template: PyTree) -> Message:
        """The server keeps the memory of each client, and sees each message."""
        sent = message_of(stage, template)
        return sent._replace(value=Single(sent.value))

    return Aggregator(init, next, message=message)


def _parted(updates: Any) -> tuple[PyTree, jax.Array]:
    """Rows, and the numbers of their clients."""
    if not isinstance(updates, tuple) or len(updates) != 2:
        raise ValueError(
            "updates: with_error_feedback takes a pair (updates, numbers), the numbers "
            f"of the clients [n] beside their rows; got {type(updates).__name__}."
        )
    rows, numbers = updates
    numbers = jnp.asarray(numbers)
    if not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise TypeError(f"numbers: expected integers, got dtype {numbers.dtype}.")
    return rows, numbers


def _check_memory(memory: PyTree, clients: int) -> None:
    found = checks.count_clients(memory, "state.memory")
    if found != clients:
        raise ValueError(
            f"state: expected the memory of {clients} clients, as given to "
            f"with_error_feedback; got that of {found}."
        )
