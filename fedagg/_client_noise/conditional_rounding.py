"""Random rounding of a vector to integers that does not make it too long."""

import math

import jax
import jax.numpy as jnp

from fedagg._compression.random import round_randomly
from fedagg._trees import pytree

_TRIES = 8

# The largest relative error of a sum of squares in float32 in which no number is added
# to more than 256 others on each of four levels.
_SLACK = 2.0**-14


def bound_of(norm: float, beta: float, size: int) -> float:
    """The L2 norm of a vector `[size]` of integers that `round_within` makes, at most.

    A vector of at most this norm, rounded randomly, is within it with a chance of
    `1 - beta` or more, and always where `beta` is zero, but for a part in 8000 that is
    added for sums of squares in float32.

    Reference: Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism
        for Federated Learning with Secure Aggregation", 2021, proposition 22.
    """
    square = (norm + math.sqrt(size)) ** 2
    if beta > 0.0:
        slack = math.sqrt(2.0 * math.log(1.0 / beta))
        likely = norm**2 + size / 4.0 + slack * (norm + math.sqrt(size) / 2.0)
        square = min(square, likely)
    return math.sqrt(square * (1.0 + 4.0 * _SLACK))


def round_within(x: jax.Array, bound: float, key: jax.Array) -> jax.Array:
    """Rounds a float32 vector `[d]` to int32, randomly, within a bound of `bound_of`.

    It is rounded anew while it comes out too long, eight times at most; then towards
    zero, which makes it no longer than it was. A vector that is too long even so,
    longer than `bound_of` was told, becomes zeros.
    """
    words = jax.random.bits(key, (_TRIES + 1, 2), jnp.uint32)
    limit = jnp.float32(bound**2 / (1.0 + 4.0 * _SLACK) * (1.0 + _SLACK))

    def attempt(state: tuple):
        i, _, _ = state
        rounded = jnp.where(i < _TRIES, round_randomly(x, words[i]), jnp.trunc(x))
        whole = rounded.astype(jnp.int32)
        return i + 1, whole, squares(whole) <= limit

    def is_open(state: tuple):
        i, _, fits = state
        return ~fits & (i <= _TRIES)

    start = (jnp.int32(0), jnp.zeros(x.shape, jnp.int32), jnp.bool_(False))
    _, whole, fits = jax.lax.while_loop(is_open, attempt, start)
    return pytree.keep(fits, whole)


def squares(whole: jax.Array) -> jax.Array:
    """The sum of squares `[]` of int32 numbers below 2**24, to a part in 16,000."""
    x = jnp.square(whole.astype(jnp.float32))
    while x.size > 1:
        x = jnp.pad(x, (0, -x.size % 256)) if x.size > 256 else x
        rows = x.reshape(min(256, x.size), -1)
        # Else the compiler may make one long sum of all levels.
        x = jax.lax.optimization_barrier(jnp.sum(rows, axis=0))
    return x.reshape(())
