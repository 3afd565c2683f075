"""A round taken apart: what is told, what a client sends, what the server makes of it.

These functions are the round. `aggregator` drives them for all clients in one program,
a deployment on as many machines as there are clients.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._aggregator import Steps
from fedagg._messages.message import Message, added, sent
from fedagg._rounds.chain import merge_metrics
from fedagg._trees import checks, pytree
from fedagg._trees.keys import as_key, fold_key
from fedagg._trees.kinds import array_leaves, check_work, described, types_of
from fedagg._trees.remembered import Remembered
from fedagg._trees.weights import as_weight, is_present
from fedagg._types import Output, PyTree, Stage, Update

Work = Callable[..., Any]

# Stream of a client's key beside that of its work, which draws from the key itself.
_STAGES = 2**32 - 2

_NUMBERS = (bool, int, float, complex, np.ndarray, np.generic, jax.Array)


def steps_of(stage: Stage) -> Steps:
    """The steps of a round of one stage, whose clients' values are summed."""

    def client(
        shared: PyTree,
        row: PyTree,
        weight: Any = 1.0,
        key: jax.Array | None = None,
        memory: PyTree = None,
        *,
        work: Work | None = None,
    ) -> Any:
        return client_step(stage, shared, row, weight, key, memory, work)

    def server(
        state: PyTree, total: Message | None, key: jax.Array | None = None
    ) -> Output:
        key = as_key(key)
        if total is None:
            nothing = jax.eval_shape(added, message_of_nobody(stage, state))
            total = pytree.zeros(nothing)
        check_message("total", total)
        return server_step(stage, state, total, key)

    return Steps(stage.broadcast, client, add_step, server)


def message_of(stage: Stage, template: PyTree) -> Message:
    """The message of a client with a value like the template, as shapes and dtypes."""
    steps = steps_of(stage)
    shared = jax.eval_shape(lambda x: steps.broadcast(stage.init(x)), template)
    one, key = jnp.float32(1.0), jax.random.key(0)
    return jax.eval_shape(steps.client, shared, pytree.abstract(template), one, key)


def message_of_nobody(stage: Stage, state: PyTree) -> Message:
    """A message, as shapes and dtypes, for a total to which nothing was added.

    Raises:
        ValueError: if the state does not remember a template.
    """
    template = Remembered.template_of(state)
    if template is None:
        raise ValueError(
            "total: nothing was added, and the state does not remember the template "
            "that says what zero is: give the state that init or a round returned."
        )
    return message_of(stage, template)


def client_step(
    stage: Stage,
    shared: PyTree,
    row: PyTree,
    weight: Any,
    key: jax.Array | None,
    memory: PyTree,
    work: Work | None,
    look: Callable[[PyTree], None] = lambda value: None,
    as_it_is: bool = False,
) -> Any:
    """The message of a client, and with a memory what it keeps.

    `look` is shown the client's value, as shapes and dtypes. `as_it_is` leaves that of
    an absent client to whoever gets the message.
    """
    weight, key = as_weight(weight), as_key(key)
    key_of_stages = fold_key(key, _STAGES)  # before the work uses the key up
    update, metrics, kept = made_of(row, weight, key, memory, work)
    checks.check_numeric(update.value, "updates" if work is None else "work")
    look(pytree.abstract(update.value))
    # An absent client's value may be anything, and so may its derivatives.
    value = pytree.keep(is_present(update.weight), update.value)
    before = update if as_it_is else update._replace(value=value)
    after, note = stage.client(shared, before, key_of_stages)
    traits = stage.traits
    if traits.with_metrics is not None and work is not None:
        heard = pytree.keep(is_present(update.weight), metrics)
        note, left = traits.with_metrics(note, heard)
        metrics = {name: metrics[name] for name in left}
    # No noise hides them.
    if traits.is_private and not traits.without_guarantee:
        metrics = {}
    message = sent(
        after.value,
        note,
        _note_metrics(metrics, update.weight),
        is_present(after.weight),
    )
    if memory is None:
        return message
    counts = is_present(update.weight) & is_present(after.weight)
    if traits.refused is not None:
        counts &= ~traits.refused(note)
    return message, pytree.where(counts, kept, memory)


def alone(stage: Stage, state: PyTree, message: Message) -> tuple[Message, PyTree]:
    """One client's message as a total, and what the server makes of that alone."""
    total = add_step(None, message)
    return total, stage.server(state, total.value, total.note, None).value


