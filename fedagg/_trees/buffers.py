"""What asynchronous rounds are asked for, simulated and between machines alike."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._trees import checks
from fedagg._trees.kinds import check_function, described


def inverse_root(staleness: jax.Array) -> jax.Array:
    """One over the root of one more: how much of a stale change counts."""
    return 1.0 / jnp.sqrt(1.0 + staleness)


def check_buffer(
    clients: int,
    buffer: int,
    concurrency: int,
    max_staleness: int,
    separation: int,
    discount: Callable[[jax.Array], Any],
) -> None:
    """Raises a ValueError for a number out of range, a TypeError for no discount."""
    checks.check_whole(1, clients=clients, buffer=buffer, concurrency=concurrency)
    checks.check_whole(buffer, clients=clients)
    checks.check_whole(0, max_staleness=max_staleness)
    checks.check_whole(1, separation=separation)
    check_function("(staleness)", discount=discount)


def told(name: str, function: Callable[..., Any], *given: Any) -> jax.Array:
    """The number that a function of the caller's returns, as float32 `[]`.

    Raises:
        TypeError: for anything else, with the argument's name.
    """
    x = function(*given)
    is_number = isinstance(x, (int, float, np.ndarray, np.generic, jax.Array))
    if not is_number or jnp.shape(x):
        raise TypeError(
            f"{name}: expected a function that returns a number [], got one that "
            f"returns {described(x)}."
        )
    return jnp.asarray(x).astype(jnp.float32)
