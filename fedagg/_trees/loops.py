"""Loops that XLA's CPU compiler takes for worth several cores."""

import jax
import jax.numpy as jnp


def in_steps(index: jax.Array) -> jax.Array:
    """The same index `[]` of a loop, sorted, which keeps the loop's operations apart.

    XLA makes one function of a loop that it takes for small. That function runs on one
    core, and takes seconds to compile where there are many leaves. A sort, here of two
    numbers, keeps it from that on a CPU.
    """
    if jax.default_backend() != "cpu":
        return index
    most = jnp.asarray(jnp.iinfo(index.dtype).max, index.dtype)
    return jnp.sort(jnp.stack([index, most]))[0]
