"""Error feedback: clients send what changed since their last message."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._execution.ways import in_turn
from fedagg._rounds.aggregator import Work, aggregator, keys_of_client
from fedagg._rounds.chain import merge_metrics
from fedagg._trees import checks, pytree
from fedagg._trees.weights import as_weights
from fedagg._types import Aggregator, Output, PyTree, Stage, Update


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


def with_error_feedback(stage: Stage, clients: int) -> Aggregator:
    """Averages clients who send, compressed, how their value differs from their memory.

    A client adds what it sent to its memory, and the server to its own copy of the
    mean, so that what one round leaves out comes in a later one. That makes biased
    compressors converge, if their squared error is below the square of the norm:
    `top_k` and `drive`, or unbiased ones with enough bits. `random_k`, `sign` and
    `terngrad`, whose error is above it, make the memory grow without end.

    `next(state, (updates, indices), weights=None, key=None, *, work=None)`: row `i` of
    `updates` is of the client with number `indices[i]`, `[n]`, from 0 to `clients - 1`,
    none twice. The value is the mean of the memories of all clients, also of those who
    are not in this round. Weights say who is present, and nothing more. The memory,
    `state.memory` `[clients, ...]` in float32, starts at zero; it is the caller's to
    keep, as all of the state. In `federated_averaging`, client data are then
    `(data, indices)`.

    A client whose message decodes to something that is not finite, or whose index is
    out of range, is left out. With nobody present the value is the mean as it was.

    Reports `error_feedback/count` `[]`, the number of clients left out for what they
    sent, and `error_feedback/distortion` `[]`, the squared distances of memories from
    values over the squares of values, both summed over the clients of the round.

    Args:
        stage: the compressor. Clients decode their own messages as the server does, so
            what it keeps is public, draws nothing at the server, and does not depend on
            the sum of messages.
        clients: the number of all clients, whether in a round or not. Positive.

    Raises:
        ValueError: if `clients` is not positive; in `next`, as `aggregator` does.
        TypeError: in `next`, as `aggregator` does.

    Reference: Richtárik et al., "EF21: A New, Simpler, Theoretically Better, and
        Practically Faster Error Feedback", 2021, algorithm 2; with some of the clients
        in a round, Fatkhullin et al., "EF21 with Bells & Whistles", 2021, "EF21-PP".
    """
    if clients < 1:
        raise ValueError(f"clients must be positive, got {clients=}.")
    adding = aggregator()

    def init(template: PyTree) -> FeedbackState:
        mean = pytree.widen(pytree.zeros(template))
        memory = pytree.repeat(mean, clients)
        return FeedbackState(memory, mean, stage.init(template))

    def next(
        state: FeedbackState,
        updates: tuple[PyTree, jax.Array],
        weights: jax.Array | None = None,
        key: jax.Array | None = None,
        *,
        work: Work | None = None,
    ) -> Output:
        rows, indices = updates
        n = checks.count_clients(updates)
        known = (indices >= 0) & (indices < clients)
        weights = jnp.where(known, as_weights(weights, n), 0.0)

        def value_of(row: PyTree, i: jax.Array) -> tuple[PyTree, dict]:
            return (row, {}) if work is None else work(row, keys_of_client(key, i)[0])

        def decoded(change: PyTree, i: jax.Array) -> tuple[PyTree, PyTree]:
            update = Update(change, jnp.float32(1.0))
            shared, stage_key = stage.broadcast(state.stage), keys_of_client(key, i)[1]
            message, note = stage.client(shared, update, stage_key)
            return pytree.widen(pytree.decode(message.value)), note

        def client(row: PyTree, memory: PyTree, i: jax.Array) -> tuple[_Sent, dict]:
            value, metrics = value_of(row, i)
            checks.check_floating(value, "with_error_feedback")
            value = pytree.widen(value)
            change = pytree.subtract(value, memory)
            total, note = decoded(change, i)
            sent = stage.server(state.stage, total, note, None).value
            missing = pytree.squared_norm(pytree.subtract(change, sent))
            squares = pytree.squared_norm(value)
            is_finite = jnp.isfinite(pytree.squared_norm(sent)) & jnp.isfinite(missing)
            nothing_wrong = _Sent(sent, note, missing, squares, jnp.float32(0.0))
            kept: _Sent = pytree.keep(is_finite, nothing_wrong)
            left_out = (~is_finite).astype(jnp.float32)
            return kept._replace(left_out=left_out), metrics

        numbers = jnp.arange(n, dtype=jnp.uint32)
        memory = pytree.take(state.memory, jnp.clip(indices, 0, clients - 1))
        each = in_turn(client, rows, memory, numbers)
        together = adding.next((), each, weights, work=lambda row, key: row)
        sent: _Sent = together.value
        # The sum of messages is not at hand, and no compressor's state hangs on it.
        nothing = pytree.zeros(jax.eval_shape(decoded, state.mean, numbers[0])[0])
        changes = jax.vmap(pytree.keep)(weights > 0.0, each[0].value)
        share = pytree.scale(jnp.float32(1.0 / clients), sent.value)
        state = FeedbackState(
            pytree.add_rows(state.memory, indices, changes),
            pytree.add(state.mean, share),
            stage.server(state.stage, nothing, sent.note, None).state,
        )
        like, _ = jax.eval_shape(value_of, pytree.abstract_row(rows), numbers[0])
        metrics = {
            "error_feedback/count": sent.left_out,
            # Without anything to send there is nothing missing.
            "error_feedback/distortion": sent.missing
            / jnp.where(sent.squares > 0.0, sent.squares, 1.0),
        }
        value = pytree.cast_like(state.mean, like)
        return Output(state, value, merge_metrics(metrics, together.metrics))

    # For `server_view`: the server keeps the memory of each client.
    vars(next)["sent"] = stage, False
    return Aggregator(init, next)
