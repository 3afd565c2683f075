"""How matrices `[n, k]` of stacked clients are cut into blocks of columns.

A block stays in a cache, and is widened when it is read, so that leaves of half
precision are never copied as a whole.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._trees import pytree

# Entries of a block, all clients together: on a CPU what stays in cache, elsewhere work
# enough for a launch. Sums are quicker over less.
ENTRIES = {"cpu": 2**19}
SUMMED = {"cpu": 2**17}
_ENTRIES_ELSEWHERE = 2**26

_COST = 2**15  # entries that a block costs beside its own

# Columns in steps, and beside them. An odd number of lines of a cache, since rows of
# 2**n bytes share places in it, and others are slow to read; pieces for products.
PIECE = 256
ODD_LINES = (32, 16)
PIECES = (PIECE, 0)


def narrow(n: int) -> int:
    """The most columns of a matrix that is better put beside others."""
    return most_columns(n, SUMMED) - 1


class Blocks(NamedTuple):
    """The blocks of some matrices alike, one matrix after the other."""

    parts: list[tuple[jax.Array, ...]]  # of each `[n, k]`, and what is `[k]` beside it
    width: int
    before: np.ndarray  # how many blocks come before each matrix, and how many in all

    @classmethod
    def of(
        cls, parts: list[tuple[jax.Array, ...]], most: int, steps: tuple[int, int]
    ) -> "Blocks":
        sizes = [x[0].shape[-1] for x in parts]
        width = _width(sizes, most, len(parts[0][0]), steps)
        parts = [tuple(_filled(x, width) for x in part) for part in parts]
        counts = [-(-x[0].shape[-1] // width) for x in parts]
        return cls(parts, width, np.cumsum([0, *counts], dtype=np.int32))

    def __len__(self) -> int:
        return int(self.before[-1])

    @property
    def sizes(self) -> np.ndarray:
        return np.array([x[0].shape[-1] for x in self.parts], np.int32)

    def place(self, i: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of a block its matrix, its first column, and how many the last one has too.

        The last block of a matrix begins early enough to be as wide as the others.
        """
        which, number = placed(i, self.before)
        column = number * self.width
        start = jnp.minimum(column, jnp.asarray(self.sizes)[which] - self.width)
        return which, start, column - start

    def read(self, i: jax.Array, *, once: bool = False) -> tuple[jax.Array, ...]:
        """The block with this number, and what is beside it.

        With `once`, zeros are in place of columns that the block before has too.
        """
        which, start, seen = self.place(i)
        fresh = jnp.arange(self.width, dtype=jnp.int32) >= seen

        def of(part: tuple[jax.Array, ...]) -> Callable:
            def cut(start: jax.Array) -> tuple[jax.Array, ...]:
                found = [columns_from(x, start, self.width) for x in part]
                if once and part[0].shape[-1] % self.width:
                    found = [
                        jnp.where(jnp.broadcast_to(fresh, x.shape), x, 0.0)
                        for x in found
                    ]
                return tuple(found)

            return cut

        if len(self.parts) == 1:
            return of(self.parts[0])(start)
        return jax.lax.switch(which, [of(part) for part in self.parts], start)


def most_columns(n: int, entries: dict[str, int]) -> int:
    """The most columns of a block of so many clients."""
    most = entries.get(jax.default_backend(), _ENTRIES_ELSEWHERE)
    return max(most // max(n, 1), 2)


def placed(i: jax.Array, before: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Which part has this one of all, and its number there, int32.

    Before each part are so many, and after the last one those of all.
    """
    i = i.astype(jnp.int32)  # which a loop counts in 64 bits where there are any
    which = jnp.sum(i >= jnp.asarray(before[1:]), dtype=jnp.int32)
    return which, i - jnp.asarray(before)[which]


def columns_from(x: jax.Array, start: jax.Array, width: int) -> jax.Array:
    """So many columns of a matrix or a vector, widened."""
    return pytree.wide(jax.lax.dynamic_slice_in_dim(x, start, width, axis=-1))


def _width(sizes: list[int], most: int, n: int, steps: tuple[int, int]) -> int:
    """The columns of blocks into which matrices are cut at the least cost."""
    if len(sizes) == 1:
        return max(min(sizes[0], _aligned(most, steps)), 1)
    # A narrow one, which small leaves share, is filled up.
    wide = [size for size in sizes if size > narrow(n)] or [max(sizes)]
    limit = min(most, *wide)
    cuts = {_aligned(limit, steps)}
    for size in set(wide):
        number = -(-size // limit)
        for k in (number, number + 1):
            cuts.add(_aligned(-(-size // k) + steps[0] - 1, steps))
    beside = _COST // n

    def cost(width: int) -> int:
        return sum(-(-size // width) for size in sizes) * (width + beside)

    return min((x for x in cuts if x <= limit), key=cost)


def _aligned(width: int, steps: tuple[int, int]) -> int:
    """The most columns up to so many that are whole steps, and a part beside them."""
    step, beside = steps
    return width - (width - beside) % step if width >= step + beside else width


def _filled(x: jax.Array, width: int) -> jax.Array:
    """With columns of zeros, if it has fewer than a block."""
    missing = max(width - x.shape[-1], 0)
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x
