"""Keys: split, taken out of a state, which no checkpoint holds, and put back."""

import jax

from fedagg._trees import pytree
from fedagg._types import PyTree


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """`count` keys from one, or none from none."""
    if key is None or count == 0:
        return [None] * count
    return list(jax.random.split(key, count))


def fold_key(key: jax.Array | None, stream: int | jax.Array) -> jax.Array | None:
    """The key of a stream of its own, or none from none."""
    return None if key is None else jax.random.fold_in(key, stream)


def key_of_round(key: jax.Array, rounds: jax.Array) -> jax.Array:
    """This round's own key, of one that every round may be given.

    Noise that was the same in two rounds would cancel in their difference.
    """
    return jax.random.fold_in(key, rounds)


def without_keys(tree: PyTree) -> PyTree:
    """None in place of every typed key."""
    return jax.tree.map(lambda x: None if pytree.is_key(x) else x, tree)


def with_keys(tree: PyTree, like: PyTree, key: jax.Array) -> PyTree:
    """The inverse of `without_keys` for a tree like that, with keys made from `key`."""
    leaves, structure = pytree.flatten(like)
    rest = iter(pytree.flatten(tree)[0])
    whole = [x if pytree.is_key(x) else next(rest) for x in leaves]
    return pytree.renew_keys(pytree.unflatten(structure, whole), key)
