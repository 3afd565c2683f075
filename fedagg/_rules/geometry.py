"""How far clients are from each other, by one Gram matrix of their differences.

Inner products are of differences to one client that is among the others, since those
of the values themselves cancel: under a common offset of a thousand spreads, distances
would be a third off. A liar is no such client, however far it went.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._trees import checks, pytree
from fedagg._trees.blocks import over_blocks, over_each, sum_over_blocks
from fedagg._trees.cutting import PIECE
from fedagg._trees.matrix import Layout, norms_of
from fedagg._trees.shares import Share
from fedagg._trees.squares import squares_of
from fedagg._trees.weights import is_present
from fedagg._types import PyTree, Update

# Squares of a distance below this part of what they were worked out from are mostly
# rounding, and are worked out again.
_NEAR = 1e-2

# Sums of squares to the largest float over this leave room for those of differences.
_ROOM = 64.0


class Cohort(NamedTuple):
    """Stacked clients as matrices, and who of them is there."""

    layout: Layout
    matrices: list[jax.Array]  # [n, k] each
    weight: jax.Array  # [n]
    present: jax.Array  # [n]
    given: jax.Array  # [n] whether present, with no NaN, no infinity, no overflow
    norms: jax.Array  # [n] infinite for who is not given
    clean: jax.Array  # [] whether no row holds a NaN or an infinity
    share: Share  # of the coordinates

    @classmethod
    def of(cls, updates: Update, name: str, share: Share) -> "Cohort":
        """Reads all values once.

        Raises:
            TypeError: for a leaf that is not of a float dtype.
        """
        checks.check_floating(updates.value, name)
        layout = Layout.of(updates.value)
        matrices = layout.matrices(updates.value)
        present = is_present(updates.weight)

        squares = share.add(squares_of(matrices, present))
        given = present & has_room(squares)
        norms, clean = norms_of(squares, given), is_clean(squares)
        return cls(
            layout, matrices, updates.weight, present, given, norms, clean, share
        )

    def liars(self, f: int) -> jax.Array:
        """How many of those given may lie `[]`: `f`, less those found out.

        It is lowered to what so many clients can bear.
        """
        return liars_left(f, count(self.given), count(self.present & ~self.given))

    def combined(self, factors: jax.Array) -> PyTree:
        """The sum of values times factors, `[n]`, or for each row of `[m, n]`."""

        parts = weighted_sum(self.matrices, factors, self.given, self.clean)
        return self.layout.tree(parts)

    def row(self, chosen: jax.Array) -> PyTree:
        """The value of the client with this number `[]`; zeros if it is not given."""

        def picked(x: jax.Array) -> jax.Array:
            row = jax.lax.dynamic_index_in_dim(x, chosen, keepdims=False)
            return jnp.where(self.given[chosen], pytree.wide(row), 0.0)

        return self.layout.tree([picked(x) for x in self.matrices])

    def mean_of(self, chosen: jax.Array) -> PyTree:
        """The mean of the chosen `[n]`; zeros if there is none."""
        chosen = (chosen & self.given).astype(self.norms.dtype)
        return self.combined(chosen / jnp.maximum(jnp.sum(chosen), 1.0))


class Geometry(NamedTuple):
    """What rules see of the values: all but for where they are."""

    gram: jax.Array  # [n, n] of differences to one client; zero for who is not given
    squares: jax.Array  # [n, n] of distances; infinite to and from who is not given
    middle: jax.Array  # [] a client with many others near


def geometry(cohort: Cohort) -> Geometry:
    """Inner products and distances of those given.

    The first client that is subtracted has the median norm: no longer than the longest
    honest one, whoever it is. Where it is far from most, one that is near most of them
    takes its place.
    """
    size = count(cohort.given)
    by_norm = jnp.argsort(cohort.norms)
    found = _from(cohort, by_norm[jnp.maximum(size - 1, 0) // 2])
    rounding = jnp.diagonal(found.gram)[found.middle] * _NEAR
    near = _median_square(found.squares[found.middle], size) > rounding
    return jax.lax.cond(near, lambda: found, lambda: _from(cohort, found.middle))


def _from(cohort: Cohort, client: jax.Array) -> Geometry:
    given = cohort.given

    def products(x: jax.Array) -> jax.Array:
        origin = jax.lax.dynamic_index_in_dim(x, client, axis=0)
        moved = jnp.where(given[:, None], x - origin, jnp.zeros_like(x))
        return _inner_products(moved)

    gram = cohort.share.add(sum_over_blocks(products, cohort.matrices))
    gram = jnp.where(both(given), gram, jnp.zeros_like(gram))
    size = jnp.diagonal(gram)
    squares = jnp.maximum(size[:, None] + size[None] - gram - gram.T, 0.0)
    squares = jnp.where(jnp.eye(len(gram), dtype=bool), jnp.zeros_like(gram), squares)
    squares = jnp.where(both(given), squares, jnp.inf)
    middle = jnp.argmin(_median_square(squares, count(given)))
    return Geometry(gram, squares, middle)


def _inner_products(x: jax.Array) -> jax.Array:
    """Of the rows of a block `[n, k]`, with each other: `[n, n]`."""

    def at_once(x: jax.Array) -> jax.Array:
        return jnp.matmul(x, x.T, precision="highest")

    def in_pieces(x: jax.Array) -> jax.Array:
        """Each half of the clients with the other once, and pieces for all cores."""
        n, k = x.shape
        width = PIECE if k % PIECE == 0 else k
        x = x.reshape(n, k // max(width, 1), width).transpose(1, 0, 2)
        # What is written once, for each product to read.
        halves = jax.lax.optimization_barrier((x[:, : n // 2], x[:, n // 2 :]))

        def between(i: int, j: int) -> jax.Array:
            products = jnp.einsum(
                "pik,pjk->pij", halves[i], halves[j], precision="highest"
            )
            return jnp.sum(products, axis=0)

        across = between(0, 1)
        return jnp.block([[between(0, 0), across], [across.T, between(1, 1)]])

    return jax.lax.platform_dependent(x, cpu=in_pieces, default=at_once)


def _median_square(squares: jax.Array, size: jax.Array) -> jax.Array:
    """Within which square distance half of `size` clients are, along the last axis."""
    return jnp.take(jnp.sort(squares, axis=-1), size // 2, axis=-1)


def weighted_sum(
    matrices: list[jax.Array], factors: jax.Array, given: jax.Array, clean: jax.Array
) -> list[jax.Array]:
    """Rows of matrices times factors, `[n]` or `[m, n]`, summed over those given.

    Where it is known that no row holds a NaN or an infinity, they are read but once.
    """

    def product(x: jax.Array) -> jax.Array:
        kept = jnp.where(given[:, None], x, jnp.zeros_like(x))
        return jnp.matmul(factors.astype(x.dtype), kept, precision="highest")

    if factors.ndim > 1:
        return over_each(product, matrices)
    if any(x.dtype.itemsize < 4 for x in matrices):  # they would be copied as a whole
        return over_blocks(product, matrices)
    factors = jnp.where(given, factors, 0.0)

    def at_once() -> list[jax.Array]:
        return [
            jnp.matmul(factors.astype(x.dtype), x, precision="highest")
            for x in matrices
        ]

    # Zero times NaN is NaN, and then what is not given is cleared.
    return jax.lax.cond(clean, at_once, lambda: over_blocks(product, matrices))


def is_clean(squares: jax.Array) -> jax.Array:
    """Whether sums of squares `[n]` are those of rows without NaN and infinity `[]`."""
    return jnp.all(jnp.isfinite(squares))


def has_room(squares: jax.Array) -> jax.Array:
    """Which sums of squares are numbers, and not so large that sums overflow."""
    return squares < float(jnp.finfo(squares.dtype).max) / _ROOM


def count(chosen: jax.Array) -> jax.Array:
    """How many there are, as int32 `[]`."""
    return jnp.sum(chosen, dtype=jnp.int32)


def liars_left(f: int, number: jax.Array, found: jax.Array) -> jax.Array:
    """How many of a number may lie: `f`, less those found out, fewer than half."""
    return jnp.clip(f - found, 0, jnp.maximum(number - 1, 0) // 2)


def both(chosen: jax.Array) -> jax.Array:
    """Of which pairs both are chosen `[n, n]`, of `[n]`."""
    return chosen[:, None] & chosen[None]


def closest(distances: jax.Array, number: jax.Array) -> jax.Array:
    """Which are the `number` smallest along the last axis, the first of equals."""
    order = jnp.argsort(distances, axis=-1)
    return jnp.argsort(order, axis=-1).astype(jnp.int32) < number


def check_cohort(n: int, f: int, name: str) -> None:
    """Raises a ValueError for as many liars as half of the clients, or more.

    One row alone may stand for a round to which nobody came.
    """
    if n > 1 and n <= 2 * f:
        raise ValueError(
            f"{name}({f}) needs more than {2 * f} clients, of whom {f} may lie; "
            f"got {n}."
        )
