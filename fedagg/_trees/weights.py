"""Weights of clients, and who is present."""

import jax
import jax.numpy as jnp


def is_present(weight: jax.Array) -> jax.Array:
    """Whether a client of this weight takes part."""
    return weight > 0.0


def as_weights(weights: jax.Array | None, n: int) -> jax.Array:
    """Weights as `[n]` float32, zero where they are not positive and finite."""
    if weights is None:
        return jnp.ones((n,), jnp.float32)
    weights = jnp.asarray(weights)
    if weights.shape != (n,):
        raise ValueError(
            f"weights: expected shape ({n},), one for each client of updates; got "
            f"{weights.shape}."
        )
    if jnp.issubdtype(weights.dtype, jnp.complexfloating):
        raise TypeError(f"weights: expected real numbers, got dtype {weights.dtype}.")
    weights = weights.astype(jnp.float32)
    return jnp.where((weights > 0.0) & (weights < jnp.inf), weights, 0.0)
