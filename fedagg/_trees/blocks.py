"""Sums and results over blocks of columns of stacked clients.

One loop goes over the blocks of all matrices `[n, k]` of a dtype, so that a program is
as large for many leaves as for one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._trees import pytree
from fedagg._trees.cutting import (
    ENTRIES,
    ODD_LINES,
    PIECES,
    SUMMED,
    Blocks,
    most_columns,
)
from fedagg._trees.loops import in_steps
from fedagg._trees.reductions import added, by_dtype

_MANY = 2**22  # entries of a block that no cache holds
_WIDE = 16  # blocks, of which a matrix has a loop of its own
_LOOPS = 2  # of their own, of a dtype


def sum_over_blocks(
    fn: Callable[..., jax.Array], *matrices: list[jax.Array]
) -> jax.Array:
    """The sum of `fn` over blocks of columns; of several lists, over blocks alike.

    Of columns of zeros, `fn` makes zeros.
    """
    return added([_sum(fn, together) for together in _together(matrices)])


def over_blocks(
    fn: Callable[[jax.Array], jax.Array],
    matrices: list[jax.Array],
    *,
    entries: int | None = None,
    apart: bool = False,
) -> list[jax.Array]:
    """`fn` of every block of columns, side by side: of `[n, k]`, `[..., k]`.

    A block has up to so many entries, or as many as suit the device. With `apart` what
    makes the matrices, and what is made of results, is not compiled into the same loop
    of a CPU.
    """
    found: list[Any] = [None] * len(matrices)
    for places, alike in alike_by_dtype((matrices,)):
        columns = sum(x[0].shape[-1] for x in alike)
        n = len(alike[0][0])
        most = max(entries // n, 1) if entries else most_columns(n, ENTRIES)
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
    return [over_blocks(fn, [x], entries=_MANY)[0] for x in matrices]


def alike_by_dtype(
    matrices: tuple[list[jax.Array], ...],
) -> list[tuple[list[int], list]]:
    """Of each dtype, the places of its matrices, and the matrices with those beside."""
    alike = list(zip(*matrices, strict=True))
    return [(chosen, [alike[i] for i in chosen]) for chosen in by_dtype(matrices[0])]


def _together(matrices: tuple[list[jax.Array], ...]) -> list[list]:
    """Of each dtype the widest matrices, each by itself, and the others together.

    A loop over several copies each block by one core of a CPU first.
    """
    groups = []
    for _, alike in alike_by_dtype(matrices):
        by_width = sorted(alike, key=lambda x: -x[0].shape[-1])
        least = _WIDE * most_columns(len(alike[0][0]), SUMMED)
        wide = [x for x in by_width[:_LOOPS] if x[0].shape[-1] >= least]
        groups += [[x] for x in wide]
        groups += [by_width[len(wide) :]] if len(wide) < len(alike) else []
    return groups


def _sum(fn: Callable[..., jax.Array], parts: list[tuple[jax.Array, ...]]) -> jax.Array:
    blocks = Blocks.of(parts, most_columns(len(parts[0][0]), SUMMED), PIECES)
    # What is left of one matrix is apart. Blocks of several are copied in any case.
    is_one = len(parts) == 1
    whole = int(blocks.sizes[0]) // blocks.width if is_one else len(blocks)
    left = tuple(x[..., whole * blocks.width :] for x in blocks.parts[0])

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + fn(*blocks.read(in_steps(i), once=not is_one))

    total = pytree.zeros(jax.eval_shape(fn, *blocks.read(jnp.int32(0))))
    total = jax.lax.fori_loop(0, whole, add, total)
    return total + fn(*map(pytree.wide, left)) if is_one and left[0].size else total


def _over(
    fn: Callable[..., jax.Array], parts: list[tuple[jax.Array, ...]], most: int
) -> list[jax.Array]:
    blocks = Blocks.of(parts, most, ODD_LINES)
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
