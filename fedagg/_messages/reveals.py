"""Which parts of a client's message, that no noise hides, depend on what."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal

from fedagg._messages.message import Message, added
from fedagg._messages.payload import coded_parts, inside, is_payload, parts_of
from fedagg._trees import pytree
from fedagg._types import PyTree, Stage, Update


class Revealed(NamedTuple):
    """A part that is summed without noise."""

    part: str
    by_value: bool  # it follows the client's value
    by_weight: bool  # it follows the client's weight, or whether it is there


def revealed(stage: Stage, template: PyTree) -> list[Revealed]:
    """The parts of the message that are not noised.

    What they depend on is read off the program of the client: an operation's results
    depend on all of its operands, so that what is left out depends on nothing.
    """
    client = _Client.of(stage, template)
    marks = list(zip(client.after(value=True), client.after(weight=True), strict=True))
    places = pytree.unflatten(client.structure, list(range(len(marks))))
    parts = _leaves("", places, False)
    return [
        Revealed(path.removeprefix("."), *marks[i])
        for path, i, is_noised in parts
        if not is_noised
    ]


def acted_on(stage: Stage, template: PyTree) -> list[bool]:
    """Which leaves of the message what was learnt without noise acts on.

    That of earlier rounds: a leaf without noise that follows clients' values, by way of
    the server's state and of what clients are told. As in `revealed`, results depend on
    all operands. In the order of the leaves of the value and then the note.
    """
    client = _Client.of(stage, template)
    parts = _leaves(
        "", pytree.unflatten(client.structure, client.after(value=True)), False
    )
    bare = [by_value and not is_noised for _, by_value, is_noised in parts]
    taught = [False] * len(bare)
    if not any(bare) or coded_parts(client.message):
        return taught
    total = jax.eval_shape(added, Message(*client.message, {}, ()))

    def after_round(state: PyTree, value: PyTree, note: PyTree) -> PyTree:
        return stage.server(state, value, note, jax.random.key(0)).state

    server = jax.make_jaxpr(after_round)(client.state, total.value, total.note).jaxpr
    told = jax.make_jaxpr(stage.broadcast)(client.state).jaxpr
    in_state = [False] * len(told.invars)
    while True:
        shared = _dependent(told, in_state)
        taught = client.after(shared=shared)
        known = [x or y for x, y in zip(bare, taught, strict=True)]
        after = _dependent(server, [*in_state, *known])
        if after == in_state:
            return taught
        in_state = [x or y for x, y in zip(after, in_state, strict=True)]


class _Client(NamedTuple):
    """The program of a client, and what it takes and makes, as shapes."""

    jaxpr: Jaxpr
    state: PyTree
    leaves: int  # of a value
    message: tuple[PyTree, PyTree]  # the value and the note
    structure: Any

    @classmethod
    def of(cls, stage: Stage, template: PyTree) -> "_Client":
        state = jax.eval_shape(stage.init, template)
        shared = jax.eval_shape(stage.broadcast, state)
        value = pytree.abstract(template)

        def client(value: PyTree, weight: jax.Array, shared: PyTree):
            sent, note = stage.client(shared, Update(value, weight), jax.random.key(0))
            return _Sent(sent.value, note)

        closed, message = jax.make_jaxpr(client, return_shape=True)(
            value, jax.ShapeDtypeStruct((), jnp.float32), shared
        )
        leaves = len(pytree.flatten(value)[0])
        structure = jax.tree.structure(message)
        return cls(closed.jaxpr, state, leaves, message, structure)

    def after(
        self, value: bool = False, weight: bool = False, shared: Any = None
    ) -> list[bool]:
        """Which leaves of the message depend on these."""
        rest = len(self.jaxpr.invars) - self.leaves - 1
        told = [False] * rest if shared is None else shared
        return _dependent(self.jaxpr, [*[value] * self.leaves, weight, *told])


class _Sent(NamedTuple):
    value: PyTree
    note: PyTree


def _leaves(path: str, x: PyTree, is_noised: bool) -> list[tuple[str, Any, bool]]:
    """The leaves with their paths, and whether each is inside of a mark of noise."""
    seen = []
    for name, part in parts_of(x):
        if is_payload(part):
            noised = is_noised or part.is_noised
            for inner, y in inside(part):
                seen += _leaves(path + name + inner, y, noised)
        else:
            seen.append((path + name, part, is_noised))
    return seen


def _dependent(jaxpr: Jaxpr, marks: list[bool]) -> list[bool]:
    """Which results depend on marked arguments."""
    marked = {x for x, is_marked in zip(jaxpr.invars, marks, strict=True) if is_marked}
    for eqn in jaxpr.eqns:
        if any(not isinstance(x, Literal) and x in marked for x in eqn.invars):
            marked.update(eqn.outvars)
    return [not isinstance(x, Literal) and x in marked for x in jaxpr.outvars]
