"""Draws of integer noise from tables, exact to 96 bits and quick on any device."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

from fedagg._noise.integer_laws import BITS, Shares

# The widest noise that tables are made for: larger ones would leave a core's cache.
LARGEST_STDDEV = 1800.0

# From a standard deviation to a law.
SharesOf = Callable[[float], Shares]

# Draws that 64 bits leave open are this and their column.
_OPEN = -(2**31)


class Table(NamedTuple):
    """Columns of equal chance, each of one integer or of two.

    A column is `2**(96 - width)` of 2**96. What is below its threshold falls on the
    column's own integer, the rest on its other one. The first word of a column holds
    the other's position in `width` bits and the upper bits of the threshold, the others
    32 lower bits each.
    """

    first: np.ndarray  # [2**width] uint32
    second: np.ndarray  # [2**width] uint32
    third: np.ndarray  # [2**width] uint32
    lowest: int  # the first column's integer
    error: float  # total variation of a draw from the law that is meant, at most

    @property
    def width(self) -> int:
        return len(self.first).bit_length() - 1


@functools.lru_cache(maxsize=32)
def table_of(law: SharesOf, stddev: float) -> Table:
    """The table of a law with this standard deviation.

    Reference: Walker, "An Efficient Method for Generating Discrete Random Variables
        with General Distributions", 1977.
    """
    shares = law(stddev)
    left = list(shares.of)
    lowest = -(len(left) // 2)
    width = max(1, (len(left) - 1).bit_length())
    capacity = 2 ** (BITS - width)
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
    whole = [x << (BITS - width) | t for x, t in zip(other, threshold, strict=True)]
    first, second, third = (
        np.array([(x >> down) % 2**32 for x in whole], np.uint32)
        for down in (64, 32, 0)
    )
    return Table(first, second, third, lowest, shares.error)


def draw(table: Table, key: jax.Array, size: int) -> jax.Array:
    """Draws int32 `[size]` that follow the table to the last of its 96 bits."""
    return decided(table, *words(key, size), key)


def decided(
    table: Table, word: jax.Array, lower: jax.Array, key: jax.Array
) -> jax.Array:
    """What two words for each draw say, and a third where they leave it open.

    Which they do with a chance of `2**(width - 64)`. There is no arithmetic in floats.
    """
    spare = 32 - table.width
    column = word >> spare
    first, second = _at(table.first, column), _at(table.second, column)
    rest, upper = (x & jnp.uint32(2**spare - 1) for x in (word, first))
    is_own = (rest < upper) | ((rest == upper) & (lower < second))
    drawn = jnp.where(is_own, column, first >> spare).astype(jnp.int32) + table.lowest
    is_open = (rest == upper) & (lower == second)
    drawn = jnp.where(is_open, column.astype(jnp.int32) + _OPEN, drawn)

    def is_any_open(state: tuple) -> jax.Array:
        return jnp.any(state[1] < _OPEN // 2)

    def by_third_words(state: tuple) -> tuple:
        # Of blocks that `words` never makes. A number that does not change in the loop
        # would be drawn before it, open or not.
        block, drawn = state
        word = jax.random.bits(jax.random.fold_in(key, block), drawn.shape, jnp.uint32)
        is_open = drawn < _OPEN // 2
        column = jnp.where(is_open, drawn - _OPEN, 0)
        other = (_at(table.first, column) >> spare).astype(jnp.int32)
        integer = jnp.where(word < _at(table.third, column), column, other)
        return block - 1, jnp.where(is_open, integer + table.lowest, drawn)

    # A loop is left out where nothing is open, under vmap as well.
    start = jnp.uint32(2**32 - 1), drawn
    return jax.lax.while_loop(is_any_open, by_third_words, start)[1]


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
