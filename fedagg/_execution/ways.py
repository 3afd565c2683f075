"""Ways to sum a function over clients: at once, in chunks, across devices.

Each is a function `(fn, clients) -> (sum, kept)`, where `fn` takes one client and
returns a pair: a pytree of arrays that is summed over the leading axis of clients, each
in its own dtype, and a pytree that clients keep, which comes back stacked in their
order. Arrays that `fn` needs besides may be bound to it with `jax.tree_util.Partial`.
"""

import contextlib
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._execution.folding import measured_ahead, sum_folded
from fedagg._execution.loops import in_steps
from fedagg._execution.placement import check_not_explicit, put_on_axis
from fedagg._execution.program import Program
from fedagg._execution.rows import NotFoldable
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree, rowwise
from fedagg._types import PyTree

Fn = Callable[[PyTree], tuple[PyTree, PyTree]]
SumOver = Callable[[Fn, PyTree], tuple[PyTree, PyTree]]


@prints_as_its_call
def at_once() -> SumOver:
    """Sums under one `vmap`: fastest where all messages fit in memory at once."""

    def sum_over(fn: Fn, clients: PyTree) -> tuple[PyTree, PyTree]:
        check_not_explicit(clients, "at_once()")
        parts, kept = jax.vmap(fn)(clients)
        return rowwise.sum_over_clients(parts), kept

    return sum_over


@prints_as_its_call
def in_chunks(size: int) -> SumOver:
    """Sums chunk by chunk under `scan`, in memory for `size` messages.

    Any number of clients will do: the last chunk is filled up with clients that were
    summed before, whose part is left out. (Where clients call the host, as
    `jax.debug.print` does, it is a smaller one instead, which takes longer to compile.)
    A `size` above the number of clients is `at_once`.

    Args:
        size: clients per chunk. Positive.

    Raises:
        ValueError: if `size` is not a positive integer.
    """
    is_whole = isinstance(size, (int, np.integer)) and not isinstance(size, bool)
    if not is_whole or size < 1:
        raise ValueError(f"in_chunks takes a positive integer, got {size=}.")

    def sum_over(fn: Fn, clients: PyTree) -> tuple[PyTree, PyTree]:
        n = checks.count_clients(clients)
        check_not_explicit(clients, f"in_chunks({size})")
        if size >= n:
            return at_once()(fn, clients)
        program = Program.of(fn, clients)
        zero, row = pytree.zeros(program.result)
        kept = rowwise.repeat(row, n)
        if program.has_effects and n % size:
            return _in_unequal_chunks(program, clients, size)

        def body(carry: tuple, chunk: jax.Array):
            total, kept = carry
            # The last chunk starts early, so that no row is copied to fill it.
            start = in_steps(jnp.minimum(chunk * size, n - size))
            parts, rows = jax.vmap(program)(rowwise.rows(clients, start, size))
            if n % size:
                fresh = start + jnp.arange(size, dtype=start.dtype) >= chunk * size
                parts = jax.vmap(pytree.keep)(fresh, parts)
            total = pytree.add(total, rowwise.sum_over_clients(parts))
            return (total, rowwise.put_rows(kept, start, rows)), None

        def body_of_one(carry: tuple, client: jax.Array):
            total, kept = carry
            client = in_steps(client)
            part, row = program(rowwise.take(clients, client))
            row = rowwise.repeat(row, 1)
            return (pytree.add(total, part), rowwise.put_rows(kept, client, row)), None

        chunks = jnp.arange(math.ceil(n / size), dtype=jnp.int32)
        one = body_of_one if size == 1 else body
        return jax.lax.scan(one, (zero, kept), chunks)[0]

    return sum_over


