"""Loops over large arrays."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

_Carry = TypeVar("_Carry")


def repeat(
    lower: int,
    upper: int,
    body: Callable[[jax.Array, _Carry], _Carry],
    carry: _Carry,
    *,
    unroll: int = 1,
) -> _Carry:
    """`jax.lax.fori_loop`, whose body runs on all cores of a CPU.

    XLA for CPUs, since JAX 0.11, makes one kernel of a loop, as if it were small, and a
    kernel that it makes so runs on one core. It leaves a loop alone that has to sort.
    """

    def sorting(i: Any, carry: _Carry) -> _Carry:
        i = jnp.int32(i)
        return body(jax.lax.sort(jnp.stack([i, i]))[0], carry)

    on_cpu = jax.default_backend() == "cpu"
    return jax.lax.fori_loop(
        lower, upper, sorting if on_cpu else body, carry, unroll=unroll
    )
