"""What can be wrong with trees and keys, found while tracing."""

from typing import Any

import jax
import jax.numpy as jnp

from fedagg._payload import Payload
from fedagg._trees import pytree
from fedagg._types import PyTree


def check_floating(tree: PyTree, name: str) -> None:
    """Raises a TypeError that names the first leaf which is not of a float dtype."""
    for path, x in pytree.parts_with_names(tree, _is_payload):
        if _is_payload(x):
            raise TypeError(
                f"{name} takes arrays; {path or 'the value'} is a {type(x).__name__}. "
                f"Put {name} before the stage that makes it."
            )
    for path, x in pytree.leaves_with_names(tree):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"{name} takes leaves of a float dtype; {path} has dtype {x.dtype}. "
                "Cast it, or aggregate it apart."
            )


def check_numeric(tree: PyTree, name: str) -> None:
    """Raises a TypeError that names the first leaf that is no float and no integer."""
    for path, x in pytree.leaves_with_names(tree):
        if not any(
            jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.integer)
        ):
            raise TypeError(
                f"{name}: expected leaves of a float or integer dtype; {path} has "
                f"dtype {x.dtype}."
            )


def count_clients(stacked: PyTree, name: str = "updates") -> int:
    """The length of the leading axis that all leaves share.

    Raises:
        ValueError: if there is no leaf, a leaf is a scalar, two leaves disagree, or the
            axis is empty.
        TypeError: if a leaf is not a numeric array.
    """
    leaves = pytree.leaves_with_names(stacked)
    if not leaves:
        raise ValueError(f"{name} holds no arrays: expected leaves of shape [n, ...].")
    first, n = leaves[0][0], None
    for path, x in leaves:
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise TypeError(
                f"{name}: expected arrays of shape [n, ...] as leaves; {path} is a "
                f"{type(x).__name__}."
            )
        if len(x.shape) == 0:
            raise ValueError(
                f"{name}: expected a leading axis of clients on every leaf, [n, ...]; "
                f"{path} has shape []."
            )
        if n is None:
            n = x.shape[0]
        if x.shape[0] != n:
            raise ValueError(
                f"{name}: all leaves must agree on the number of clients; "
                f"{first} has {n} and {path} has {x.shape[0]}."
            )
    if n == 0 or n is None:
        raise ValueError(
            f"{name}: expected at least one client; the leading axis is empty. For a "
            "round without clients give rows of weight zero."
        )
    return n


def check_key(key: jax.Array | None, name: str, draws: str) -> jax.Array:
    """The key, or a ValueError that names who lacks it, and what for."""
    if key is None:
        raise ValueError(f"{name} draws {draws} and needs a key, got key=None.")
    return key


def _is_payload(x: Any) -> bool:
    return isinstance(x, Payload)
