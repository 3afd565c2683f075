"""A function of one client as steps, between which its leaves may stay lazy."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

Number = int  # of an array: an argument, or what a step computes


class LazyLeaf(NamedTuple):
    """A leaf times all factors, in this order; zero unless all masks hold."""

    leaf: int  # its position
    factors: tuple[Number, ...] = ()  # each []
    masks: tuple[Number, ...] = ()  # each [] bool

    @property
    def scaling(self) -> tuple[tuple[Number, ...], tuple[Number, ...]]:
        """Equal for leaves that are kept and scaled by the same."""
        return self.factors, self.masks


class Broadcast(NamedTuple):
    """A scalar as an array of some shape."""

    scalar: Number


class Entrywise(NamedTuple):
    """The absolute values or the squares of entries, on the way to a reduction."""

    leaf: LazyLeaf
    fn: Callable[[jax.Array], jax.Array]


Value = Number | LazyLeaf | Broadcast | Entrywise


class Step(NamedTuple):
    """A function of arrays that returns arrays."""

    run: Callable[..., Sequence[jax.Array]]
    inputs: tuple[Number, ...]
    outputs: tuple[Number, ...]
    has_effects: bool


class Plan(NamedTuple):
    """Steps in order. Arguments are numbered first, and leaves are the last of them."""

    steps: list[Step]
    outputs: list[LazyLeaf | Number]
    # Leaves that are measured together, as they came: the numbers of their measures.
    measured: dict[tuple[int, ...], tuple[Number, ...]]

    def run(
        self,
        arguments: Sequence[jax.Array],
        given: Mapping[Number, jax.Array] | None = None,
    ) -> dict[Number, jax.Array]:
        """All arrays by number. A step whose outputs are `given` is left out."""
        given = {} if given is None else given
        arrays = dict(enumerate(arguments)) | dict(given)
        for step in self.steps:
            if not step.outputs or step.outputs[0] not in given:
                results = step.run(*(arrays[i] for i in step.inputs))
                arrays.update(zip(step.outputs, results, strict=True))
        return arrays

    def without_unused(self) -> "Plan":
        """The same without steps on which neither outputs nor the host depend."""
        used: set[Number] = set()
        for x in self.outputs:
            used.update(x.factors + x.masks if isinstance(x, LazyLeaf) else (x,))
        steps = []
        for step in reversed(self.steps):
            if step.has_effects or not used.isdisjoint(step.outputs):
                steps.append(step)
                used.update(step.inputs)
        measured = {
            leaves: numbers
            for leaves, numbers in self.measured.items()
            if not used.isdisjoint(numbers)
        }
        return Plan(steps[::-1], self.outputs, measured)


def combine(
    factors: Sequence[jax.Array], masks: Sequence[jax.Array]
) -> tuple[list[jax.Array], jax.Array]:
    """The factors, one each where not kept, and whether all masks hold.

    A factor of what is not kept may be NaN, and so would be its derivative.
    """
    if not masks:
        return list(factors), jnp.bool_(True)
    is_kept = functools.reduce(jnp.logical_and, masks)
    return [jnp.where(is_kept, x, 1.0) for x in factors], is_kept


def entries(
    leaf: jax.Array, factors: Sequence[jax.Array], is_kept: jax.Array | None
) -> jax.Array:
    """A lazy leaf's entries, in float32."""
    leaf = leaf.astype(jnp.float32)
    if is_kept is not None:
        leaf = jnp.where(is_kept, leaf, 0.0)
    return functools.reduce(jnp.multiply, factors, leaf)
