"""Stages in sequence."""

import jax
import jax.numpy as jnp

from fedagg._trees import pytree
from fedagg._trees.keys import split_key
from fedagg._trees.weights import is_present
from fedagg._types import Output, PyTree, Stage, Update


def chain(*stages: Stage) -> Stage:
    """Puts stages in sequence, as one stage.

    Left to right is a client's way to the sum, right to left the sum's way back. No
    stages at all are the identity. A stage hears only of clients that are present where
    it stands: a stage that sets a weight to zero makes the client absent for those
    behind it, and its own note still counts. A stage's `init` is given a template of
    what the stages before it make of a value, a vector behind a `rotation`.

    Args:
        *stages: each an `init`, `broadcast`, `client`, `server` of its own.

    Raises:
        TypeError: if something other than a stage is given.
        ValueError: in `server`, if two stages report a metric of the same name; give
            one of them another `name`. If one is `mean` and one adds noise for privacy.
    """
    for position, stage in enumerate(stages):
        if not isinstance(stage, Stage):
            raise TypeError(
                f"stages: expected a Stage at position {position}, got {stage!r}."
            )

    def init(template: PyTree) -> PyTree:
        states = []
        for position, stage in enumerate(stages):
            if position:
                template = _template_behind(stages[position - 1], states[-1], template)
            states.append(stage.init(template))
        return tuple(states)

    def broadcast(state: PyTree) -> PyTree:
        check_length(state, len(stages))
        return tuple(stage.broadcast(s) for stage, s in zip(stages, state, strict=True))

    def client(shared: PyTree, update: Update, key: jax.Array | None):
        notes = []
        keys = split_key(key, len(stages))
        for stage, s, k in zip(stages, shared, keys, strict=True):
            present = is_present(update.weight)
            update, note = stage.client(s, update, k)
            notes.append(pytree.keep(present, note))
        return update, tuple(notes)

    def server(state: PyTree, total: PyTree, note: PyTree, key: jax.Array | None):
        check_length(state, len(stages))
        states, metrics = [], {}
        steps = list(zip(stages, state, note, split_key(key, len(stages)), strict=True))
        for stage, s, n, k in reversed(steps):
            output = stage.server(s, total, n, k)
            total = output.value
            states.append(output.state)
            metrics = merge_metrics(output.metrics, metrics)
        if "mean/weight" in metrics and is_private(metrics):
            raise ValueError(
                "mean() divides by the clients' own weights, which no noise hides. "
                "Leave it out: a private stage divides by its clients_per_round."
            )
        return Output(tuple(reversed(states)), total, metrics)

    return Stage(init, broadcast, client, server)


def _template_behind(stage: Stage, state: PyTree, template: PyTree) -> PyTree:
    """What the stage makes of a value like the template, as shapes and dtypes."""

    def value(x: PyTree, key: jax.Array) -> PyTree:
        update = Update(x, jnp.float32(1.0))
        return stage.client(stage.broadcast(state), update, key)[0].value

    return jax.eval_shape(value, pytree.abstract(template), jax.random.key(0))


def merge_metrics(
    first: dict[str, jax.Array], second: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Both dicts as one.

    Raises:
        ValueError: if they share a name.
    """
    if shared := sorted(first.keys() & second.keys()):
        raise ValueError(
            f"the metric {shared[0]!r} is reported twice; give one of the stages that "
            "report it another name."
        )
    return first | second


def is_private(metrics: dict[str, jax.Array]) -> bool:
    """Whether one of the stages that report these noised a sum for privacy."""
    return any(name.endswith("/noised_norm") for name in metrics)


def check_length(state: PyTree, count: int) -> None:
    """Raises a ValueError for a state that is not a tuple of so many."""
    if not isinstance(state, (tuple, list)) or len(state) != count:
        found = len(state) if isinstance(state, (tuple, list)) else type(state).__name__
        raise ValueError(
            f"state: expected what init returned, a tuple of {count}; got {found}."
        )
