"""Which parts of a client's message, that no noise hides, depend on what."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var, primitives

from fedagg._messages.message import Message, added
from fedagg._messages.payload import coded_parts, inside, is_payload, parts_of
from fedagg._trees import pytree
from fedagg._types import PyTree, Stage, Update


class Revealed(NamedTuple):
    """A part that is summed without noise."""

    part: str
    by_value: bool  # it follows the client's value
    by_size: bool  # it follows the client's weight, if it is there
    by_weight: bool  # it follows the client's weight, or whether it is there


def revealed(stage: Stage, template: PyTree) -> list[Revealed]:
    """The parts of the message that are not noised.

    What they depend on is read off the program of the client: an operation's results
    depend on all of its operands, so that what is left out depends on nothing.
    """
    client = _Client.of(stage, template)
    marks = list(
        zip(
            client.after(value=True),
            client.after(weight=True, but_who_is_there=True),
            client.after(weight=True),
            strict=True,
        )
    )
    places = pytree.unflatten(client.structure, list(range(len(marks))))
    parts = _leaves("", places, False)
    return [
        Revealed(path.removeprefix("."), *marks[i])
        for path, i, is_noised in parts
        if not is_noised
    ]


def reads_sum(
    stage: Stage, state: PyTree, total: PyTree, note: PyTree, key: Any
) -> bool:
    """Whether what a stage reports or learns follows the sum that comes to it."""

    def kept(total: PyTree, state: PyTree, note: PyTree) -> PyTree:
        output = stage.server(state, total, note, key)
        return output.state, output.metrics

    jaxpr = jax.make_jaxpr(kept)(total, state, note).jaxpr
    leaves = len(pytree.flatten(total)[0])
    rest = len(jaxpr.invars) - leaves
    return any(_dependent(jaxpr, [*[True] * leaves, *[False] * rest]))


def check_server(stage: Stage, template: PyTree) -> None:
    """Runs the server on shapes, for the errors that it raises."""
    client = _Client.of(stage, template)
    if not coded_parts(client.message):
        client.after_round(stage)


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
    server = client.after_round(stage)
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
        self,
        value: bool = False,
        weight: bool = False,
        shared: Any = None,
        but_who_is_there: bool = False,
    ) -> list[bool]:
        """Which leaves of the message depend on these.

        On the weight, if asked, other than by whether the client is there.
        """
        rest = len(self.jaxpr.invars) - self.leaves - 1
        told = [False] * rest if shared is None else shared
        marks = [*[value] * self.leaves, weight, *told]
        of_weight = self.jaxpr.invars[self.leaves]
        return _dependent(self.jaxpr, marks, of_weight if but_who_is_there else None)

    def after_round(self, stage: Stage) -> Jaxpr:
        """The program from a state and sums to the next state."""
        total = jax.eval_shape(added, Message(*self.message, {}, ()))

        def state_of(state: PyTree, value: PyTree, note: PyTree) -> PyTree:
            return stage.server(state, value, note, jax.random.key(0)).state

        return jax.make_jaxpr(state_of)(self.state, total.value, total.note).jaxpr


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


def _dependent(
    jaxpr: Jaxpr, marks: list[bool], weight: Var | None = None
) -> list[bool]:
    """Which results depend on marked arguments, other than by `is_present(weight)`."""
    return _followed(jaxpr, marks, [x is weight for x in jaxpr.invars])[0]


def _followed(
    jaxpr: Jaxpr, marks: list[bool], weights: list[bool]
) -> tuple[list[bool], list[bool]]:
    """Which results depend on marked arguments, and which are the weight or zero."""
    marked = {x for x, is_marked in zip(jaxpr.invars, marks, strict=True) if is_marked}
    alike = {x for x, is_weight in zip(jaxpr.invars, weights, strict=True) if is_weight}

    def of(operands: list[Any]) -> tuple[list[bool], list[bool]]:
        is_literal = [isinstance(x, Literal) for x in operands]
        pairs = list(zip(operands, is_literal, strict=True))
        return (
            [not literal and x in marked for x, literal in pairs],
            [_is_zero(x) if literal else x in alike for x, literal in pairs],
        )

    for eqn in jaxpr.eqns:
        reads, are_weights = of(eqn.invars)
        if eqn.primitive is primitives.jit_p:
            found = _followed(eqn.params["jaxpr"].jaxpr, reads, are_weights)
        else:
            found = _of_one(eqn, any(reads), are_weights)
        for known, news in zip((marked, alike), found, strict=True):
            known.update(x for x, new in zip(eqn.outvars, news, strict=True) if new)
    return of(jaxpr.outvars)


def _of_one(
    eqn: JaxprEqn, reads: bool, are_weights: list[bool]
) -> tuple[list[bool], list[bool]]:
    """The same of one operation. `weight > 0.0` asks who is there, and no more."""
    count = len(eqn.outvars)
    if eqn.primitive is primitives.gt_p and all(are_weights):
        return [False], [False]
    chosen = eqn.primitive is primitives.select_n_p and all(are_weights[1:])
    cast = eqn.primitive is primitives.convert_element_type_p and all(are_weights)
    return [reads] * count, [chosen or cast] * count


def _is_zero(x: Literal) -> bool:
    return not np.shape(x.val) and bool(x.val == 0)
