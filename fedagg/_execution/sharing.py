"""A rule across devices: each works on some coordinates of all clients.

Clients are resharded to coordinates by one all-to-all for each dtype, in which a device
sends as much as it keeps. No device ever has the values of all clients.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedagg._execution.placement import put_on_axis
from fedagg._trees import pytree, rowwise
from fedagg._trees.matrix import Layout
from fedagg._trees.shares import Share
from fedagg._types import Output, PyTree, Rule, Update


def shared_out(
    rule: Rule, mesh: jax.sharding.Mesh, axis: str
) -> Callable[[PyTree, Update, jax.Array | None], Output]:
    """`combine` of a rule, for clients that are spread over an axis of a mesh.

    Raises:
        ValueError: if the rule does not say how it runs on a share of the coordinates.
    """
    combine_share = rule.combine_share
    if combine_share is None:
        raise ValueError(
            f"sum_over: {rule} does not say how it runs across devices; give it a "
            "combine_share, or leave sum_over out."
        )
    devices = mesh.shape[axis]

    def combine(state: PyTree, updates: Update, key: jax.Array | None) -> Output:
        # Errors name leaves as they are, not those of a share.
        jax.eval_shape(rule.combine, *pytree.abstract((state, updates, key)))
        n = len(updates.weight)
        if n % devices:
            updates = rowwise.pad_rows(updates, -n % devices)
        updates = put_on_axis(updates, mesh, axis)

        def on_one_device(state: PyTree, updates: Update, key: jax.Array | None):
            layout = Layout.by_dtype(updates.value)
            columns = [_coordinates(x, axis) for x in layout.matrices(updates.value)]
            weight = jax.lax.all_gather(updates.weight, axis, tiled=True)
            share = Share(
                add=lambda x: jax.lax.psum(x, axis),
                cut=lambda tree: [_own(x, axis) for x in layout.vectors(tree)],
                join=lambda columns: _joined(layout, columns, axis),
            )
            everyone = Update([x[:n] for x in columns], weight[:n])
            output = combine_share(state, everyone, key, share)
            return output._replace(value=share.join(output.value))

        return jax.shard_map(
            on_one_device,
            mesh=mesh,
            in_specs=(jax.P(), jax.P(axis), jax.P()),
            out_specs=jax.P(),
            axis_names={axis},
            check_vma=False,  # as in across
        )(state, updates, key)

    return combine


def _padded(x: jax.Array, axis: str) -> jax.Array:
    """Coordinates filled up with zeros, for as many on each device, one or more."""
    devices = jax.lax.axis_size(axis)
    missing = -x.shape[-1] % devices if x.shape[-1] else devices
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])


def _coordinates(x: jax.Array, axis: str) -> jax.Array:
    """Of some clients' rows `[m, d]`, all clients' `[n, k]`."""
    x = _padded(x, axis)
    return jax.lax.all_to_all(x, axis, split_axis=1, concat_axis=0, tiled=True)


def _own(x: jax.Array, axis: str) -> jax.Array:
    x = _padded(x, axis)
    size = len(x) // jax.lax.axis_size(axis)
    start = jax.lax.axis_index(axis) * size
    return jax.lax.dynamic_slice_in_dim(x, start, size)


def _joined(layout: Layout, columns: list[jax.Array], axis: str) -> PyTree:
    sizes = [sum(math.prod(layout.shapes[i]) for i in g) for g in layout.groups]
    whole = [jax.lax.all_gather(x, axis, tiled=True) for x in columns]
    return layout.tree([x[:size] for x, size in zip(whole, sizes, strict=True)])
