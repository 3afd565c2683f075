"""A client's examples in batches, of which a client runs as many as it has."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Batches(NamedTuple):
    """A client's batches of all epochs, padding at the end of each."""

    places: jax.Array  # [steps, size], positions of examples
    counts: jax.Array  # [steps, size] bool, which of them count
    steps: jax.Array  # [], those of an epoch that have an example


def batches_of(
    mask: jax.Array, size: int, epochs: int, key: jax.Array | None
) -> Batches:
    """Batches over all epochs. Examples come before padding: the first are full."""
    count = jnp.sum(mask, dtype=jnp.int32)
    places = jnp.arange(-(-mask.shape[0] // size) * size, dtype=jnp.int32)

    def epoch(key: jax.Array | None) -> jax.Array:
        rank = (
            jnp.zeros(mask.shape)
            if key is None
            else jax.random.uniform(key, mask.shape)
        )
        order = jnp.argsort(jnp.where(mask, rank, 2.0), stable=True)
        return order[places % jnp.maximum(count, 1)]  # beyond the last, from the front

    if key is None:
        orders = jnp.tile(epoch(None), epochs)
    else:
        orders = jax.vmap(epoch)(jax.random.split(key, epochs))
    counts = jnp.tile(places < count, epochs)
    steps = -(-count // size)
    return Batches(orders.reshape(-1, size), counts.reshape(-1, size), steps)


def first_steps(batches: Batches, most: int) -> Batches:
    """The same, of which no batch after so many counts an example."""
    is_run = jnp.any(batches.counts, axis=1)
    is_first = jnp.cumsum(is_run, dtype=jnp.int32) <= most
    return batches._replace(counts=batches.counts & is_first[:, None])
