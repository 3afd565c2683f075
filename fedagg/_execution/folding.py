"""Sums to which each client adds its leaves times a number, as dot products.

Most of what stages do to a client's value is to keep or drop it, to scale it, and to
measure it. Under `vmap` that makes the compiler write the scaled values of all clients.
Here factors and selections become one number for each client, and the sum is
`numbers @ leaves`. Nothing of the size of the updates is written, and they are read
twice: once for all norms, once for the sum.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedagg._execution.loops import in_steps
from fedagg._execution.program import Program
from fedagg._execution.rows import Client, Row
from fedagg._trees import pytree, rowwise
from fedagg._trees.measures import Measures
from fedagg._trees.reductions import concatenate, cut, measure_clients, pack
from fedagg._types import PyTree


def sum_folded(program: Program, clients: PyTree) -> PyTree:
    """The sum of a program over clients.

    Raises:
        NotFoldable: while tracing, if the sum is of another kind.
    """
    leaves, _ = pytree.flatten(clients)
    n = len(leaves[0])
    rows: dict[int, Row] = {}  # by the position of the output

    def numbers_of(*leaves: jax.Array) -> tuple[dict, dict, jax.Array | None]:
        """What is summed as it is; each distinct scaling; whether rows are finite."""
        plain = {}
        client = Client(leaves, n, writes=False)
        for i, x in enumerate(client.evaluate(program)):
            if isinstance(x, Row):
                rows[i] = x
            else:
                plain[i] = x
        firsts = {x.scaling(): i for i, x in reversed(rows.items())}
        scalings = {i: (rows[i].factor(), rows[i].is_kept()) for i in firsts.values()}
        return plain, scalings, _are_finite(client, {x.leaf for x in rows.values()})

    plain, scalings, finite = jax.vmap(numbers_of)(*leaves)
    sums = rowwise.sum_over_clients(plain)
    for first, (factors, kept) in scalings.items():
        alike = [i for i, x in rows.items() if x.scaling() == rows[first].scaling()]
        totals = _dot(factors, kept, finite, [leaves[rows[i].leaf] for i in alike])
        sums.update(zip(alike, totals, strict=True))
    return pytree.unflatten(
        program.structure,
        [sums[i].reshape(x.shape) for i, x in enumerate(program.outputs)],
    )


def measured_ahead(
    program: Program, clients: PyTree
) -> tuple[Callable[[PyTree], PyTree], PyTree] | None:
    """A function that does the same, of clients with their measures, if there are any.

    A read of all clients' leaves at once is quicker than one of each client's.
    """
    leaves, _ = pytree.flatten(clients)
    n = len(leaves[0])
    groups: set[tuple[int, ...]] = set()

    def look(*leaves: jax.Array) -> list:
        client = Client(leaves, n, writes=True)
        outputs = client.evaluate(program)
        groups.update(client.measured)
        return outputs

    def measures(*leaves: jax.Array) -> dict[tuple[int, ...], Measures]:
        return {x: measure_clients([leaves[i] for i in x], n) for x in sorted(groups)}

    def contribution(client: tuple[list[jax.Array], dict]) -> PyTree:
        values = Client(client[0], n, client[1], writes=True).evaluate(program)
        return pytree.unflatten(program.structure, values)

    jax.eval_shape(look, *rowwise.abstract_row(leaves))
    if not groups:
        return None
    return contribution, (leaves, jax.vmap(measures)(*leaves))


def _are_finite(client: Client, leaves: set[int]) -> jax.Array | None:
    """Whether all of these leaves are finite, `[]`, if their measures tell."""
    if not leaves or not leaves <= set().union(*client.measured):
        return None
    squares = [measures.squares for measures in client.measured.values()]
    return jnp.all(jnp.isfinite(jnp.stack(squares)))


def _dot(
    factors: jax.Array,
    kept: jax.Array,
    finite: jax.Array | None,
    leaves: list[jax.Array],
) -> list[jax.Array]:
    """Sums factor times leaf over the clients that are kept.

    Zero times a client that is not kept is NaN where it holds one: then clients are
    added one by one. Without `finite` of each client, it is the sum that shows it.
    """
    matrices = [x.reshape(len(x), -1) for x in leaves]
    packs = pack([x.shape[1] for x in matrices], len(kept))
    columns = [concatenate([matrices[i] for i in pack]) for pack in packs]
    numbers = jnp.where(kept, factors, 0.0)

    def at_once() -> list[jax.Array]:
        return [_matmul(numbers, x) for x in columns]

    def one_by_one() -> list[jax.Array]:
        def add(client: jax.Array, totals: list[jax.Array]) -> list[jax.Array]:
            client = in_steps(client)
            factor, is_kept = factors[client], kept[client]
            rows = [factor * x[client].astype(jnp.float32) for x in columns]
            return pytree.add(totals, pytree.keep(is_kept, rows))

        zeros = pytree.zeros(jax.eval_shape(at_once))
        return jax.lax.fori_loop(0, len(kept), add, zeros)

    if finite is None:
        totals = at_once()
        squares = jnp.stack([jnp.vdot(x, x) for x in totals])
        is_sound = jnp.isfinite(jnp.sum(squares)) | jnp.all(kept)
        totals = jax.lax.cond(is_sound, lambda: totals, one_by_one)
    else:
        totals = jax.lax.cond(jnp.all(kept | finite), at_once, one_by_one)
    sums = {}
    for positions, total in zip(packs, totals, strict=True):
        sizes = [matrices[i].shape[1] for i in positions]
        sums.update(zip(positions, cut(total, sizes), strict=True))
    return [sums[i] for i in range(len(leaves))]


def _matmul(numbers: jax.Array, x: jax.Array) -> jax.Array:
    """The numbers `[n]` times a float32 or bfloat16 matrix `[n, k]`, to float32."""
    if x.dtype == jnp.float32:
        # Full precision: an accelerator would round the factors to 10 bits or fewer.
        return jnp.matmul(numbers, x, precision="highest")
    parts = []
    for _ in range(3):  # of 8 bits each, whose products with bfloat16 are exact
        part = jax.lax.reduce_precision(numbers, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        numbers -= part
    product = jnp.matmul(jnp.stack(parts), x, preferred_element_type=jnp.float32)
    return jnp.sum(product, axis=0)
