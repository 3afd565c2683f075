"""Arithmetic on pytrees: the one module with a loop over leaves."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from fedagg._trees.measures import measure, norm_error
from fedagg._types import PyTree


def leaves_with_names(tree: PyTree) -> list[tuple[str, Any]]:
    """The leaves of a tree, each with its path as a reader would write it."""
    leaves = jax.tree.leaves_with_path(tree)
    return [(jax.tree_util.keystr(path) or "the only leaf", x) for path, x in leaves]


def paths(tree: PyTree) -> list[str]:
    """The path of each leaf, its keys with slashes between, as `encoder/layer/bias`."""
    leaves = jax.tree.leaves_with_path(tree)
    return [jax.tree_util.keystr(x, simple=True, separator="/") for x, _ in leaves]


def leaf_by_leaf(prefix: PyTree, tree: PyTree) -> list[Any]:
    """For each leaf of the tree that of the prefix, which is one for it or for more.

    Raises:
        ValueError: if the one is no prefix of the other.
    """
    return jax.tree.leaves(jax.tree.broadcast(prefix, tree))


def wide(x: jax.Array) -> jax.Array:
    """Casts to 32 bits of the same kind of number, unless it is as wide or wider."""
    x = jnp.asarray(x)
    if x.dtype.itemsize >= 4:
        return x
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.float32)
    unsigned = jnp.issubdtype(x.dtype, jnp.unsignedinteger)
    return x.astype(jnp.uint32 if unsigned else jnp.int32)


def widen(tree: PyTree) -> PyTree:
    """Casts every leaf to what sums are made in."""
    return jax.tree.map(wide, tree)


def cast_like(tree: PyTree, template: PyTree) -> PyTree:
    """Casts every leaf to the dtype of the template's."""
    return jax.tree.map(lambda x, t: jnp.asarray(x).astype(t.dtype), tree, template)


def like(tree: PyTree, other: PyTree, name: str) -> PyTree:
    """The tree, if its structure, shapes and dtypes are those of the other.

    Raises:
        ValueError: with the name, what was expected and what was got.
    """
    expected, got = map(_described, (other, tree))
    if expected != got:
        raise ValueError(f"{name}: expected {expected}, got {got}.")
    return jax.tree.map(jnp.asarray, tree)


def _described(tree: PyTree) -> str:
    leaves = leaves_with_names(tree)
    described = [
        f"{path} {jnp.result_type(x)}{list(jnp.shape(x))}" for path, x in leaves
    ]
    return ", ".join(described)


def has_same_leaves(tree: PyTree, other: PyTree) -> bool:
    """Whether the leaves are the same objects."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return all(x is y for x, y in pairs)


def shapes(tree: PyTree) -> list[tuple[int, ...]]:
    """Those of all leaves."""
    return [jnp.shape(x) for x in jax.tree.leaves(tree)]


def is_alike(tree: PyTree, other: PyTree) -> bool:
    """Whether two trees have the same structure."""
    return jax.tree.structure(tree) == jax.tree.structure(other)


def norm(tree: PyTree, order: float = 2.0) -> jax.Array:
    """The norm `[]` over all leaves together, as float32.

    `error_of_norm` says how exact an L2 norm is.
    NaN if there is a NaN in the tree. An L2 norm beyond the square root of the largest
    float (1.8e19 in float32) is infinity.
    """
    leaves = [wide(x).astype(jnp.float32) for x in jax.tree.leaves(tree)]
    leaves = [x.ravel() for x in leaves if x.size]
    if not leaves:
        return jnp.float32(0.0)
    if order == 1.0:
        size = jnp.sum(jnp.stack([jnp.sum(jnp.abs(x)) for x in leaves]))
        # Else XLA may work it out again for each entry that depends on it.
        return jax.lax.optimization_barrier(size)
    measures = measure(leaves)
    if order != 2.0:
        return measures.size()
    # The root's derivative at zero is infinite, and that of a norm is taken as zero.
    is_positive = measures.squares > 0.0
    root = jnp.sqrt(jnp.where(is_positive, measures.squares, 1.0))
    return jnp.where(is_positive, root, measures.squares)


def error_of_norm(tree: PyTree) -> float:
    """The largest relative error of an L2 norm of 1e-10 or more, and to scale by it."""
    return norm_error([math.prod(x.shape) for x in jax.tree.leaves(tree)])


def squared_norm(tree: PyTree) -> jax.Array:
    """The square of the L2 norm `[]` as float32, differentiable at zero."""
    squares = [jnp.sum(jnp.square(wide(x))) for x in jax.tree.leaves(tree)]
    return sum((x.astype(jnp.float32) for x in squares), jnp.float32(0.0))


def dot(a: PyTree, b: PyTree) -> jax.Array:
    """The inner product `[]` of all leaves together, as float32."""
    products = jax.tree.map(
        lambda x, y: jnp.vdot(wide(x), wide(y), precision="highest"), a, b
    )
    leaves = jax.tree.leaves(products)
    return sum((x.astype(jnp.float32) for x in leaves), jnp.float32(0.0))


def scale(factor: jax.Array, tree: PyTree) -> PyTree:
    """Multiplies every leaf by a scalar, in float32 or wider."""
    return jax.tree.map(lambda x: wide(x) * factor.astype(wide(x).dtype), tree)


def divide(tree: PyTree, divisor: jax.Array) -> PyTree:
    """Divides every leaf by a scalar, in the leaf's dtype."""
    return jax.tree.map(lambda x: x / divisor.astype(x.dtype), tree)


