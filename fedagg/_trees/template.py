"""The structure of a client's value, for what takes all its entries as one vector."""

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._trees import checks, pytree, saving
from fedagg._trees.reductions import cut
from fedagg._types import PyTree


@jax.tree_util.register_static
@dataclass(frozen=True)
class Template:
    """The structure and shapes of the value that `init` was given.

    In a state it is a pytree node without leaves: it takes no memory, is the same from
    round to round, and a checkpoint leaves it out.
    """

    structure: Any  # a PyTreeDef
    shapes: tuple[tuple[int, ...], ...]  # of the leaves, in order
    dtypes: tuple[str, ...]  # likewise

    def __post_init__(self) -> None:
        saving.tell_flax()

    @classmethod
    def of(cls, tree: PyTree) -> "Template":
        """The template of a tree of arrays or of `jax.ShapeDtypeStruct`."""
        leaves, structure = pytree.flatten(tree)
        dtypes = [jax.dtypes.canonicalize_dtype(jnp.result_type(x)) for x in leaves]
        shapes = [tuple(jnp.shape(x)) for x in leaves]
        return cls(structure, tuple(shapes), tuple(map(str, dtypes)))

    def is_of(self, value: PyTree) -> bool:
        """Whether a value has the template's leaves, by path and shape."""
        return _described(value) == _described(self.abstract())

    def abstract(self) -> PyTree:
        """The tree that it is the template of, as `jax.ShapeDtypeStruct`."""
        leaves = zip(self.shapes, self.dtypes, strict=True)
        return pytree.unflatten(
            self.structure, [jax.ShapeDtypeStruct(x, jnp.dtype(d)) for x, d in leaves]
        )

    @property
    def size(self) -> int:
        """The number of entries of all leaves together."""
        return sum(map(math.prod, self.shapes))

    def ravel(self, value: PyTree, name: str = "updates") -> jax.Array:
        """All entries as a float32 vector `[size]`, leaf after leaf.

        Raises:
            ValueError: if structure or shapes are not those of the template.
            TypeError: for a leaf that is not of a float dtype.
        """
        self.check(value, name)
        checks.check_floating(value, name)
        leaves, _ = pytree.flatten(value)
        vectors = [jnp.asarray(x).astype(jnp.float32).reshape(-1) for x in leaves]
        if len(vectors) == 1:
            return vectors[0]
        return jnp.concatenate([*vectors, jnp.zeros((0,), jnp.float32)])

    def unravel(self, vector: jax.Array) -> PyTree:
        """The tree whose `ravel` is this vector, with leaves of the vector's dtype."""
        parts = cut(vector, [math.prod(shape) for shape in self.shapes])
        leaves = [x.reshape(shape) for x, shape in zip(parts, self.shapes, strict=True)]
        return pytree.unflatten(self.structure, leaves)

    def check_leaves(
        self, value: PyTree, name: str = "updates", advice: str = ""
    ) -> None:
        """Raises a ValueError that names the first path at which leaves differ."""
        expected = _described(self.abstract())
        for ours, theirs in itertools.zip_longest(expected, _described(value)):
            if ours != theirs:
                raise ValueError(
                    f"{name}: expected {ours or 'no further leaf'}, as in the template "
                    f"given to init; got {theirs or 'no further leaf'}.{advice}"
                )

    def check(self, value: PyTree, name: str = "updates") -> None:
        """Raises a ValueError that names the first path at which the value differs."""
        self.check_leaves(value, name)
        _, structure = pytree.flatten(value)
        if structure != self.structure:
            raise ValueError(
                f"{name}: expected {self.structure}, as in the template given to init; "
                f"got {structure}."
            )


class PublicRound(NamedTuple):
    """State of stages whose clients and server draw alike, anew in each round."""

    template: Template
    round: jax.Array  # [] uint32, how many rounds anyone took part in

    @classmethod
    def first(cls, template: PyTree) -> "PublicRound":
        return cls(Template.of(template), jnp.uint32(0))

    def key(self, seed: int) -> jax.Array:
        """What this round's draws are made from."""
        return jax.random.fold_in(jax.random.key(seed), self.round)

    def after(self, present: jax.Array) -> "PublicRound":
        """The state of the next round, this one again if nobody was present."""
        return self._replace(round=self.round + (present > 0.0).astype(jnp.uint32))


# Flax saves what it does not know as it is, and can save arrays only.
saving.saved(Template, lambda template: {}, lambda template, saved: template)


def _described(tree: PyTree) -> list[str]:
    """A line for each leaf."""
    leaves = pytree.leaves_with_names(tree)
    return [f"{path} of shape {list(np.shape(x))}" for path, x in leaves]
