"""Typed keys out of a state, which no checkpoint holds, and back into it."""

import jax
import jax.numpy as jnp

from fedagg import _tree
from fedagg._types import PyTree


def without_keys(tree: PyTree) -> PyTree:
    """None in place of every typed key."""
    return jax.tree.map(lambda x: None if _is_key(x) else x, tree)


def with_keys(tree: PyTree, like: PyTree, key: jax.Array) -> PyTree:
    """The inverse of `without_keys` for a tree like that, with keys made from `key`."""
    leaves, structure = _tree.flatten(like)
    kept, _ = _tree.flatten(tree)
    rest = iter(kept)
    whole = [
        jax.random.fold_in(key, i) if _is_key(x) else next(rest)
        for i, x in enumerate(leaves)
    ]
    return _tree.unflatten(structure, whole)


def _is_key(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
