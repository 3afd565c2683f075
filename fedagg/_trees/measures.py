"""The extremes and the sum of squares of many numbers, in one read."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

_ROWS = 8  # for several cores
_SMALL = 2**12  # entries; smaller vectors are read as one


class Measures(NamedTuple):
    """What is known of many numbers, each `[]`.

    A NaN is beyond the infinity of its sign, so that it is the smallest or the largest.
    """

    smallest: jax.Array
    largest: jax.Array
    squares: jax.Array  # their sum

    def size(self) -> jax.Array:
        """The largest absolute value; NaN if there is a NaN."""
        size = jnp.maximum(-self.smallest, self.largest)
        has_nan = jnp.isnan(self.smallest) | jnp.isnan(self.largest)
        return jnp.where(has_nan, jnp.nan, size)


@jax.jit
def fedagg_measure(vectors: list[jax.Array]) -> Measures:
    """Measures of all entries of float32 vectors, at least one entry.

    `_rows` knows it by this name in a program, and takes it of all clients at once.
    `jit` is what keeps the name; nothing else is compiled by it under another `jit`.
    """
    large = [x for x in vectors if x.size > _SMALL]
    small = [x for x in vectors if 0 < x.size <= _SMALL]
    parts = []
    for x in large:
        rows, tail = jnp.split(x, [x.size // _ROWS * _ROWS])
        parts.append(rows.reshape(_ROWS, -1))
        small += [tail] if tail.size else []
    if small:
        parts.append(jnp.concatenate(small))
    # Else XLA may measure again for each entry that depends on this.
    return jax.lax.optimization_barrier(measure_rows(parts))


@jax.custom_jvp
def measure_rows(arrays: Sequence[jax.Array]) -> Measures:
    """Measures of all entries of float32 arrays, which are read along the last axis.

    Extremes are of bits in an order in which integers compare as the floats do: quicker
    than those of floats, which moreover leave NaN out on a CPU.
    """
    lows, highs, squares = [], [], []
    limits = jnp.iinfo(jnp.int32)
    for x in arrays:
        order = _ordered(jax.lax.bitcast_convert_type(x, jnp.int32))
        low, high, square = jax.lax.reduce(
            (order, order, x * x),
            (jnp.int32(limits.max), jnp.int32(limits.min), jnp.float32(0.0)),
            lambda a, b: (
                jnp.minimum(a[0], b[0]),
                jnp.maximum(a[1], b[1]),
                a[2] + b[2],
            ),
            (x.ndim - 1,),
        )
        lows.append(low.ravel())
        highs.append(high.ravel())
        squares.append(square.ravel())
    low, high = jnp.min(jnp.concatenate(lows)), jnp.max(jnp.concatenate(highs))
    smallest, largest = (
        jax.lax.bitcast_convert_type(_ordered(x), jnp.float32) for x in (low, high)
    )
    return Measures(smallest, largest, jnp.sum(jnp.concatenate(squares)))


@measure_rows.defjvp
def _(primals: tuple, tangents: tuple):
    def plain(arrays: Sequence[jax.Array]) -> Measures:
        x = jnp.concatenate([x.ravel() for x in arrays])
        return Measures(jnp.min(x), jnp.max(x), jnp.sum(jnp.square(x)))

    return jax.jvp(plain, primals, tangents)


def smallest_and_largest(vectors: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The extremes of all entries; both NaN if one is not finite."""
    found = fedagg_measure(vectors)
    zero = 0.0 * found.smallest + 0.0 * found.largest
    return found.smallest + zero, found.largest + zero


def _ordered(bits: jax.Array) -> jax.Array:
    """Bits of floats as integers in the order of the floats, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
