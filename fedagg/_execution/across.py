"""A way to sum a function over clients across devices."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._execution.placement import dealt, put_on_axis
from fedagg._execution.program import Kept, Program
from fedagg._execution.ways import SumOver, by_size, of_programs
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree, rowwise
from fedagg._trees.kinds import check_kind
from fedagg._trees.table import examples_of_each
from fedagg._types import PyTree


@prints_as_its_call
def across(
    mesh: jax.sharding.Mesh, axis: str = "clients", inner: SumOver | None = None
) -> SumOver:
    """Sums across the devices of one axis of a mesh, on one host or many.

    Each device sums its own clients with `inner`, and one `psum` of one message adds
    the devices up; further axes of the mesh are left to the compiler. Put the clients
    there with `NamedSharding(mesh, P(axis))`, and the state and the parameters with
    `P()`, so that the second round does not compile anew. Leaves that are spread over
    another axis as well need that axis to be of `jax.sharding.AxisType.Auto`.

    Clients of a `ClientTable` go to devices such that these have about as many examples
    each; give its rows to all of them, by `P()`.

    Args:
        mesh: the devices.
        axis: the name of the mesh's axis that clients are spread over. Where their
            number is not a multiple of its size, absent clients fill it up, which
            copies the updates.
        inner: how a device sums its own clients. None chooses from the sizes.

    Raises:
        TypeError: if `mesh` is no mesh.
        ValueError: if the mesh has no such axis; in a round, if a leaf is spread over
            another axis that is explicit.
    """
    check_kind(jax.sharding.Mesh, mesh=mesh)
    if axis not in mesh.axis_names:
        raise ValueError(
            f"axis: expected one of the mesh's axes {mesh.axis_names}, got {axis!r}. "
            f"Give its name, across(mesh, {mesh.axis_names[0]!r})."
        )
    inner = by_size if inner is None else inner
    size = mesh.shape[axis]

    def sum_across(program: Program, clients: PyTree) -> tuple[list, list]:
        n = checks.count_clients(clients)
        padding = -n % size
        present = jnp.arange(n + padding) < n
        if padding:
            clients = rowwise.pad_rows(clients, padding)
        sizes = examples_of_each(clients)
        order = None
        if sizes is not None:
            order = dealt(jnp.where(present, sizes, 0), size)
            clients, present = rowwise.take(
                rowwise.taken_together((clients, present)), order
            )
        clients, present = put_on_axis((clients, present), mesh, axis)

        def on_one_device(program: Program, clients: tuple[PyTree, jax.Array]):
            program = program.on_a_part(clients[0])

            def contribution(client: tuple[PyTree, jax.Array]):
                part, kept = program(client[0])
                return pytree.keep(client[1], part) if padding else part, Kept(kept)

            if padding and program.has_effects:
                total, kept = _sum_present(program, *clients)
                return jax.lax.psum(total, axis), kept
            total, kept = inner(contribution, clients)
            return jax.lax.psum(total, axis), kept.value

        total, kept = jax.shard_map(
            on_one_device,
            mesh=mesh,
            in_specs=(jax.P(), jax.P(axis)),
            out_specs=(jax.P(), jax.P(axis)),
            axis_names={axis},
            check_vma=False,  # a scan's carry of plain zeros does not type under it
        )(program, (clients, present))
        if order is not None:
            kept = rowwise.take(rowwise.taken_together(kept), jnp.argsort(order))
        if padding:  # of rows that no longer fill the devices alike
            kept = rowwise.cut_rows(rowwise.taken_together(kept), 0, n)
        return total, kept

    return OverDevices(of_programs(sum_across), mesh, axis)


class OverDevices(NamedTuple):
    """A way to sum, and the devices on which clients then are."""

    sum_over: SumOver
    mesh: jax.sharding.Mesh
    axis: str
    sentence: str = ""

    def __call__(self, fn: Callable[[PyTree], PyTree], clients: PyTree) -> PyTree:
        return self.sum_over(fn, clients)

    def __repr__(self) -> str:
        return self.sentence


def _sum_present(
    program: Program, clients: PyTree, present: jax.Array
) -> tuple[list, list]:
    """One by one, without running the program of those who only fill up."""
    nothing = pytree.zeros(program.result)

    def body(total: PyTree, client: tuple[PyTree, jax.Array]):
        part, kept = jax.lax.cond(client[1], program, lambda row: nothing, client[0])
        return pytree.add(total, part), kept

    return jax.lax.scan(body, nothing[0], (clients, present))
