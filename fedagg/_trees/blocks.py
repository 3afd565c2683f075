"""Stacked clients in blocks of columns that stay in a cache, widened when read.

One loop goes over the blocks of all matrices `[n, k]` of a dtype, so that a program is
as large for many leaves as for one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._trees import pytree
from fedagg._trees.loops import in_steps
from fedagg._trees.reductions import added

# Entries of a block, all clients together: on a CPU what stays in cache, elsewhere work
# enough for a launch.
_ENTRIES = {"cpu": 2**19}
_ENTRIES_ELSEWHERE = 2**26

_MANY_ENTRIES = 2**22  # of a block that no cache holds
_COST = 2**15  # entries that a block costs beside its own
_UNROLLED = 4


def narrow(n: int) -> int:
    """The most columns of a matrix that is better put beside others."""
    return _most(n) // 2 - 1


class _Blocks(NamedTuple):
    """The blocks of some matrices alike, one matrix after the other."""

    parts: list[tuple[jax.Array, ...]]  # of each `[n, k]`, and what is `[k]` beside it
    width: int
    before: np.ndarray  # how many blocks come before each matrix, and how many in all

    @classmethod
    def of(cls, parts: list[tuple[jax.Array, ...]], most: int) -> "_Blocks":
        sizes = [x[0].shape[-1] for x in parts]
        width = _width(sizes, most, len(parts[0][0]))
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
        which = jnp.sum(i >= jnp.asarray(self.before[1:]), dtype=jnp.int32)
        column = (i - jnp.asarray(self.before)[which]) * self.width
        start = jnp.minimum(column, jnp.asarray(self.sizes)[which] - self.width)
        return which, start, column - start

    def read(self, i: jax.Array) -> tuple[jax.Array, ...]:
        """The block with this number, and what is beside it."""

        def of(part: tuple[jax.Array, ...]) -> Callable:
            return lambda start: tuple(_columns(x, start, self.width) for x in part)

        which, start, _ = self.place(i)
        if len(self.parts) == 1:
            return of(self.parts[0])(start)
        return jax.lax.switch(which, [of(part) for part in self.parts], start)

    def read_once(self, i: jax.Array) -> tuple[jax.Array, ...]:
        """The same, with zeros for columns that the block before has too."""
        found = self.read(i)
        if not np.any(self.sizes % self.width):
            return found
        seen = self.place(i)[2]
        fresh = jnp.arange(self.width, dtype=jnp.int32) >= seen
        return tuple(
            jnp.where(jnp.broadcast_to(fresh, x.shape), x, jnp.zeros_like(x))
            for x in found
        )


def sum_over_blocks(
    fn: Callable[..., jax.Array], *matrices: list[jax.Array]
) -> jax.Array:
    """The sum of `fn` over blocks of columns; of several lists, over blocks alike.

    Of columns of zeros, `fn` makes zeros.
    """
    return added([_sum(fn, alike, 1) for _, alike in _by_dtype(matrices)])


def sum_along_rows(
    fn: Callable[..., jax.Array], *matrices: list[jax.Array]
) -> jax.Array:
    """The sum along rows `[n]` of what `fn` makes of the entries of blocks alike.

    On a CPU, blocks are added entry by entry, and only their sum is summed along rows.
    """
    if jax.default_backend() != "cpu":
        return sum_over_blocks(lambda *blocks: jnp.sum(fn(*blocks), axis=1), *matrices)
    # Some blocks a turn, so that the running total is read once for all of them.
    sums = [_sum(fn, alike, _UNROLLED) for _, alike in _by_dtype(matrices)]
    return added([jnp.sum(x, axis=1) for x in sums])


def over_blocks(
    fn: Callable[..., jax.Array],
    *matrices: list[jax.Array],
    entries: int | None = None,
    apart: bool = False,
) -> list[jax.Array]:
    """`fn` of every block of columns, side by side: of `[n, k]`, `[..., k]`.

    A block has up to so many entries, or as many as suit the device. With `apart` what
    makes the matrices, and what is made of results, is not compiled into the same loop
    of a CPU.
    """
    found: list[Any] = [None] * len(matrices[0])
    for places, alike in _by_dtype(matrices):
        columns = sum(x[0].shape[-1] for x in alike)
        n = len(alike[0][0])
        most = max(entries // n, 1) if entries else _most(n)
        # A loop of one turn is no loop.
        on_cpu = jax.default_backend() == "cpu"
        most = min(most, max(-(-columns // 2), 1)) if apart and on_cpu else most
        for place, x in zip(places, _over(fn, alike, most), strict=True):
            found[place] = x
    return found


def over_each(
    fn: Callable[[jax.Array], jax.Array], matrices: list[jax.Array]
) -> list[jax.Array]:
    """`fn` of each matrix, `[m, k]` of `[n, k]`, in large blocks.

    As much is written as is read, and a part of what is written for all would be
    written twice.
    """
    return [over_blocks(fn, [x], entries=_MANY_ENTRIES)[0] for x in matrices]


def _by_dtype(matrices: tuple[list[jax.Array], ...]) -> list[tuple[list[int], list]]:
    """Of each dtype, the places of its matrices, and the matrices with those beside."""
    dtypes = [x.dtype for x in matrices[0]]
    alike = list(zip(*matrices, strict=True))
    places = [
        [i for i, x in enumerate(dtypes) if x == dtype]
        for dtype in dict.fromkeys(dtypes)
    ]
    return [(chosen, [alike[i] for i in chosen]) for chosen in places]


def _sum(
    fn: Callable[..., jax.Array], parts: list[tuple[jax.Array, ...]], unroll: int
) -> jax.Array:
    blocks = _Blocks.of(parts, _most(len(parts[0][0])))

    def of_block(i: jax.Array) -> jax.Array:
        return fn(*blocks.read_once(i))

    if len(blocks) == 1:
        return of_block(jnp.int32(0))
    total = pytree.zeros(jax.eval_shape(of_block, jnp.int32(0)))
    # Several matrices' blocks are copies in a cache already.
    unroll = min(unroll, len(blocks)) if len(parts) == 1 else 1

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + of_block(in_steps(i))

    return jax.lax.fori_loop(0, len(blocks), add, total, unroll=unroll)


def _over(
    fn: Callable[..., jax.Array], parts: list[tuple[jax.Array, ...]], most: int
) -> list[jax.Array]:
    blocks = _Blocks.of(parts, most)
    sizes = [x[0].shape[-1] for x in parts]
    if len(blocks) == 1:
        return [fn(*blocks.read(jnp.int32(0)))[..., : sizes[0]]]
    first = np.cumsum([0, *blocks.sizes], dtype=np.int32)
    part = jax.eval_shape(lambda i: fn(*blocks.read(i)), jnp.int32(0))
    axis = len(part.shape) - 1

    def body(i: jax.Array, out: jax.Array) -> jax.Array:
        i = in_steps(i)
        which, start, _ = blocks.place(i)
        start += jnp.asarray(first)[which]
        part = fn(*blocks.read(i))
        return jax.lax.dynamic_update_slice_in_dim(out, part, start, axis)

    out = jnp.zeros((*part.shape[:-1], first[-1]), part.dtype)
    out = jax.lax.fori_loop(0, len(blocks), body, out)
    return [
        out[..., start : start + size]
        for start, size in zip(first.tolist(), sizes, strict=False)
    ]


def _most(n: int) -> int:
    """The most columns of a block of so many clients."""
    entries = _ENTRIES.get(jax.default_backend(), _ENTRIES_ELSEWHERE)
    return max(entries // max(n, 1), 2)


def _width(sizes: list[int], most: int, n: int) -> int:
    """The columns of blocks into which matrices are cut at the least cost."""
    if len(sizes) == 1:
        return max(min(sizes[0], _aligned(most)), 1)
    wide = [size for size in sizes if size >= most // 2]
    limit = min(most, *wide)
    cuts = {_aligned(limit)}
    for size in set(wide):
        number = -(-size // limit)
        cuts |= {_aligned(-(-size // k) + 31) for k in (number, number + 1)}
    beside = _COST // n

    def cost(width: int) -> int:
        return sum(-(-size // width) for size in sizes) * (width + beside)

    return min((x for x in cuts if x <= limit), key=cost)


def _aligned(width: int) -> int:
    """The most columns up to so many that fill an odd number of lines of a cache.

    Rows of 2**n bytes would share places in it, and odd ones are slow to read.
    """
    return width - (width - 16) % 32 if width >= 48 else width


def _filled(x: jax.Array, width: int) -> jax.Array:
    """With columns of zeros, if it has fewer than a block."""
    missing = max(width - x.shape[-1], 0)
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


def _columns(x: jax.Array, start: jax.Array, width: int) -> jax.Array:
    return pytree.wide(jax.lax.dynamic_slice_in_dim(x, start, width, axis=-1))