def negative(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.negative, tree)


def add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


def subtract(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.subtract, a, b)


def where(condition: jax.Array, a: PyTree, b: PyTree) -> PyTree:
    """Leaf by leaf `a` where the scalar condition holds, else `b`."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def keep(condition: jax.Array, tree: PyTree) -> PyTree:
    """The tree where the scalar condition holds, else zeros, whatever the tree holds.

    A product with zero would keep a NaN.
    """
    return jax.tree.map(lambda x: jnp.where(condition, x, jnp.zeros_like(x)), tree)


def is_finite(tree: PyTree) -> jax.Array:
    """Whether no leaf holds a NaN or an infinity."""
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.bool_(True)


def zeros(template: PyTree) -> PyTree:
    """Zeros of the shapes and dtypes of a tree of arrays or `ShapeDtypeStruct`."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), template)


def abstract(tree: PyTree) -> PyTree:
    """The shapes and dtypes of a tree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def count(tree: PyTree) -> int:
    """Entries of all leaves together."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def count_bytes(tree: PyTree) -> int:
    """Bytes of all leaves together."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def as_partial(fn: Callable[..., Any]) -> Partial:
    """The function as a pytree of the arrays that are bound to it, if any."""
    return fn if isinstance(fn, Partial) else Partial(fn)


def copy(tree: PyTree) -> PyTree:
    """The same leaves in new containers."""
    return jax.tree.map(lambda x: x, tree)


def is_key(x: jax.Array) -> bool:
    """Whether this is a typed key."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def renew_keys(tree: PyTree, key: jax.Array | None) -> PyTree:
    """Replaces every typed key by one of its own made from `key`, if there is one."""
    leaves, structure = jax.tree.flatten(tree)
    if key is not None:
        for i, x in enumerate(leaves):
            if is_key(x):
                leaves[i] = jax.random.fold_in(key, i)
    return jax.tree.unflatten(structure, leaves)


def parts_with_names(
    tree: PyTree, is_part: Callable[[Any], bool]
) -> list[tuple[str, Any]]:
    """The leaves of a tree, and as one each its nodes that are parts, with their paths.

    The path is empty for a part that is all there is.
    """
    nodes = jax.tree.leaves_with_path(tree, is_leaf=is_part)
    return [(jax.tree_util.keystr(path), x) for path, x in nodes]


def map_parts(
    fn: Callable[[Any], Any], tree: PyTree, is_part: Callable[[Any], bool]
) -> PyTree:
    """Replaces every node that is a part by what the function makes of it."""
    return jax.tree.map(lambda x: fn(x) if is_part(x) else x, tree, is_leaf=is_part)


def flatten(tree: PyTree) -> tuple[list, Any]:
    """The leaves of a tree, and its structure."""
    return jax.tree.flatten(tree)


def unflatten(structure: Any, leaves: list) -> PyTree:
    """The inverse of `flatten`."""
    return jax.tree.unflatten(structure, leaves)