def add_step(total: Message | None, message: Message) -> Message:
    """Adds a message to the total of those before; None is the total of nobody."""
    check_message("message", message)
    part = added(message)
    if total is None:
        return part
    check_message("total", total)
    expected, got = pytree.shapes(total), pytree.shapes(part)
    if not pytree.is_alike(part, total) or got != expected:
        raise ValueError(
            f"message: expected arrays of shapes {expected}, as in those added before; "
            f"got {got}. Clients' values are all to be like the template."
        )
    return pytree.add(total, part)


def check_message(argument: str, got: Any) -> None:
    """Raises a TypeError for what no client sends."""
    if not isinstance(got, Message):
        raise TypeError(
            f"{argument}: expected what `client` of these steps returned, or `add` made"
            f" of it, got {described(got)}. add(total, message) has the total first, "
            "None for that of nobody."
        )


def server_step(
    stage: Stage,
    state: PyTree,
    total: Message,
    key: jax.Array | None,
    like: PyTree = None,
) -> Output:
    """What the server makes of the sum of messages.

    The value is in the dtypes of a client's value like that of `like`, else of the
    template that the state remembers.
    """
    output = stage.server(state, total.value, total.note, key)
    metrics = merge_metrics(output.metrics, _means(total.metrics))
    value = output.value
    like = Remembered.template_of(state) if like is None else like
    if like is not None and pytree.is_alike(value, like):
        value = pytree.cast_like(value, like)
    return Output(Remembered.like(state, output.state), value, metrics)


def made_of(
    row: PyTree, weight: jax.Array, key: Any, memory: PyTree, work: Work | None
) -> tuple[Update, dict[str, jax.Array], PyTree]:
    """A client's update, the metrics of its work, and what it keeps."""
    if work is None:
        return Update(array_leaves(row, "updates"), weight), {}, memory
    check_work(work, memory)
    made = work(row, key) if memory is None else work(row, key, memory)
    expected = 2 if memory is None else 3
    is_right = isinstance(made, tuple) and len(made) == expected
    if not (is_right and not isinstance(made, Update) and isinstance(made[1], dict)):
        wanted = "(value, metrics)" if memory is None else "(value, metrics, memory)"
        raise TypeError(
            f"work: expected {wanted} with metrics a dict of scalars, got "
            f"{types_of(made)}. Without metrics: {wanted.replace('metrics', '{}')}."
        )
    value, metrics = made[:2]
    _check_metrics(metrics)
    if isinstance(value, Update):  # the client says its weight
        weight = jnp.where(is_present(weight), as_weight(value.weight), 0.0)
        value = value.value
    value = array_leaves(value, "work")
    kept = memory if memory is None else pytree.like(made[2], memory, "work: memory")
    return Update(value, weight), metrics, kept


def _check_metrics(metrics: dict[str, Any]) -> None:
    for name, x in metrics.items():
        if not isinstance(name, str):
            raise TypeError(
                f"work: expected strings as names of metrics, got {name!r}."
            )
        if not isinstance(x, _NUMBERS):
            raise TypeError(
                f"work: expected scalars as metrics; {name!r} is {described(x)}. Leave "
                "out what has no value, and name each part of what is nested: "
                f"{{'{name}/part': x}}."
            )
        if jnp.shape(x):
            raise ValueError(
                f"work: expected scalars as metrics; {name!r} has shape {jnp.shape(x)}."
                " Take its mean, or name each entry."
            )
        if not jnp.isrealobj(x):
            raise TypeError(
                f"work: expected real numbers as metrics; {name!r} is complex. Name "
                "its real and its imaginary part."
            )


def _note_metrics(metrics: dict[str, jax.Array], weight: jax.Array) -> PyTree:
    """Each metric as (weight times metric, weight), or zeros where it says nothing."""

    def note(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jnp.asarray(x).astype(jnp.float32)
        says = is_present(weight) & jnp.isfinite(x)
        return jnp.where(says, weight * x, 0.0), jnp.where(says, weight, 0.0)

    return {name: note(x) for name, x in metrics.items()}


def _means(notes: PyTree) -> dict[str, jax.Array]:
    """Weighted means; NaN where nobody said anything."""
    return {
        name: jnp.where(weight > 0.0, total / weight, jnp.nan)
        for name, (total, weight) in notes.items()
    }
