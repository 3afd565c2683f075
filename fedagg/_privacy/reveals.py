"""Which parts of a client's message, that no noise hides, depend on what."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal

from fedagg._messages.payload import inside, is_payload, parts_of
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
    state = jax.eval_shape(stage.init, template)
    shared = jax.eval_shape(stage.broadcast, state)
    value = pytree.abstract(template)

    def client(value: PyTree, weight: jax.Array, shared: PyTree):
        sent, note = stage.client(shared, Update(value, weight), jax.random.key(0))
        return {"value": sent.value, "note": note}

    closed, shapes = jax.make_jaxpr(client, return_shape=True)(
        value, jax.ShapeDtypeStruct((), jnp.float32), shared
    )
    of_value = len(pytree.flatten(value)[0])
    rest = len(closed.jaxpr.invars) - of_value - 1
    facts = [
        _dependent(closed.jaxpr, marks)
        for marks in (
            [True] * of_value + [False] * (1 + rest),
            [False] * of_value + [True] + [False] * rest,
        )
    ]
    marks = [
        2 * by_value + by_weight for by_value, by_weight in zip(*facts, strict=True)
    ]
    return _bare("", pytree.unflatten(jax.tree.structure(shapes), marks), False)


def _bare(path: str, x: PyTree, is_noised: bool) -> list[Revealed]:
    """The leaves that are not inside of a mark of noise."""
    seen = []
    for name, part in parts_of(x):
        if is_payload(part):
            noised = is_noised or part.is_noised
            for inner, y in inside(part):
                seen += _bare(path + name + inner, y, noised)
        elif not is_noised:
            seen.append(Revealed(path + name, part >= 2, part % 2 == 1))
    return seen


def _dependent(jaxpr: Jaxpr, marks: list[bool]) -> list[bool]:
    """Which results depend on marked arguments."""
    marked = {x for x, is_marked in zip(jaxpr.invars, marks, strict=True) if is_marked}
    for eqn in jaxpr.eqns:
        if any(not isinstance(x, Literal) and x in marked for x in eqn.invars):
            marked.update(eqn.outvars)
    return [not isinstance(x, Literal) and x in marked for x in jaxpr.outvars]
