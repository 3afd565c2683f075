"""Stacked clients as a few matrices `[n, k]`, worked on in blocks.

Small leaves share a matrix. A block is widened when it is read, so that leaves of half
precision are never copied as a whole.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedagg._trees import pytree
from fedagg._trees.reductions import pack
from fedagg._types import PyTree

# Entries of a block, all clients together: on a CPU what stays in cache, elsewhere work
# enough for a launch.
_ENTRIES = {"cpu": 2**17}
_ENTRIES_ELSEWHERE = 2**26
_UNROLLED = 4


class Layout(NamedTuple):
    """Which leaves are in which matrix."""

    structure: Any
    shapes: list[tuple[int, ...]]  # of one client
    groups: list[list[int]]

    @classmethod
    def of(cls, stacked: PyTree) -> "Layout":
        leaves, structure = pytree.flatten(stacked)
        shapes, groups = [x.shape[1:] for x in leaves], []
        for dtype in dict.fromkeys(x.dtype for x in leaves):
            places = [i for i, x in enumerate(leaves) if x.dtype == dtype]
            sizes = [math.prod(shapes[i]) for i in places]
            groups += [
                [places[j] for j in group] for group in pack(sizes, len(leaves[0]))
            ]
        return cls(structure, shapes, groups)

    @classmethod
    def by_dtype(cls, stacked: PyTree) -> "Layout":
        """One matrix of a dtype, which is a copy where there are several leaves."""
        leaves, structure = pytree.flatten(stacked)
        groups = [
            [i for i, x in enumerate(leaves) if x.dtype == dtype]
            for dtype in dict.fromkeys(x.dtype for x in leaves)
        ]
        return cls(structure, [x.shape[1:] for x in leaves], groups)

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


def sum_over_blocks(
    fn: Callable[..., jax.Array], *matrices: list[jax.Array]
) -> jax.Array:
    """The sum of `fn` over blocks of columns; of several lists, over blocks alike."""
    return added([_sum(fn, columns) for columns in zip(*matrices, strict=True)])


def added(parts: list[jax.Array]) -> jax.Array:
    """The sum of arrays alike, in the widest of their dtypes."""
    total = parts[0]
    for part in parts[1:]:
        dtype = max(total.dtype, part.dtype, key=lambda dtype: dtype.itemsize)
        total = total.astype(dtype) + part.astype(dtype)
    return total


def _sum(fn: Callable[..., jax.Array], columns: tuple[jax.Array, ...]) -> jax.Array:
    size, count, rest = _cut(columns[0])
    # What is left comes first, so that the loop begins from it.
    total = fn(*(_block(x, count * size, rest) for x in columns))

    def body(i: jax.Array, total: jax.Array):
        return total + fn(*(_block(x, i * size, size) for x in columns))

    return jax.lax.fori_loop(0, count, body, total) if count else total


def sum_along_rows(
    fn: Callable[..., jax.Array], *matrices: list[jax.Array]
) -> jax.Array:
    """The sum along rows `[n]` of what `fn` makes of the entries of blocks alike.

    On a CPU, blocks are added entry by entry, and only their sum is summed along rows:
    all cores add, and write nothing but what stays in cache.
    """
    if jax.default_backend() != "cpu":
        return sum_over_blocks(lambda *blocks: jnp.sum(fn(*blocks), axis=1), *matrices)
    return added([_sum_along(fn, columns) for columns in zip(*matrices, strict=True)])


def _sum_along(
    fn: Callable[..., jax.Array], columns: tuple[jax.Array, ...]
) -> jax.Array:
    size, count, rest = _cut(columns[0])

    def of_block(start: Any, size: int) -> jax.Array:
        return fn(*(_block(x, start, size) for x in columns))

    def body(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + of_block(i * size, size)

    total = jnp.sum(of_block(count * size, rest), axis=1)
    if not count:
        return total
    # Some blocks a turn, so that the running total is read once for all of them.
    blocks = jax.lax.fori_loop(1, count, body, of_block(0, size), unroll=_UNROLLED)
    return total + jnp.sum(blocks, axis=1)


def norms_of(squares: jax.Array, given: jax.Array) -> jax.Array:
    """Norms `[n]`; of who is not given infinite. That of zeros has a derivative too."""
    positive = given & (squares > 0.0)
    norms = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)
    return jnp.where(given, norms, jnp.inf)


def over_blocks(
    fn: Callable[..., jax.Array],
    *matrices: list[jax.Array],
    entries: int | None = None,
) -> list[jax.Array]:
    """`fn` of every block of columns, side by side: of `[n, k]`, `[..., k]`.

    A block has up to so many entries, or as many as suit the device.
    """
    alike = zip(*matrices, strict=True)
    return [_over_blocks(fn, columns, entries) for columns in alike]


def _over_blocks(
    fn: Callable[..., jax.Array], columns: tuple[jax.Array, ...], entries: int | None
) -> jax.Array:
    size, count, rest = _cut(columns[0], entries)
    if not count:
        return fn(*map(pytree.wide, columns))
    width = columns[0].shape[-1]
    part = jax.eval_shape(fn, *(_block(x, 0, size) for x in columns))
    axis = len(part.shape) - 1

    def body(i: jax.Array, out: jax.Array):
        # The last block starts early, so that all blocks are one program.
        start = jnp.minimum(i * size, width - size)
        part = fn(*(_block(x, start, size) for x in columns))
        return jax.lax.dynamic_update_slice_in_dim(out, part, start, axis)

    out = jnp.zeros((*part.shape[:-1], width), part.dtype)
    return jax.lax.fori_loop(0, count + (rest > 0), body, out)


def _cut(matrix: jax.Array, entries: int | None = None) -> tuple[int, int, int]:
    """The columns of a block, how many blocks there are, and what is left."""
    most = entries or _ENTRIES.get(jax.default_backend(), _ENTRIES_ELSEWHERE)
    size = max(most // len(matrix), 1)
    if entries and size >= 32:
        # An odd number of lines of a cache, in which rows of 2**n bytes share places.
        size = size // 32 * 32 - 16
    return size, *divmod(matrix.shape[1], size)


def _block(x: jax.Array, start: Any, size: int) -> jax.Array:
    return pytree.wide(jax.lax.dynamic_slice_in_dim(x, start, size, axis=-1))
