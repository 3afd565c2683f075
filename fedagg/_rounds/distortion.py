"""The error that a compressor makes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedagg._messages.message import Message
from fedagg._rounds.chain import merge_metrics
from fedagg._rounds.steps import alone
from fedagg._sentence import prints_as_its_call
from fedagg._trees import pytree
from fedagg._trees.kinds import check_kind
from fedagg._types import PyTree, Stage, Update


class DistortionNote(NamedTuple):
    """What a client adds to its message. Summed over the present clients."""

    stage: PyTree
    error: jax.Array  # [] squared distance of the value and what is made of it
    squares: jax.Array  # [] of the value


@prints_as_its_call
def with_distortion(stage: Stage, *, name: str = "distortion") -> Stage:
    """Measures what a compressor does to the values of a round.

    Each client decodes its own message as the server does, as if nobody else took part,
    and reports how far that is from the value that the stage was given.

    Reports `{name}` `[]`, the squared errors of all clients over the squares of their
    values: the error that papers call the vNMSE or NMSE. A client whose error is not
    finite is left out, and zero stands for a round without anything to send.

    Args:
        stage: the compressor. What it keeps is public, since clients decode with it,
            and it draws nothing at the server.
        name: what the metric is called.

    Raises:
        ValueError: in `server`, if the stage has a metric of this name.
        ValueError, TypeError: what the stage raises.

    Reference: Vargaftik et al., "DRIVE: One-bit Distributed Mean Estimation", 2021,
        section 2.
    """
    check_kind(Stage, stage=stage)
    traits = stage.traits._replace(tells=True, has_sizes=True)
    if traits.refused is not None:
        refused = traits.refused
        traits = traits._replace(refused=lambda note: refused(note.stage))
    if traits.with_metrics is not None:
        take = traits.with_metrics

        def with_metrics(note: DistortionNote, metrics: dict[str, Any]):
            of_stage, left = take(note.stage, metrics)
            return note._replace(stage=of_stage), left

        traits = traits._replace(with_metrics=with_metrics)

    def client(state: PyTree, update: Update, key: jax.Array | None):
        message, note = stage.client(stage.broadcast(state), update, key)
        whole = Message(message.value, note, {}, jnp.bool_(True))
        _, sent = alone(stage, state, whole)
        value = pytree.widen(update.value)
        away = pytree.subtract(pytree.cast_like(sent, value), value)
        error = pytree.squared_norm(away)
        squares = pytree.squared_norm(value)
        is_finite = jnp.isfinite(error) & jnp.isfinite(squares)
        sizes = pytree.keep(is_finite, (error, squares))
        return message, DistortionNote(note, *sizes)

    def server(
        state: PyTree, total: PyTree, note: DistortionNote, key: jax.Array | None
    ):
        output = stage.server(state, total, note.stage, key)
        # Without anything to send there is no error.
        share = note.error / jnp.where(note.squares > 0.0, note.squares, 1.0)
        return output._replace(metrics=merge_metrics(output.metrics, {name: share}))

    return Stage(stage.init, lambda state: state, client, server, traits)
