"""Stages in sequence.

`zeroing`, `clipping` and `mean` in a chain are the robust mean; `clipping` and noise on
the sum are DP-FedAvg.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedagg._messages.payload import coded_parts
from fedagg._messages.reveals import reads_sum
from fedagg._rounds.order import check_order, position_of_noise, traits_of_chain
from fedagg._sentence import prints_as_its_call
from fedagg._trees import pytree
from fedagg._trees.keys import split_key
from fedagg._trees.kinds import described
from fedagg._trees.weights import is_present
from fedagg._types import Output, PyTree, Stage, Update


@prints_as_its_call
def chain(*stages: Stage) -> Stage:
    """Puts stages in sequence, as one stage.

    Left to right is a client's way to the sum, right to left the sum's way back. No
    stages at all are the identity. A stage hears only of clients that are present where
    it stands: a stage that sets a weight to zero makes the client absent for those
    after it, and its own note still counts. A stage's `init` is given a template of
    what the stages before it make of a value, a vector after a `rotation`.

    Some orders are refused, by what stages declare of themselves in their `Traits`:

    | in a chain | after it must not come |
    | --- | --- |
    | a private stage, `tree_noise` | one that does not declare that it only reads, |
    | | one that reports or learns of the sum |
    | one that codes, `quantization` | one that does not declare that it only reads |
    | a secure sum | the same |
    | `mean`, which weighs values | one that bounds them, `clipping` |

    A private stage and one that divides by the clients' own weights, `mean`, do not go
    together in any order: no noise hides the weights. Neither does one that tells of
    clients' values without noise, a `zeroing` that counts or learns, unless
    `without_guarantee` says that no guarantee is meant.

    Args:
        *stages: each an `init`, `broadcast`, `client`, `server` of its own.

    Raises:
        TypeError: if something other than a stage is given; in `client` and `server`,
            if a stage returns something else than it must.
        ValueError: for stages in an order that is refused, in `server` where a sum is
            read before its noise; there also, if two stages report a metric of the same
            name; give one of them another `name`.
    """
    check_order(stages)
    hidden = position_of_noise(stages)

    def init(template: PyTree) -> PyTree:
        states = []
        for position, stage in enumerate(stages):
            if position:
                template = _template_after(stages[position - 1], states[-1], template)
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
            update, note = _sent(stage, stage.client(s, update, k))
            notes.append(pytree.keep(present, note))
        return update, tuple(notes)

    def server(state: PyTree, total: PyTree, note: PyTree, key: jax.Array | None):
        check_length(state, len(stages))
        states, metrics = [], {}
        steps = list(zip(stages, state, note, split_key(key, len(stages)), strict=True))
        for position, (stage, s, n, k) in reversed(list(enumerate(steps))):
            if position > hidden and reads_sum(stage, s, total, n, k):
                raise ValueError(
                    f"{stage} reports or learns something of a sum before its noise: "
                    f"put it before {stages[hidden].traits.name}, where the sum has it,"
                    " or say without_guarantee(stage) that no guarantee is meant."
                )
            output = stage.server(s, total, n, k)
            if not isinstance(output, Output):
                raise TypeError(
                    f"the server of {stage}: expected an Output(state, value, metrics),"
                    f" got {type(output).__name__}."
                )
            total = output.value
            states.append(output.state)
            metrics = merge_metrics(output.metrics, metrics)
        return Output(tuple(reversed(states)), total, metrics)

    def refused(note: PyTree) -> jax.Array:
        found = [
            stage.traits.refused(n)
            for stage, n in zip(stages, note, strict=True)
            if stage.traits.refused is not None
        ]
        return jnp.any(jnp.stack([jnp.bool_(False), *found]))

    def with_metrics(note: PyTree, metrics: dict[str, Any]):
        notes = []
        for stage, n in zip(stages, note, strict=True):
            if stage.traits.with_metrics is not None:
                n, metrics = stage.traits.with_metrics(n, metrics)
            notes.append(n)
        return tuple(notes), metrics

    def template_at(position: int) -> Callable[[PyTree], PyTree]:
        def template_of(template: PyTree) -> PyTree:
            for stage in stages[:position]:
                state = jax.eval_shape(stage.init, template)
                template = _template_after(stage, state, template)
            return template

        return template_of

    mechanisms = [
        mechanism.of_changed(template_at(position)) if position else mechanism
        for position, stage in enumerate(stages)
        for mechanism in stage.traits.mechanisms
    ]
    traits = traits_of_chain(stages)._replace(mechanisms=tuple(mechanisms))
    if any(stage.traits.with_metrics is not None for stage in stages):
        traits = traits._replace(with_metrics=with_metrics)
    if any(stage.traits.refused is not None for stage in stages):
        traits = traits._replace(refused=refused)
    return Stage(init, broadcast, client, server, traits)


def _sent(stage: Stage, made: object) -> tuple[Update, PyTree]:
    """What a stage's client made, if it is what it must be."""
    is_pair = isinstance(made, tuple) and len(made) == 2
    if not is_pair or not isinstance(made[0], Update):
        raise TypeError(
            f"the client of {stage}: expected a pair (Update(value, weight), note), "
            f"got {type(made).__name__}. A stage with nothing to note returns ()."
        )
    update, note = made
    if not (stage.traits.codes or stage.traits.only_reads):
        for path, x in coded_parts(update.value):
            raise TypeError(
                f"the client of {stage} makes a {type(x).__name__} of "
                f"{path or 'the value'}, which must be decoded before it is added: "
                "declare it, Stage(..., traits=Traits(codes=True))."
            )
    return update, note


def _template_after(stage: Stage, state: PyTree, template: PyTree) -> PyTree:
    """What the stage makes of a value like the template, as shapes and dtypes."""

    def value(x: PyTree, state: PyTree, key: jax.Array) -> PyTree:
        update = Update(x, jnp.float32(1.0))
        return _sent(stage, stage.client(stage.broadcast(state), update, key))[0].value

    return jax.eval_shape(value, pytree.abstract(template), state, jax.random.key(0))


def merge_metrics(
    first: dict[str, jax.Array], second: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Both dicts as one.

    Raises:
        ValueError: if they share a name.
    """
    if shared := sorted(first.keys() & second.keys()):
        raise ValueError(
            f"the metric {shared[0]!r} is reported twice, by two stages, or by one and "
            "the work: give one of them another name."
        )
    return first | second


def check_length(state: PyTree, count: int) -> None:
    """Raises a ValueError for a state that is not a tuple of so many."""
    if not isinstance(state, (tuple, list)) or len(state) != count:
        is_tuple = isinstance(state, (tuple, list))
        found = f"a tuple of {len(state)}" if is_tuple else described(state)
        raise ValueError(
            f"state: expected what init returned, a tuple of {count}; got {found}. "
            "Give the state of this round's init, or of its last output: "
            "next(state, updates)."
        )
