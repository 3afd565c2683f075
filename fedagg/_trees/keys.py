"""Keys: split, taken out of a state, which no checkpoint holds, and put back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._trees import pytree
from fedagg._trees.kinds import described
from fedagg._types import PyTree


def as_key(key: Any, argument: str = "key") -> jax.Array | None:
    """The key, typed; an old one, of `jax.random.PRNGKey`, draws as before.

    Raises:
        TypeError: for what is no key, a seed for one.
        ValueError: for several keys.
    """
    if key is None:
        return None
    expected = f"{argument}: expected one key, as jax.random.key(0) makes it"
    if not isinstance(key, (jax.Array, np.ndarray)):
        raise TypeError(f"{expected}, got {described(key)}.{_of_seed(key)}")
    found = jnp.asarray(key)
    if pytree.is_key(found):
        if found.shape:
            raise ValueError(
                f"{expected}, got {list(found.shape)} of them. Clients' keys are made "
                "from the one."
            )
        return found
    if found.dtype != jnp.uint32 or found.shape != _shape_of_old():
        got = described(found) if found.shape else f"{found.dtype}[]"
        raise TypeError(f"{expected}, got {got}.{_of_seed(found)}")
    return jax.random.wrap_key_data(found)


def _shape_of_old() -> tuple[int, ...]:
    return jax.eval_shape(jax.random.PRNGKey, 0).shape


def _of_seed(key: Any) -> str:
    is_array = isinstance(key, (jax.Array, np.ndarray))
    is_seed = key.ndim == 0 if is_array else isinstance(key, (int, np.integer))
    return " Of a seed: jax.random.key(seed)." if is_seed else ""


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
