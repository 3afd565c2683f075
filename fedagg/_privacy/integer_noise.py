"""Draws of integer noise from tables, exact to 64 bits and quick on any device."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

# The widest noise that tables are made for: larger ones would leave a core's cache.
LARGEST_STDDEV = 1800.0

# From a standard deviation to the chances of -k, ..., k, as shares of 2**64.
Shares = Callable[[float], tuple[int, ...]]


class Table(NamedTuple):
    """Columns of equal chance, each of one integer or of two.

    A column is `2**(64 - width)` of 2**64. What is below its threshold falls on the
    column's own integer, the rest on its other one. The first word of a column holds
    the other's position in `width` bits and the upper bits of the threshold, the second
    the lower 32 bits.
    """

    first: np.ndarray  # [2**width] uint32
    second: np.ndarray  # [2**width] uint32
    lowest: int  # the first column's integer

    @property
    def width(self) -> int:
        return len(self.first).bit_length() - 1


@functools.lru_cache(maxsize=32)
def table_of(shares: Shares, stddev: float) -> Table:
    """The table of a law with this standard deviation.

    Reference: Walker, "An Efficient Method for Generating Discrete Random Variables
        with General Distributions", 1977.
    """
    left = list(shares(stddev))
    lowest = -(len(left) // 2)
    width = max(1, (len(left) - 1).bit_length())
    capacity = 2 ** (64 - width)
    left += [0] * (2**width - len(left))
    other, threshold = list(range(2**width)), [0] * 2**width
    short = [i for i, x in enumerate(left) if x < capacity]
    long = [i for i, x in enumerate(left) if x > capacity]
    while short:
        # What a column lacks is taken from one that has more than fits.
        i, j = short.pop(), long[-1]
        threshold[i], other[i] = left[i], j
        left[j] -= capacity - left[i]
        if left[j] <= capacity:
            long.pop()
            if left[j] < capacity:
                short.append(j)
    first = [x << (32 - width) | t >> 32 for x, t in zip(other, threshold, strict=True)]
    return Table(
        np.array(first, np.uint32),
        np.array([t % 2**32 for t in threshold], np.uint32),
        lowest,
    )


def draw(table: Table, key: jax.Array, size: int) -> jax.Array:
    """Draws int32 `[size]`, each from two words of 32 bits.

    They follow the table to the last of the 64 bits, without any arithmetic in floats.
    """
    word, lower = words(key, size)
    spare = 32 - table.width
    column = word >> spare
    first = _at(table.first, column)
    rest, upper = (x & jnp.uint32(2**spare - 1) for x in (word, first))
    is_own = (rest < upper) | ((rest == upper) & (lower < _at(table.second, column)))
    return jnp.where(is_own, column, first >> spare).astype(jnp.int32) + table.lowest


def words(key: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Two words `[size]` of random bits, as uint32.

    One block of Threefry has both. `jax.random.bits` takes a block for each word.
    """
    if jax.random.key_impl(key) != "threefry2x32":
        first, second = jax.random.bits(key, (2, size), jnp.uint32)
        return first, second
    counts = jnp.arange(2 * size, dtype=jnp.uint32)
    bits = threefry_2x32(jax.random.key_data(key), counts)
    return bits[:size], bits[size:]


def _at(table: np.ndarray, column: jax.Array) -> jax.Array:
    return jnp.asarray(table).at[column].get(mode="promise_in_bounds")
