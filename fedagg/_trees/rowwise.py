"""Trees whose leaves are stacked over clients: their rows, and sums of these."""

from typing import Any

import jax
import jax.numpy as jnp

from fedagg._trees import pytree
from fedagg._types import PyTree


def sum_over_clients(stacked: PyTree) -> PyTree:
    """Sums every leaf over its leading axis, in the leaf's own dtype."""

    def product(x: jax.Array) -> jax.Array:
        ones = jnp.ones(len(x), x.dtype)
        total = jnp.matmul(ones, x.reshape(len(x), -1), precision="highest")
        return total.reshape(x.shape[1:])

    def plain(x: jax.Array) -> jax.Array:
        return jnp.sum(x, axis=0, dtype=x.dtype)

    def total(x: jax.Array) -> jax.Array:
        if x.ndim == 1 or x.dtype not in (jnp.float32, jnp.int32, jnp.uint32):
            return plain(x)
        # On a CPU a sum over a few long rows is slow, by five times for floats and by
        # twenty for integers, and a product with ones is not.
        return jax.lax.platform_dependent(x, cpu=product, default=plain)

    return jax.tree.map(total, stacked)


def abstract_row(stacked: PyTree) -> PyTree:
    """The shapes and dtypes of one client's part."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked)


def rows(stacked: PyTree, start: jax.Array, size: int) -> PyTree:
    """`size` clients' part, from a traced start."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=0), stacked
    )


def put_rows(stacked: PyTree, start: jax.Array, rows: PyTree) -> PyTree:
    """Writes rows, one after the other, from a traced start."""
    return jax.tree.map(
        lambda x, row: jax.lax.dynamic_update_slice_in_dim(x, row, start, axis=0),
        stacked,
        rows,
    )


def cut_rows(stacked: PyTree, start: int, stop: int | None) -> PyTree:
    """The rows from a known start to a known end."""
    return jax.tree.map(lambda x: x[start:stop], stacked)


def count_rows(stacked: PyTree) -> int:
    """How many rows there are."""
    return len(pytree.flatten(stacked)[0][0])


def append_rows(stacked: PyTree, more: PyTree) -> PyTree:
    """Some rows, and others after them."""
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), stacked, more)


def take(stacked: PyTree, positions: Any) -> PyTree:
    """The rows at the given positions, or the one at a position."""
    return jax.tree.map(lambda x: x[positions], stacked)


def repeat(tree: PyTree, count: int) -> PyTree:
    """The same row so many times."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), tree)


def gather(stacked: PyTree, positions: jax.Array) -> PyTree:
    """The rows at the given positions, from whatever devices they are on."""

    def get(x: jax.Array) -> jax.Array:
        sharding = jax.typeof(x).sharding
        if not any(sharding.spec):
            return x[positions]
        whole = jax.NamedSharding(sharding.mesh, jax.P())
        return x.at[positions].get(out_sharding=whole)

    return jax.tree.map(get, stacked)


def set_rows(stacked: PyTree, positions: jax.Array, rows: PyTree) -> PyTree:
    """Writes rows to the given positions, but to none that does not exist.

    Each stays on the devices that it is on.
    """

    def put(x: jax.Array, row: jax.Array) -> jax.Array:
        sharding = jax.typeof(x).sharding
        if not any(sharding.spec):
            return x.at[positions].set(row, mode="drop")
        return x.at[positions].set(row, mode="drop", out_sharding=sharding)

    return jax.tree.map(put, stacked, taken_together(rows))


def pad_rows(stacked: PyTree, count: int) -> PyTree:
    """Repeats the last row `count` times, which typed keys can do too."""
    return jax.tree.map(lambda x: jnp.concatenate([x, *[x[-1:]] * count]), stacked)


def is_first(*keys: jax.Array) -> jax.Array:
    """Whether no row before has the same in every one of the keys `[n]`, `[n]`."""
    order = jnp.lexsort(keys)  # stable
    ordered = [x[order] for x in keys]
    differs = [x[1:] != x[:-1] for x in ordered]
    fresh = jnp.concatenate([jnp.ones(1, bool), jnp.any(jnp.stack(differs), axis=0)])
    return jnp.zeros(order.shape, bool).at[order].set(fresh)


def places_of(numbers: jax.Array, present: jax.Array, clients: int) -> jax.Array:
    """Where the client of each row `[n]` is among so many, as int32.

    It is `clients`, a place that none has, for who is absent, for a number that no
    client has, and for all rows of a client but its first.
    """
    numbers = pytree.wide(numbers)  # which 8 bits may not hold as many as there are
    is_known = (numbers >= 0) & (numbers < clients) & present
    places = jnp.where(is_known, numbers.astype(jnp.int32), clients)
    return jnp.where(is_first(places), places, clients)


def at_places(stacked: PyTree, places: jax.Array) -> PyTree:
    """The rows at these places; the last one for a place that none has."""
    return gather(stacked, jnp.minimum(places, count_rows(stacked) - 1))


def taken_together(tree: PyTree) -> PyTree:
    """Every leaf on all devices, if it is spread over an explicit axis."""

    def take(x: jax.Array) -> jax.Array:
        sharding = jax.typeof(x).sharding
        if not any(sharding.spec):
            return x
        return jax.sharding.reshard(x, jax.NamedSharding(sharding.mesh, jax.P()))

    return jax.tree.map(take, tree)
