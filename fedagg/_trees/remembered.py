"""A state that remembers the template which it was made for."""

from typing import Any

import jax

from fedagg._trees import pytree, saving
from fedagg._trees.template import Template
from fedagg._types import PyTree


class Remembered(tuple):
    """A tuple of states, with the template given to `init`, which takes no memory.

    A plain tuple does as well in its place, and is checked less.
    """

    template: Template

    @classmethod
    def of(cls, template: PyTree, states: tuple) -> tuple:
        """The states, with the template if it has leaves."""
        if not pytree.flatten(template)[0]:
            return states
        return cls.made(Template.of(template), states)

    @classmethod
    def made(cls, template: Template, states: Any) -> "Remembered":
        self = cls(states)
        self.template = template
        return self

    @classmethod
    def like(cls, state: PyTree, states: tuple) -> tuple:
        """The states, remembering what the other state does."""
        if isinstance(state, cls):
            return cls.made(state.template, states)
        return states

    @classmethod
    def template_of(cls, state: PyTree) -> PyTree:
        """What the state remembers, as `jax.ShapeDtypeStruct`, or None."""
        return state.template.abstract() if isinstance(state, cls) else None

    def __getitem__(self, at: Any) -> Any:
        part = super().__getitem__(at)
        return self.made(self.template, part) if isinstance(at, slice) else part


def check_value(state: PyTree, value: PyTree, name: str) -> None:
    """Checks one client's value against the template, if the state remembers it.

    Raises:
        ValueError: if a leaf is missing or added, or has another shape.
    """
    if isinstance(state, Remembered):
        advice = " For other values make another state: init(template)."
        state.template.check_leaves(value, name, advice)


def check_stacked(state: PyTree, updates: PyTree) -> None:
    """Checks updates against the template, if the state remembers it.

    Raises:
        ValueError: if updates are a state, one client's value, or a list of them.
    """
    if isinstance(updates, Remembered):
        raise ValueError(
            "updates: expected the clients' values, got a state. The state comes "
            "first: next(state, updates)."
        )
    if not isinstance(state, Remembered):
        return
    if state.template.is_of(updates):
        raise ValueError(
            "updates: expected a leading axis of clients on every leaf, [n, ...]; got "
            "one client's value, of the shapes in the template given to init. For one "
            "client: jax.tree.map(lambda x: x[None], updates)."
        )
    if isinstance(updates, (list, tuple)) and all(map(state.template.is_of, updates)):
        raise ValueError(
            "updates: expected one tree whose leaves are stacked over clients, "
            f"[n, ...]; got {len(updates)} trees like the template given to init. "
            "Stack them: jax.tree.map(lambda *x: jnp.stack(x), *updates)."
        )


def _flatten(state: Remembered) -> tuple[list, Template]:
    return [(jax.tree_util.SequenceKey(i), x) for i, x in enumerate(state)], (
        state.template
    )


def _to_state(state: Remembered) -> Any:
    import flax.serialization

    return flax.serialization.to_state_dict(tuple(state))


def _from_state(state: Remembered, saved: Any) -> tuple:
    import flax.serialization

    restored = flax.serialization.from_state_dict(tuple(state), saved)
    return Remembered.like(state, tuple(restored))


jax.tree_util.register_pytree_with_keys(Remembered, _flatten, Remembered.made)
saving.saved(Remembered, _to_state, _from_state)
