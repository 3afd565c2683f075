"""Which leaves are read together: an operation for each small one costs most."""

import itertools

import jax
import jax.numpy as jnp

# Leaves of up to so many bytes, all clients together, are handled as one: an operation
# of its own costs more than a copy.
_SMALL = 2**18


def by_dtype(arrays: list[jax.Array]) -> list[list[int]]:
    """Positions of arrays, of each dtype together, in the order in which they come."""
    dtypes = [x.dtype for x in arrays]
    return [
        [i for i, x in enumerate(dtypes) if x == dtype]
        for dtype in dict.fromkeys(dtypes)
    ]


def small(n: int) -> int:
    """The most entries of a small leaf of each of `n` clients."""
    return _SMALL // (4 * max(n, 1))


def pack(sizes: list[int], most: int) -> list[list[int]]:
    """Positions of leaves, of those with up to so many entries together."""
    together = [i for i, size in enumerate(sizes) if size <= most]
    alone = [[i] for i, size in enumerate(sizes) if size > most]
    return [*alone, together] if together else alone


def concatenate(arrays: list[jax.Array]) -> jax.Array:
    """Along the last axis, in float32; one array alone is not copied."""
    if len(arrays) == 1:
        return arrays[0]
    return jnp.concatenate([x.astype(jnp.float32) for x in arrays], axis=-1)


def cut(vector: jax.Array, sizes: list[int]) -> list[jax.Array]:
    """Cuts a vector into parts of these sizes: the inverse of `concatenate`."""
    if len(sizes) <= 1:
        return [vector] * len(sizes)
    # With offsets that the compiler cannot see, slices of one size are one kernel.
    starts = jax.lax.optimization_barrier(
        [jnp.int32(x) for x in itertools.accumulate([0, *sizes[:-1]])]
    )
    return [
        jax.lax.dynamic_slice(vector, (start,), (size,))
        for start, size in zip(starts, sizes, strict=True)
    ]


def added(parts: list[jax.Array]) -> jax.Array:
    """The sum of arrays alike, in the widest of their dtypes."""
    total = parts[0]
    for part in parts[1:]:
        dtype = max(total.dtype, part.dtype, key=lambda dtype: dtype.itemsize)
        total = total.astype(dtype) + part.astype(dtype)
    return total