def _in_unequal_chunks(
    program: Program, clients: PyTree, size: int
) -> tuple[PyTree, PyTree]:
    """Every client once, in chunks of which the last is smaller."""
    whole = checks.count_clients(clients) // size * size
    totals, kept = in_chunks(size)(program, rowwise.cut_rows(clients, 0, whole))
    rest, kept_rest = at_once()(program, rowwise.cut_rows(clients, whole, None))
    return pytree.add(totals, rest), rowwise.append_rows(kept, kept_rest)


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

    Args:
        mesh: the devices.
        axis: the name of the mesh's axis that clients are spread over. Where their
            number is not a multiple of its size, absent clients fill it up, which
            copies the updates.
        inner: how a device sums its own clients. None chooses from the sizes.

    Raises:
        ValueError: if the mesh has no such axis; in a round, if a leaf is spread over
            another axis that is explicit.
    """
    if axis not in mesh.axis_names:
        raise ValueError(
            f"axis: expected one of the mesh's axes {mesh.axis_names}, got {axis!r}."
        )
    inner = by_size if inner is None else inner
    size = mesh.shape[axis]

    def sum_over(fn: Fn, clients: PyTree) -> tuple[PyTree, PyTree]:
        n = checks.count_clients(clients)
        padding = -n % size
        present = jnp.arange(n + padding) < n
        if padding:
            clients = rowwise.pad_rows(clients, padding)
        clients, present = put_on_axis((clients, present), mesh, axis)

        def on_one_device(fn: Fn, clients: tuple[PyTree, jax.Array]):
            def present_only(client: tuple[PyTree, jax.Array]):
                part, kept = fn(client[0])
                return pytree.keep(client[1], part), kept

            if padding and Program.of(fn, clients[0]).has_effects:
                total, kept = _only_present(fn, *clients)
            elif padding:
                total, kept = inner(present_only, clients)
            else:
                total, kept = inner(fn, clients[0])
            return jax.lax.psum(total, axis), kept

        total, kept = jax.shard_map(
            on_one_device,
            mesh=mesh,
            in_specs=(jax.P(), jax.P(axis)),
            out_specs=(jax.P(), jax.P(axis)),
            axis_names={axis},
            check_vma=False,  # a scan's carry of plain zeros does not type under it
        )(_with_arrays(fn), (clients, present))
        return total, rowwise.cut_rows(kept, 0, n) if padding else kept

    return sum_over


def _with_arrays(fn: Fn) -> Fn:
    """The function as a pytree of the arrays that are bound to it, if any."""
    return fn if isinstance(fn, Program) else pytree.as_partial(fn)


def _only_present(fn: Fn, clients: PyTree, present: jax.Array) -> tuple[PyTree, PyTree]:
    """One by one, without a call of the function for those who only fill up."""
    program = Program.of(fn, clients)
    nothing = pytree.zeros(program.result)

    def body(total: PyTree, client: tuple[PyTree, jax.Array]):
        part, kept = jax.lax.cond(client[1], program, lambda row: nothing, client[0])
        return pytree.add(total, part), kept

    return jax.lax.scan(body, nothing[0], (clients, present))


# Bytes of messages that are worth holding at once, per kind of device: on a CPU about
# what stays in cache, elsewhere enough work for one launch.
_CHUNK_BYTES = {"cpu": 2**21}
_CHUNK_BYTES_ELSEWHERE = 2**28


def by_size(fn: Fn, clients: PyTree) -> tuple[PyTree, PyTree]:
    """The default way to sum.

    Dot products with the clients' rows where stages only keep, scale and measure them;
    else chunks whose messages fill a cache, or a launch, with measures taken ahead.
    """
    check_not_explicit(clients, "the default way to sum")
    program = Program.of(fn, clients)
    if program.has_effects:  # which trying another way would repeat
        return in_chunks(_chunk_size(program))(program, clients)
    part, kept = program.result
    if not pytree.flatten(kept)[0]:
        with contextlib.suppress(NotFoldable):
            return sum_folded(program, clients)
    fn, clients = measured_ahead(program, clients) or (program, clients)
    return in_chunks(_chunk_size(program))(fn, clients)


def _chunk_size(program: Program) -> int:
    budget = _CHUNK_BYTES.get(jax.default_backend(), _CHUNK_BYTES_ELSEWHERE)
    return max(1, budget // max(1, pytree.count_bytes(program.result)))
