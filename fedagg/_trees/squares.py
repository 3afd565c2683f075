"""Sums of squares along rows of stacked clients, as quick as they are read."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._trees import pytree
from fedagg._trees.blocks import alike_by_dtype, sum_over_blocks
from fedagg._trees.cutting import SUMMED, columns_from, most_columns, placed
from fedagg._trees.loops import in_steps
from fedagg._trees.reductions import added

# Blocks that are added to a running total in one reading of it.
_TOGETHER = 4

_Parts = tuple[jax.Array, ...]  # a matrix `[n, k]`, and what is `[k]` beside it


def row_squares(x: jax.Array) -> jax.Array:
    """Sums of squares of the rows of `[n, k]`."""
    return jnp.einsum("nk,nk->n", x, x, precision="highest")


@jax.custom_jvp
def squares_of(matrices: list[jax.Array], present: jax.Array) -> jax.Array:
    """Sums of squares of rows of all matrices `[n]`, read once.

    Those of absent clients have no derivatives.
    """
    # In blocks, what has to be widened: a whole matrix of it would be written.
    return added(
        [
            row_squares(x)
            if x.dtype.itemsize >= 4
            else sum_over_blocks(row_squares, [x])
            for x in matrices
        ]
    )


@squares_of.defjvp
def _derivative_of_squares(primals: tuple, tangents: tuple) -> tuple:
    matrices, present = primals

    def of_present(matrices: list[jax.Array]) -> jax.Array:
        def squares(x: jax.Array) -> jax.Array:
            return row_squares(with_derivatives(present, x))

        return sum_over_blocks(squares, matrices)

    return jax.jvp(of_present, (matrices,), (tangents[0],))


def with_derivatives(present: jax.Array, x: jax.Array) -> jax.Array:
    """The same `[n, k]`, without derivatives by what is of absent clients.

    Which may be anything, and so may those.
    """
    return jnp.where(present[:, None], x, jax.lax.stop_gradient(x))


def squares_along_rows(
    fn: Callable[..., jax.Array], *matrices: list[jax.Array]
) -> jax.Array:
    """The sums of squares `[n]` of the rows that `fn` makes of blocks of columns.

    `fn` works entry by entry. Of several lists it gets blocks alike.
    """

    def of_rows(*block: jax.Array) -> jax.Array:
        return row_squares(fn(*block))

    if jax.default_backend() != "cpu":
        return sum_over_blocks(of_rows, *matrices)
    # Blocks are added entry by entry, and only their sum is summed along rows.
    width = 2 * most_columns(len(matrices[0][0]), SUMMED)
    sums = []
    for _, alike in alike_by_dtype(matrices):
        wide = [parts for parts in alike if parts[0].shape[-1] >= width]
        narrow = [parts for parts in alike if parts[0].shape[-1] < width]
        sums += [jnp.sum(_entrywise(fn, wide, width), axis=1)] if wide else []
        sums += [of_rows(*map(pytree.wide, parts)) for parts in narrow]
    return added(sums)


def _entrywise(
    fn: Callable[..., jax.Array], matrices: list[_Parts], width: int
) -> jax.Array:
    """The sum of squares over blocks of all matrices `[n, width]`."""
    blocks = [-(-parts[0].shape[-1] // width) for parts in matrices]
    turns = [-(-count // _TOGETHER) for count in blocks]
    # A turn of a matrix adds so many: as few as make up for all of them.
    together = [-(-count // n) for count, n in zip(blocks, turns, strict=True)]
    before = np.cumsum([0, *turns], dtype=np.int32)

    def adding(parts: _Parts, number: int) -> Callable:
        size = parts[0].shape[-1]

        def add(turn: jax.Array, total: jax.Array) -> jax.Array:
            for i in range(number):
                column = (turn * number + i) * width
                # The last ones begin early enough to be as wide as the others.
                start = jnp.minimum(column, size - width)
                made = fn(*(columns_from(x, start, width) for x in parts))
                if size % (number * width):
                    fresh = jnp.arange(width, dtype=jnp.int32) >= column - start
                    made = jnp.where(fresh[None], made, 0.0)
                total += jnp.square(made)
            return total

        return add

    adds = [adding(*x) for x in zip(matrices, together, strict=True)]

    def body(i: jax.Array, total: jax.Array) -> jax.Array:
        which, turn = placed(in_steps(i), before)
        return jax.lax.switch(which, adds, turn, total)

    block = [columns_from(x, jnp.int32(0), width) for x in matrices[0]]
    total = pytree.zeros(jax.eval_shape(fn, *block))
    return jax.lax.fori_loop(0, int(before[-1]), body, total)
