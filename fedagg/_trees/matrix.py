"""Stacked clients as a few matrices `[n, k]`; small leaves share one."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedagg._trees import pytree
from fedagg._trees.cutting import narrow
from fedagg._trees.reductions import by_dtype, pack
from fedagg._types import PyTree


class Layout(NamedTuple):
    """Which leaves are in which matrix."""

    structure: Any
    shapes: list[tuple[int, ...]]  # of one client
    groups: list[list[int]]

    @classmethod
    def of(cls, stacked: PyTree) -> "Layout":
        leaves, structure = pytree.flatten(stacked)
        shapes, groups = [x.shape[1:] for x in leaves], []
        for places in by_dtype(leaves):
            sizes = [math.prod(shapes[i]) for i in places]
            together = pack(sizes, narrow(len(leaves[0])))
            groups += [[places[j] for j in group] for group in together]
        return cls(structure, shapes, groups)

    @classmethod
    def by_dtype(cls, stacked: PyTree) -> "Layout":
        """One matrix of a dtype, which is a copy where there are several leaves."""
        leaves, structure = pytree.flatten(stacked)
        return cls(structure, [x.shape[1:] for x in leaves], by_dtype(leaves))

    def matrices(self, stacked: PyTree) -> list[jax.Array]:
        """`[n, k]` each, in the dtypes of the leaves."""
        return self._joined([x.reshape(len(x), -1) for x in pytree.flatten(stacked)[0]])

    def vectors(self, tree: PyTree) -> list[jax.Array]:
        """`[k]` each, of one such tree."""
        return self._joined([jnp.ravel(x) for x in pytree.flatten(tree)[0]])

    def _joined(self, leaves: list[jax.Array]) -> list[jax.Array]:
        return [
            leaves[group[0]]
            if len(group) == 1
            else jnp.concatenate([leaves[i] for i in group], axis=-1)
            for group in self.groups
        ]

    def tree(self, matrices: list[jax.Array]) -> PyTree:
        """The inverse, of matrices `[n, k]` or of vectors `[k]`."""
        leaves: list[Any] = [None] * len(self.shapes)
        for group, matrix in zip(self.groups, matrices, strict=True):
            start = 0
            for i in group:
                size = math.prod(self.shapes[i])
                part = matrix[..., start : start + size]
                leaves[i] = part.reshape(*matrix.shape[:-1], *self.shapes[i])
                start += size
        return pytree.unflatten(self.structure, leaves)


def norms_of(squares: jax.Array, given: jax.Array) -> jax.Array:
    """Norms `[n]`; of who is not given infinite. That of zeros has a derivative too."""
    positive = given & (squares > 0.0)
    norms = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)
    return jnp.where(given, norms, jnp.inf)
