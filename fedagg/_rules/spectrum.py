"""The largest eigenvalue of a symmetric matrix, and a vector of it, by products alone.

LAPACK works on many matrices in threads that devices of one CPU share, and these may
then wait for each other without end. Products run anywhere.
"""

import jax
import jax.numpy as jnp


def largest_eigenpair(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of `[n, n]` with no negative eigenvalue: `[]`, and a vector of any length `[n]`.

    The matrix is squared again and again, at trace one. What all traces multiply to is
    the sum of high powers of eigenvalues, and what is left projects on the vectors of
    the largest. An error in one square counts half as much as one in the last, so that
    the value is exact to some roundings.
    """
    squares = jnp.finfo(a.dtype).nmant + 1  # until n**(1 / 2**squares) rounds to one
    largest = jnp.max(jnp.abs(a))
    # A matrix of zeros stays one, at a size of zero.
    unit = jnp.where(largest > 0.0, largest, 1.0)

    def square(i: jax.Array, carry: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
        power, log_size, part = carry
        trace = jnp.trace(power)
        trace = jnp.where(trace > 0.0, trace, 1.0)
        power = power / trace
        power = jnp.matmul(power, power, precision="highest")
        return power, log_size + part * jnp.log(trace), part / 2.0

    zero, one = jnp.zeros((), a.dtype), jnp.ones((), a.dtype)
    power, log_size, _ = jax.lax.fori_loop(0, squares, square, (a / unit, zero, one))
    value = jnp.where(largest > 0.0, jnp.exp(log_size) * unit, 0.0)
    return value, power[jnp.argmax(jnp.diagonal(power))]
