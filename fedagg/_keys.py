"""Typed keys out of a state, which no checkpoint holds, and back into it."""

import jax

from fedagg import _tree
from fedagg._types import PyTree


def without_keys(tree: PyTree) -> PyTree:
    """None in place of every typed key."""
    return jax.tree.map(lambda x: None if _tree.is_key(x) else x, tree)


def with_keys(tree: PyTree, like: PyTree, key: jax.Array) -> PyTree:
    """The inverse of `without_keys` for a tree like that, with keys made from `key`."""
    leaves, structure = _tree.flatten(like)
    rest = iter(_tree.flatten(tree)[0])
    whole = [x if _tree.is_key(x) else next(rest) for x in leaves]
    return _tree.renew_keys(_tree.unflatten(structure, whole), key)
