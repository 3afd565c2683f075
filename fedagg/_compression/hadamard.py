"""The fast Walsh-Hadamard transform."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def hadamard(x: jax.Array) -> jax.Array:
    """The orthonormal Walsh-Hadamard transform of a float32 vector `[d]`.

    That is `x @ H / sqrt(d)` with Sylvester's matrix H, and its own inverse. A NaN in
    one entry is in all of them after it.

    The matrix is a Kronecker product of small ones. Each works on an axis of its own,
    in place: products with matrices of 16 rows cost as much as reading the vector.

    Args:
        x: the vector. Its length is a power of two.

    Raises:
        ValueError: if it is no vector, or of another length.

    Reference: Fino and Algazi, "Unified Matrix Treatment of the Fast Walsh-Hadamard
        Transform", 1976, section II.
    """
    if x.ndim != 1 or x.size < 1 or x.size & (x.size - 1):
        raise ValueError(
            f"hadamard takes a vector whose length is a power of two, got {x.shape=}."
        )
    d, stride = x.size, 1
    while stride < d:
        size = min(32 if stride == 1 else 16, d // stride)
        matrix = jnp.asarray(sylvester(size))
        if stride == 1:
            matrix = matrix * jnp.float32(1.0 / math.sqrt(d))
            x = jnp.matmul(x.reshape(-1, size), matrix, precision="highest")
        else:
            blocks = x.reshape(-1, size, stride)
            # One matrix for all blocks, or for all clients under vmap, would make the
            # compiler move axes about. It drops the zero.
            zero = 0 * blocks[:, :1, :1].astype(jnp.int32)
            matrices = matrix[None] + zero.astype(jnp.float32)
            x = jnp.matmul(matrices, blocks, precision="highest")
        stride *= size
    return x.reshape(d)


def sylvester(size: int) -> np.ndarray:
    """The matrix of ones and minus ones `[size, size]`, for a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
