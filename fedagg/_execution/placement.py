"""Where clients' rows are, on meshes whose axes are part of the types."""

import jax
import jax.numpy as jnp

from fedagg._trees import pytree
from fedagg._types import PyTree

_EXPLICIT = jax.sharding.AxisType.Explicit


def check_not_explicit(clients: PyTree, way: str) -> None:
    """Checks that no row is spread over an explicit axis of a mesh.

    Raises:
        ValueError: with what to write, since only `across` sums such rows.
    """
    for path, x in pytree.leaves_with_names(clients):
        spec = jax.typeof(x).sharding.spec
        if spec and spec[0] is not None:
            raise ValueError(
                f"{way} does not sum clients over devices, and {path} is spread over "
                f"the axis {spec[0]!r} of a mesh, which is explicit: give "
                f"sum_over=fedagg.across(mesh, {spec[0]!r}), or take the rows together "
                "by jax.sharding.reshard(updates, jax.P())."
            )


def dealt(sizes: jax.Array, devices: int) -> jax.Array:
    """An order of clients whose equal parts, one a device, have about the same size.

    The largest first, each to the device that has least so far and still has room.
    """
    n = len(sizes)
    room = n // devices

    def deal(carry: tuple, client: jax.Array):
        load, count = carry
        device = jnp.argmin(jnp.where(count < room, load, jnp.inf))
        place = device * room + count[device]
        load = load.at[device].add(sizes[client].astype(load.dtype))
        return (load, count.at[device].add(1)), place

    order = jnp.argsort(-sizes)
    nothing = jnp.zeros(devices, jnp.float32), jnp.zeros(devices, jnp.int32)
    _, places = jax.lax.scan(deal, nothing, order)
    return jnp.zeros_like(order).at[places].set(order)


def put_on_axis(clients: PyTree, mesh: jax.sharding.Mesh, axis: str) -> PyTree:
    """Puts the leading axis on a mesh axis that is explicit, part of the type.

    Raises:
        ValueError: if a further axis of a leaf is on one too.
    """
    for path, x in pytree.leaves_with_names(clients):
        spec = jax.typeof(x).sharding.spec
        if any(spec[1:]):
            raise ValueError(
                f"across: {path} is spread over explicit axes of the mesh, {spec}; "
                "make all but the first of type jax.sharding.AxisType.Auto, by "
                "`axis_types` of jax.make_mesh."
            )
    if mesh.abstract_mesh.axis_types[mesh.axis_names.index(axis)] != _EXPLICIT:
        return clients

    def put(x: jax.Array) -> jax.Array:
        return jax.sharding.reshard(x, jax.NamedSharding(mesh, jax.P(axis)))

    return jax.tree.map(put, clients)
