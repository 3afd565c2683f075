"""Checks of arguments: numbers, when a stage is made; trees and keys, while tracing.

Those of numbers take arguments by name, `check_positive(clip=clip)`. They raise a
ValueError for a number out of range and a TypeError for what is no number, a bool
included; both say the argument's name, what was expected and what was got.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._payload import Payload
from fedagg._trees import pytree, table
from fedagg._trees.kinds import described, of_dtype
from fedagg._types import PyTree

_STACKED = (
    "Each leaf has a row for each client: for values of single clients, "
    "jax.tree.map(lambda *x: jnp.stack(x), *values)."
)
_ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)


def check_positive(**numbers: Any) -> None:
    """For what must be above zero, and finite."""
    for argument, got in numbers.items():
        _require(
            0.0 < _number(argument, got) < math.inf,
            *(argument, "positive and finite", got),
        )


def check_above_zero(**numbers: Any) -> None:
    """For what must be above zero, and may be infinite."""
    for argument, got in numbers.items():
        _require(_number(argument, got) > 0.0, argument, "positive", got)


def check_not_negative(**numbers: Any) -> None:
    """For what may be zero or more, and finite."""
    for argument, got in numbers.items():
        _require(
            0.0 <= _number(argument, got) < math.inf,
            *(argument, "finite and not negative", got),
        )


def check_finite(**numbers: Any) -> None:
    """For what may be of either sign."""
    for argument, got in numbers.items():
        _require(math.isfinite(_number(argument, got)), argument, "finite", got)


def check_within(interval: str, **numbers: Any) -> None:
    """For what must be in an interval, as it is written: "(0, 1]" is without zero."""
    low, high = map(float, interval[1:-1].split(","))
    for argument, got in numbers.items():
        number = _number(argument, got)
        is_above = number >= low if interval[0] == "[" else number > low
        is_below = number <= high if interval[-1] == "]" else number < high
        _require(is_above and is_below, argument, f"in {interval}", got)


def check_whole(least: int, most: int | None = None, **numbers: Any) -> None:
    """For a whole number of any integer type, from `least` to `most`, if there is one.

    A ValueError for what is no whole number, too.
    """
    upto = "or more" if most is None else f"to {most}"
    for argument, got in numbers.items():
        try:
            number = operator.index(got)
        except TypeError:
            number = None
        found = number is not None and not _is_bool(got) and number >= least
        _require(
            found and (most is None or number <= most),
            *(argument, f"a whole number, {least} {upto}", got),
        )


def check_choice(choices: Sequence[str], **arguments: str) -> None:
    """For what must be one of several names."""
    for argument, got in arguments.items():
        _require(got in choices, argument, f"one of {', '.join(choices)}", got)


def _require(holds: bool, argument: str, expected: str, got: Any) -> None:
    if not holds:
        raise ValueError(
            f"{argument} must be {expected}, got {argument}={described(got)}."
        )


def _number(argument: str, got: Any) -> float:
    try:
        if _is_bool(got) or isinstance(got, str):
            raise TypeError
        return float(got)
    except (TypeError, ValueError):
        raise TypeError(
            f"{argument} must be a number, got {argument}={described(got)}."
            f"{_known_before(got)}"
        ) from None


def _known_before(got: Any) -> str:
    if not isinstance(got, jax.core.Tracer):
        return ""
    return " What is traced is not known yet: make this outside of jit."


def _is_bool(x: Any) -> bool:
    return np.issubdtype(np.asarray(x).dtype, np.bool_)


def check_floating(tree: PyTree, name: str) -> None:
    """Raises a TypeError that names the first leaf which is not of a float dtype."""
    for path, x in pytree.parts_with_names(tree, _is_payload):
        if _is_payload(x):
            raise TypeError(
                f"{name} takes arrays; {path or 'the value'} is a {type(x).__name__}. "
                f"Put {name} before the stage that makes it."
            )
    advice = "Cast it, or aggregate it apart."
    _check_leaves(tree, name, jnp.floating, "a float dtype", advice)


def check_integers(tree: PyTree, name: str) -> None:
    """Raises a TypeError that names the first leaf which is not of integers."""
    advice = "Put a stage that rounds before it, such as discretization."
    _check_leaves(tree, name, jnp.integer, "integers", advice)


def _check_leaves(
    tree: PyTree, name: str, kind: Any, expected: str, advice: str
) -> None:
    for path, x in pytree.leaves_with_names(tree):
        if not jnp.issubdtype(x.dtype, kind):
            raise TypeError(
                f"{name} takes leaves of {expected}; {path} has dtype {x.dtype}. "
                f"{advice}"
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
    """The length of the leading axis that all leaves share, and a table's places.

    Raises:
        ValueError: if there is no leaf, a leaf is a scalar, two leaves disagree, or the
            axis is empty.
        TypeError: if a leaf is not a numeric array.
    """
    leaves = pytree.leaves_with_names(table.apart(stacked)[0])
    if not leaves:
        raise ValueError(
            f"{name} holds no arrays: expected leaves of shape [n, ...], a row for "
            "each client."
        )
    first, n = leaves[0][0], None
    for path, x in leaves:
        is_text = isinstance(x, np.ndarray) and x.dtype.kind in "OSU"
        if is_text or not isinstance(x, _ARRAYS):
            raise TypeError(
                f"{name}: expected arrays of shape [n, ...] as leaves; {path} is a "
                f"{type(x).__name__}{of_dtype(x)}. Make an array of numbers of it: "
                "jnp.asarray."
            )
        if len(x.shape) == 0:
            raise ValueError(
                f"{name}: expected a leading axis of clients on every leaf, [n, ...]; "
                f"{path} has shape []. For one client: "
                f"jax.tree.map(lambda x: x[None], {name})."
            )
        if n is None:
            n = x.shape[0]
        if x.shape[0] != n:
            raise ValueError(
                f"{name}: all leaves must agree on the number of clients; "
                f"{first} has {n} and {path} has {x.shape[0]}. {_STACKED}"
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
        raise ValueError(
            f"{name} draws {draws} and needs a key, got key=None. Give next a key, "
            "jax.random.key(0) and another each round, or secret_key() where noise is "
            "to hide something."
        )
    return key


def _is_payload(x: Any) -> bool:
    return isinstance(x, Payload)
