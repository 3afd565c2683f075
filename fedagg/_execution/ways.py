"""Ways to sum a function over clients on one device: at once, in chunks.

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
from fedagg._execution.placement import check_not_explicit
from fedagg._execution.program import Program
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree, rowwise
from fedagg._trees.loops import in_steps
from fedagg._trees.table import examples_of_each
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


def _sum_at_once(
    program: Program, clients: PyTree, cost: float | None = None
) -> tuple[list, list]:
    parts, kept = _run_together(program, clients, cost)
    return rowwise.sum_over_clients(parts), kept


@prints_as_its_call
def in_chunks(size: int) -> SumOver:
    """Sums chunk by chunk under `scan`, in memory for `size` messages.

    Any number of clients will do: the last chunk is filled up with clients that were
    summed before, whose part is left out. (Where clients call the host, as
    `jax.debug.print` does, it is a smaller one instead, which takes longer to compile.)
    A `size` above the number of clients is `at_once`. Clients of a `ClientTable` share
    a chunk with those of like size, since all wait for the largest.

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


def _sum_in_chunks(
    program: Program,
    clients: PyTree,
    size: int,
    unroll: int = 1,
    cost: float | None = None,
) -> tuple[list, list]:
    n = checks.count_clients(clients)
    if size >= n:
        return _sum_at_once(program, clients, cost)
    if program.has_effects and n % size:
        whole = n // size * size
        first = _sum_in_chunks(program, rowwise.cut_rows(clients, 0, whole), size)
        rest = _sum_at_once(program, rowwise.cut_rows(clients, whole, None))
        kept = rowwise.append_rows(first[1], rest[1])
        return pytree.add(first[0], rest[0]), kept
    zero, row = pytree.zeros(program.result)
    order = _by_size(clients) if size > 1 else None

    def body(carry: tuple, chunk: jax.Array):
        total, kept = carry
        # The last chunk starts early, so that no row is copied to fill it.
        start = in_steps(jnp.minimum(chunk * size, n - size))
        if order is None:
            places, chosen = None, rowwise.rows(clients, start, size)
        else:
            places = rowwise.rows(order, start, size)
            chosen = rowwise.take(clients, places)
        parts, rows = _run_together(program, chosen, cost)
        if n % size:
            fresh = start + jnp.arange(size, dtype=start.dtype) >= chunk * size
            parts = jax.vmap(pytree.keep)(fresh, parts)
        total = pytree.add(total, rowwise.sum_over_clients(parts))
        if places is None:
            kept = rowwise.put_rows(kept, start, rows)
        else:
            kept = rowwise.set_rows(kept, places, rows)
        return (total, kept), None

    def body_of_one(carry: tuple, client: jax.Array):
        total, kept = carry
        client = in_steps(client)
        part, row = program(rowwise.take(clients, client))
        row = rowwise.repeat(row, 1)
        return (pytree.add(total, part), rowwise.put_rows(kept, client, row)), None

    chunks = jnp.arange(math.ceil(n / size), dtype=jnp.int32)
    one = body_of_one if size == 1 else body
    carry = zero, rowwise.repeat(row, n)
    return jax.lax.scan(one, carry, chunks, unroll=unroll)[0]


def _run_together(
    program: Program, clients: PyTree, cost: float | None
) -> tuple[list, list]:
    """Results of clients side by side, or one by one where that is quicker.

    Side by side all wait for the largest. `cost` is what an example then takes, over
    what it takes alone; with none, or clients of unknown sizes, all are side by side.
    """
    side_by_side = jax.vmap(program)
    sizes = examples_of_each(clients)
    if cost is None or sizes is None or len(sizes) == 1:
        return side_by_side(clients)
    waits = cost * len(sizes) * jnp.max(sizes).astype(jnp.float32)

    def one_by_one(clients: PyTree) -> tuple[list, list]:
        return jax.lax.map(program, clients)

    is_quicker = waits > jnp.sum(sizes).astype(jnp.float32)
    return jax.lax.cond(is_quicker, one_by_one, side_by_side, clients)


def _by_size(clients: PyTree) -> jax.Array | None:
    """The clients' positions, largest first, if their sizes are known."""
    sizes = examples_of_each(clients)
    return None if sizes is None else jnp.argsort(-sizes)


# Bytes of messages that are worth holding at once, and of the largest arrays on the way
# to them: on a CPU about what stays in cache, elsewhere enough work for one launch, and
# what memory there is.
_CHUNK_BYTES = {"cpu": (2**21, 2**21)}
_CHUNK_BYTES_ELSEWHERE = (2**28, 2**31)

# What an example of a client that convolves takes in a chunk over what it takes alone,
# on a GPU: kernels of their own make grouped convolutions, which gain little.
_CONVOLVING = 0.7


@of_programs
def by_size(program: Program, clients: PyTree) -> tuple[list, list]:
    """The default way to sum.

    Dot products with the clients' rows where stages only keep, scale and measure them;
    else chunks whose messages fill a cache, or a launch, with measures taken ahead.
    Clients that convolve run one at a time on CPUs, and elsewhere where those of a
    `ClientTable` would wait longer for the largest of a chunk. Where what a client
    makes on its way is much larger than its message, as the activations of a model that
    is adapted by few parameters are, it is that which counts.
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
    if _makes_integers(program):
        return _sum_in_chunks(program, clients, 1, unroll=_UNROLLED)
    convolves = program.runs(primitives.conv_general_dilated_p)
    return _sum_in_chunks(
        program, clients, size, cost=_CONVOLVING if convolves else None
    )


# Clients whose integers are made and added in one pass over a sum on a CPU: four times
# as quick as to write them and multiply by ones.
_UNROLLED = 4

_FEW = 16  # leaves that are worth compiling so often
_SLOW = (
    primitives.dot_general_p,
    primitives.random_bits_p,
    primitives.scan_p,
    primitives.sort_p,
    primitives.threefry2x32_p,
    primitives.while_p,
)


def _makes_integers(program: Program) -> bool:
    """Whether all that it does, on a CPU, is to make a few arrays of integers."""
    if jax.default_backend() != "cpu":
        return False
    summed, kept = program.result
    is_large = [math.prod(x.shape) > 1 for x in summed]
    are_integers = all(
        x.dtype in (jnp.int32, jnp.uint32)
        for x, large in zip(summed, is_large, strict=True)
        if large
    )
    is_quick = not any(map(program.runs, _SLOW))
    return not kept and 0 < sum(is_large) <= _FEW and are_integers and is_quick


def _chunk_size(program: Program, n: int) -> int:
    """Clients that run side by side, in chunks of `n` that are as equal as can be."""
    backend = jax.default_backend()
    if backend == "cpu" and program.runs(primitives.conv_general_dilated_p):
        return 1  # kernels of their own, side by side, take twice the time
    of_messages, of_arrays = _CHUNK_BYTES.get(backend, _CHUNK_BYTES_ELSEWHERE)
    message = max(1, pytree.count_bytes(program.result))
    most = of_messages // message
    largest = program.largest_array()
    if largest > 4 * message:
        most = min(most, of_arrays // largest)
    return math.ceil(n / math.ceil(n / max(1, most)))
