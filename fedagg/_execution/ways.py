"""Ways to sum a function over clients: at once, in chunks, across devices.

Each is a function `(fn, clients) -> sum of fn over the leading axis of clients`, where
`fn` takes one client and returns a pytree of arrays, each of the dtype it is summed in.
What it returns within `Kept` is not summed but comes back stacked, in the order of
clients. Arrays that `fn` needs besides may be bound to it with `jax.tree_util.Partial`.
"""

import contextlib
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import primitives

from fedagg._execution.builder import NotFoldable
from fedagg._execution.folding import measured_ahead, sum_folded
from fedagg._execution.loops import in_steps
from fedagg._execution.placement import check_not_explicit, put_on_axis, taken_together
from fedagg._execution.program import Kept, Program
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree, rowwise
from fedagg._types import PyTree

Fn = Callable[[PyTree], PyTree]
SumOver = Callable[[Fn, PyTree], PyTree]


def of_programs(
    sum_parted: Callable[[Program, PyTree], tuple[list, list]],
) -> SumOver:
    """A way to sum, from one for programs that return what is summed, and kept."""

    def sum_over(fn: Fn, clients: PyTree) -> PyTree:
        checks.count_clients(clients)
        program = Program.of(fn, clients)
        return program.joined(*sum_parted(program.parted(), clients))

    return sum_over


@prints_as_its_call
def at_once() -> SumOver:
    """Sums under one `vmap`: fastest where all messages fit in memory at once."""

    def sum_at_once(program: Program, clients: PyTree) -> tuple[list, list]:
        check_not_explicit(clients, "at_once()")
        return _sum_at_once(program, clients)

    return of_programs(sum_at_once)


def _sum_at_once(program: Program, clients: PyTree) -> tuple[list, list]:
    parts, kept = jax.vmap(program)(clients)
    return rowwise.sum_over_clients(parts), kept


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
    checks.check_whole(1, size=size)

    def sum_in_chunks(program: Program, clients: PyTree) -> tuple[list, list]:
        check_not_explicit(clients, f"in_chunks({size})")
        return _sum_in_chunks(program, clients, size)

    return of_programs(sum_in_chunks)


def _sum_in_chunks(program: Program, clients: PyTree, size: int) -> tuple[list, list]:
    n = checks.count_clients(clients)
    if size >= n:
        return _sum_at_once(program, clients)
    if program.has_effects and n % size:
        whole = n // size * size
        first = _sum_in_chunks(program, rowwise.cut_rows(clients, 0, whole), size)
        rest = _sum_at_once(program, rowwise.cut_rows(clients, whole, None))
        kept = rowwise.append_rows(first[1], rest[1])
        return pytree.add(first[0], rest[0]), kept
    zero, row = pytree.zeros(program.result)

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
    return jax.lax.scan(one, (zero, rowwise.repeat(row, n)), chunks)[0]


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

    def sum_across(program: Program, clients: PyTree) -> tuple[list, list]:
        n = checks.count_clients(clients)
        padding = -n % size
        present = jnp.arange(n + padding) < n
        if padding:
            clients = rowwise.pad_rows(clients, padding)
        clients, present = put_on_axis((clients, present), mesh, axis)

        def on_one_device(program: Program, clients: tuple[PyTree, jax.Array]):
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
        if padding:  # of rows that no longer fill the devices alike
            kept = rowwise.cut_rows(taken_together(kept), 0, n)
        return total, kept

    return of_programs(sum_across)


def _sum_present(
    program: Program, clients: PyTree, present: jax.Array
) -> tuple[list, list]:
    """One by one, without running the program of those who only fill up."""
    nothing = pytree.zeros(program.result)

    def body(total: PyTree, client: tuple[PyTree, jax.Array]):
        part, kept = jax.lax.cond(client[1], program, lambda row: nothing, client[0])
        return pytree.add(total, part), kept

    return jax.lax.scan(body, nothing[0], (clients, present))


# Bytes of messages that are worth holding at once, per kind of device: on a CPU about
# what stays in cache, elsewhere enough work for one launch.
_CHUNK_BYTES = {"cpu": 2**21}
_CHUNK_BYTES_ELSEWHERE = 2**28


@of_programs
def by_size(program: Program, clients: PyTree) -> tuple[list, list]:
    """The default way to sum.

    Dot products with the clients' rows where stages only keep, scale and measure them;
    else chunks whose messages fill a cache, or a launch, with measures taken ahead. On
    CPUs clients that convolve run one at a time.
    """
    check_not_explicit(clients, "the default way to sum")
    size = _chunk_size(program, checks.count_clients(clients))
    if program.has_effects:  # which a look at it in vain would run as well
        return _sum_in_chunks(program, clients, size)
    if not program.result[1]:
        with contextlib.suppress(NotFoldable):
            return sum_folded(program, clients)
    ahead = measured_ahead(program, clients)
    if ahead is not None:
        fn, clients = ahead
        program = Program.of(fn, clients)
    return _sum_in_chunks(program, clients, size)


def _chunk_size(program: Program, n: int) -> int:
    """Clients that run side by side, in chunks of `n` that are as equal as can be."""
    backend = jax.default_backend()
    if backend == "cpu" and program.runs(primitives.conv_general_dilated_p):
        return 1  # kernels of their own, side by side, take twice the time
    budget = _CHUNK_BYTES.get(backend, _CHUNK_BYTES_ELSEWHERE)
    most = max(1, budget // max(1, pytree.count_bytes(program.result)))
    return math.ceil(n / math.ceil(n / most))
