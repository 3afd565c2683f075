"""Ways to sum a function over clients: at once, in chunks, across devices.

Each is a function `(fn, clients) -> sum of fn over the leading axis of clients`, where
`fn` takes one client and returns a pytree of arrays, each of the dtype it is summed in.
Arrays that it needs besides may be bound to it with `jax.tree_util.Partial`.
"""

import contextlib
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from fedagg._execution.builder import NotFoldable
from fedagg._execution.folding import measured_ahead, sum_folded
from fedagg._execution.loops import in_steps
from fedagg._execution.program import Program
from fedagg._trees import checks, pytree
from fedagg._types import PyTree

SumOver = Callable[[Callable[[PyTree], PyTree], PyTree], PyTree]


def at_once() -> SumOver:
    """Sums under one `vmap`: fastest where all messages fit in memory at once."""

    def sum_over(fn: Callable[[PyTree], PyTree], clients: PyTree) -> PyTree:
        return pytree.sum_over_clients(jax.vmap(fn)(clients))

    return sum_over


def in_chunks(size: int) -> SumOver:
    """Sums chunk by chunk under `scan`, in memory for `size` messages.

    Any number of clients will do: the last chunk is filled up with clients that were
    summed before, whose part is left out. A `size` above the number of clients is
    `at_once`.

    Args:
        size: clients per chunk. Positive.

    Raises:
        ValueError: if `size` is not a positive integer.
    """
    if not isinstance(size, (int, np.integer)) or size < 1:
        raise ValueError(f"in_chunks takes a positive integer, got {size=}.")

    def sum_over(fn: Callable[[PyTree], PyTree], clients: PyTree) -> PyTree:
        n = checks.count_clients(clients)
        if size >= n:
            return at_once()(fn, clients)

        def body(total: PyTree, chunk: jax.Array):
            # The last chunk starts early, so that no row is copied to fill it.
            start = in_steps(jnp.minimum(chunk * size, n - size))
            parts = jax.vmap(fn)(pytree.rows(clients, start, size))
            if n % size:
                fresh = start + jnp.arange(size, dtype=start.dtype) >= chunk * size
                parts = jax.vmap(pytree.keep)(fresh, parts)
            return pytree.add(total, pytree.sum_over_clients(parts)), None

        def body_of_one(total: PyTree, client: jax.Array):
            return pytree.add(total, fn(pytree.take(clients, in_steps(client)))), None

        zero = pytree.zeros(jax.eval_shape(fn, pytree.abstract_row(clients)))
        chunks = jnp.arange(math.ceil(n / size), dtype=jnp.int32)
        return jax.lax.scan(body_of_one if size == 1 else body, zero, chunks)[0]

    return sum_over


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

    def sum_over(fn: Callable[[PyTree], PyTree], clients: PyTree) -> PyTree:
        n = checks.count_clients(clients)
        padding = -n % size
        present = jnp.arange(n + padding) < n
        if padding:
            clients = pytree.pad_rows(clients, padding)
        clients, present = _spread((clients, present), mesh, axis)

        def on_one_device(fn: Partial, clients: tuple[PyTree, jax.Array]) -> PyTree:
            def contribution(client: tuple[PyTree, jax.Array]) -> PyTree:
                part = fn(client[0])
                return pytree.keep(client[1], part) if padding else part

            return jax.lax.psum(inner(contribution, clients), axis)

        return jax.shard_map(
            on_one_device,
            mesh=mesh,
            in_specs=(jax.P(), jax.P(axis)),
            out_specs=jax.P(),
            axis_names={axis},
            check_vma=False,  # a scan's carry of plain zeros does not type under it
        )(pytree.as_partial(fn), (clients, present))

    return sum_over


def _spread(clients: PyTree, mesh: jax.sharding.Mesh, axis: str) -> PyTree:
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

    def spread(x: jax.Array) -> jax.Array:
        return jax.sharding.reshard(x, jax.NamedSharding(mesh, jax.P(axis)))

    return jax.tree.map(spread, clients)


_EXPLICIT = jax.sharding.AxisType.Explicit

# Bytes of messages that are worth holding at once, per kind of device: on a CPU about
# what stays in cache, elsewhere enough work for one launch.
_CHUNK_BYTES = {"cpu": 2**21}
_CHUNK_BYTES_ELSEWHERE = 2**28


def by_size(fn: Callable[[PyTree], PyTree], clients: PyTree) -> PyTree:
    """The default way to sum.

    Dot products with the clients' rows where stages only keep, scale and measure them;
    else chunks whose messages fill a cache, or a launch, with measures taken ahead.
    """
    program = Program.of(fn, clients)
    with contextlib.suppress(NotFoldable):
        return sum_folded(program, clients)
    fn, clients = measured_ahead(program, clients) or (fn, clients)
    return in_chunks(_chunk_size(fn, clients))(fn, clients)


def in_turn(fn: Callable[..., PyTree], *clients: PyTree) -> PyTree:
    """The function of each client, stacked, for as many at once as a chunk has."""

    def of_one(client: tuple) -> PyTree:
        return fn(*client)

    return jax.lax.map(of_one, clients, batch_size=_chunk_size(of_one, clients))


def _chunk_size(fn: Callable[[PyTree], PyTree], clients: PyTree) -> int:
    message = jax.eval_shape(fn, pytree.abstract_row(clients))
    budget = _CHUNK_BYTES.get(jax.default_backend(), _CHUNK_BYTES_ELSEWHERE)
    return max(1, budget // max(1, pytree.count_bytes(message)))
