"""Different stages for different parts of a value, by the paths of its leaves.

`clipping` for each layer by itself, and FedAvg's mean; noise for the embeddings and
other noise for the rest, with one guarantee for both.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from fedagg._messages.message import count_bits
from fedagg._messages.payload import is_coded
from fedagg._payload import Payload
from fedagg._rounds.chain import chain, merge_metrics
from fedagg._rounds.order import traits_of_chain
from fedagg._rounds.parts import groups_of_leaves, parts_by_group, together
from fedagg._sentence import prints_as_its_call
from fedagg._trees import pytree
from fedagg._trees.keys import split_key
from fedagg._trees.template import Template
from fedagg._trees.weights import is_present
from fedagg._types import Output, PyTree, Stage, Traits, Update


class GroupsState(NamedTuple):
    """What a round needs of the ones before."""

    template: Template  # of the whole value
    groups: tuple[PyTree, ...]  # of the groups that are sent, in their order


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SentByGroup(Payload):
    """A payload that does not count where its group set the client aside."""

    value: Payload
    present: jax.Array  # [] bool

    marks: ClassVar[str] = "value"

    def decode(self) -> PyTree:
        return pytree.keep(self.present, pytree.widen(self.value.decode()))

    def bits(self) -> int:
        return count_bits((self.value, self.present))


@prints_as_its_call
def grouped(groups: Mapping[str, Stage | None], labels: Any = None) -> Stage:
    """Sends parts of a value through stages of their own.

    `grouped({"embedding/*": rare, "*/bias": None, "*": usual})`: names are patterns of
    paths, in which `*` is for any characters, slashes too, `?` for one and `[ab]` for
    one of these. The path of a leaf is its keys with slashes between,
    `encoder/layer/bias`. The first pattern that matches takes the leaf. A leaf without
    a pattern is an error, and so is a pattern without a leaf.

    Each group's stage sees a value with its own leaves, and None for the others. It
    bounds, noises and sums its part as if there were no other:

    | of a group | |
    | --- | --- |
    | `mean` in it, `gaussian_noise` | divides this part; else it is a sum |
    | a client that it sets aside | is absent in it, and stays in the others; before a |
    | | rule its part is zeros, which count |
    | its key | is its own, so that noise is independent |
    | its metrics | come as `{group}/{metric}` |
    | None in place of a stage | is left out: not sent, zero in every sum and mean |

    After `grouped` in a chain a value is a dict of the groups' messages, and a client
    has the weight that it came with, or none if every group set it aside. Stages before
    and after see all of the value: clips in groups and one `mean` after them, or a mean
    in each.

    One private group makes the others tell of clients, unless each has noise or is left
    out; `without_guarantee` says that it is meant. `guarantee` composes the noise of
    all groups, as a client is in every one: with `z * sqrt(k)` as multiplier of each of
    `k` groups all of them together are as private as one `z`.

    Args:
        groups: for each name a stage, or None.
        labels: None where names are patterns. Else a tree of names like the value, or
            with one for many leaves; or a function that makes it of a value, whose
            entries it cannot ask for.

    Raises:
        ValueError: if there is no stage, or one without noise beside a private one; in
            `init` and `client`, for a leaf without a group, and a group without a leaf.
        TypeError: if a name or a stage is of another type.

    Reference: McMahan et al., "Learning Differentially Private Recurrent Language
        Models", 2018, section 2, "per-layer clipping".
    """
    sent = _checked(groups)
    names = list(sent)

    def parts_of(value: PyTree) -> dict[str, PyTree]:
        return parts_by_group(value, groups_of_leaves(value, groups, labels), names)

    def init(template: PyTree) -> GroupsState:
        parts = parts_of(template)
        states = tuple(stage.init(parts[name]) for name, stage in sent.items())
        return GroupsState(Template.of(template), states)

    def broadcast(state: GroupsState) -> tuple[PyTree, ...]:
        steps = zip(sent.values(), state.groups, strict=True)
        return tuple(stage.broadcast(x) for stage, x in steps)

    def client(shared: tuple[PyTree, ...], update: Update, key: jax.Array | None):
        parts, values, notes, weights = parts_of(update.value), {}, {}, []
        keys = split_key(key, len(sent))
        for (name, stage), told, k in zip(sent.items(), shared, keys, strict=True):
            made, note = stage.client(told, update._replace(value=parts[name]), k)
            values[name], notes[name] = _sent(made, update.weight), note
            weights.append(made.weight)
        return Update(values, _left(update.weight, weights)), notes

    def server(state: GroupsState, total: PyTree, note: PyTree, key: Any) -> Output:
        template = state.template.abstract()
        leaves = groups_of_leaves(template, groups, labels)
        parts = parts_by_group(template, leaves, names)
        values, states, metrics = {}, [], {}
        keys = split_key(key, len(sent))
        steps = zip(sent.items(), state.groups, keys, strict=True)
        for (name, stage), of_group, k in steps:
            output = stage.server(of_group, total[name], note[name], k)
            if not pytree.is_alike(output.value, parts[name]):
                raise ValueError(
                    f"groups: {stage} of {name!r} returns another structure of its sum "
                    "than that of its part of the template."
                )
            values[name] = output.value
            states.append(output.state)
            named = {f"{name}/{x}": y for x, y in output.metrics.items()}
            metrics = merge_metrics(metrics, named)
        value = together(template, leaves, values)
        return Output(state._replace(groups=tuple(states)), value, metrics)

    return Stage(init, broadcast, client, server, _traits(sent, parts_of))


def _checked(groups: Mapping[str, Stage | None]) -> dict[str, Stage]:
    """The groups that are sent."""
    sent = {}
    for name, stage in groups.items():
        if not isinstance(name, str):
            raise TypeError(f"groups: expected strings as names, got {name!r}.")
        if not (stage is None or isinstance(stage, Stage)):
            raise TypeError(
                f"groups: expected a Stage or None, {name!r} has {stage!r}."
            )
        if stage is not None:
            sent[name] = chain(stage)
    if not sent:
        raise ValueError(f"groups: expected a stage for one of them, got {groups!r}.")
    private = [name for name, x in sent.items() if x.traits.is_private]
    bare = [name for name, x in sent.items() if not x.traits.is_private]
    is_meant = any(x.traits.without_guarantee for x in sent.values())
    if private and bare and not is_meant:
        raise ValueError(
            f"groups: {bare[0]!r} has no noise, and beside {private[0]!r} it tells of "
            "clients: no epsilon is finite. Give it noise, leave it out, "
            "None, or say without_guarantee(stage) that none is meant."
        )
    return sent


def _sent(made: Update, weight: jax.Array) -> PyTree:
    """What a group sends, which does not count if it set the client aside."""
    if made.weight is weight:
        return made.value
    present = is_present(made.weight)

    def kept(x: PyTree) -> PyTree:
        return SentByGroup(x, present) if is_coded(x) else pytree.keep(present, x)

    return jax.tree.map(kept, made.value, is_leaf=is_coded)


def _left(weight: jax.Array, after: list[jax.Array]) -> jax.Array:
    """A client's weight after all groups: as before, or zero if it is in none."""
    if any(x is weight for x in after):
        return weight
    return jnp.where(jnp.any(is_present(jnp.stack(after))), weight, 0.0)


def _traits(
    sent: dict[str, Stage], parts_of: Callable[[PyTree], dict[str, PyTree]]
) -> Traits:
    """Those of all groups together, which are side by side in a round."""
    asked = {x: y.traits.refused for x, y in sent.items() if y.traits.refused}
    taking = {
        x: y.traits.with_metrics for x, y in sent.items() if y.traits.with_metrics
    }

    def refused(note: PyTree) -> jax.Array:
        return jnp.any(jnp.stack([fn(note[name]) for name, fn in asked.items()]))

    def with_metrics(note: PyTree, metrics: dict[str, Any]):
        for name, take in taking.items():
            of_group, metrics = take(note[name], metrics)
            note = note | {name: of_group}
        return note, metrics

    return traits_of_chain(list(sent.values()))._replace(
        name=f"grouped({', '.join(map(repr, sent))})",
        counts=tuple(
            f"{name}/{x}" for name, stage in sent.items() for x in stage.traits.counts
        ),
        weight="",  # each group divides by its own
        mechanisms=tuple(
            x.of_changed(lambda template, name=name: parts_of(template)[name])
            for name, stage in sent.items()
            for x in stage.traits.mechanisms
        ),
        refused=refused if asked else None,
        with_metrics=with_metrics if taking else None,
    )
