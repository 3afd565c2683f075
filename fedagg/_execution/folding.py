"""Sums to which each client adds its leaves times a number, as dot products.

Most of what stages do to a client's value is to keep or drop it, to scale it, and to
measure it. Under `vmap` that makes the compiler write the scaled values of all clients.
Here factors and masks become one number for each client, and the sum is
`numbers @ leaves`. Nothing of the size of the updates is written, and they are read
twice: once for all norms, once for the sum. Clients whose numbers that does not do
justice to, a NaN that is to be dropped among them, are added one by one.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedagg._execution.plans import LazyLeaf, Plan, combine, entries
from fedagg._execution.program import Program
from fedagg._execution.rows import plan_of
from fedagg._trees import pytree, rowwise
from fedagg._trees.loops import in_steps
from fedagg._trees.measures import measure
from fedagg._trees.reductions import concatenate, cut, pack, small
from fedagg._types import PyTree

# Products of factors within this range lose nothing, nor does what is made of them.
_LEAST, _MOST = 2.0**-100, 2.0**100


def sum_folded(program: Program, clients: PyTree) -> PyTree:
    """The sum of a program over clients.

    Raises:
        NotFoldable: while tracing, if the sum is of another kind. Nothing has run then.
    """
    plan = plan_of(program, folds=True)
    leaves, _ = pytree.flatten(clients)
    rows = {i: x for i, x in enumerate(plan.outputs) if isinstance(x, LazyLeaf)}
    alike: dict[tuple, list[int]] = {}  # positions of outputs of one scaling
    for i, x in rows.items():
        alike.setdefault(x.scaling, []).append(i)

    def numbers_of(*leaves: jax.Array) -> tuple[dict, list, jax.Array | None]:
        """What is summed as it is; each scaling; whether the rows are finite."""
        arrays = plan.run([*program.constants, *program.bound, *leaves])
        outputs = enumerate(plan.outputs)
        plain = {i: arrays[x] for i, x in outputs if not isinstance(x, LazyLeaf)}
        scalings = [
            combine([arrays[i] for i in factors], [arrays[i] for i in masks])
            for factors, masks in alike
        ]
        return plain, scalings, _are_finite(plan, arrays, list(rows.values()))

    plain, scalings, finite = jax.vmap(numbers_of)(*leaves)
    sums = rowwise.sum_over_clients(plain)
    for (factors, kept), positions in zip(scalings, alike.values(), strict=True):
        totals = _dot(factors, kept, finite, [leaves[rows[i].leaf] for i in positions])
        sums.update(zip(positions, totals, strict=True))
    results, structure = pytree.flatten(program.result)
    return pytree.unflatten(
        structure, [sums[i].reshape(x.shape) for i, x in enumerate(results)]
    )


def measured_ahead(
    program: Program, clients: PyTree
) -> tuple[Callable[[PyTree], PyTree], PyTree] | None:
    """A function that does the same, of clients with their measures, if there are any.

    A read of all clients' leaves at once is quicker than one of each client's.
    """
    plan = plan_of(program, folds=False)
    if not plan.measured:
        return None
    leaves, _ = pytree.flatten(clients)

    def measures(*leaves: jax.Array) -> list[jax.Array]:
        return [
            x for group in plan.measured for x in measure([leaves[i] for i in group])
        ]

    def contribution(client: tuple[list[jax.Array], list[jax.Array]]) -> PyTree:
        numbers = itertools.chain.from_iterable(plan.measured.values())
        given = dict(zip(numbers, client[1], strict=True))
        arrays = plan.run([*program.constants, *program.bound, *client[0]], given)
        # All of them are numbers, as nothing stays lazy where nothing folds.
        outputs = [arrays[i] for i in plan.outputs if not isinstance(i, LazyLeaf)]
        return pytree.unflatten(program.structure, outputs)

    return contribution, (leaves, jax.vmap(measures)(*leaves))


def _are_finite(plan: Plan, arrays: dict, rows: list[LazyLeaf]) -> jax.Array | None:
    """Whether all of these leaves are finite, `[]`, if their measures tell."""
    needed = {x.leaf for x in rows}
    if not needed or not needed <= set().union(*plan.measured):
        return None
    squares = [arrays[squares] for _, _, squares in plan.measured.values()]
    return jnp.all(jnp.isfinite(jnp.stack(squares)))


def _dot(
    factors: list[jax.Array],
    kept: jax.Array,
    finite: jax.Array | None,
    leaves: list[jax.Array],
) -> list[jax.Array]:
    """Sums the product of all factors and the leaf over the clients that are kept.

    Zero times a client that is not kept is NaN where it holds one; without `finite` of
    each client, it is the sum that shows it. And factors may over- or underflow as a
    product where they do not one after the other. Then clients are added one by one.
    """
    matrices = [x.reshape(len(x), -1) for x in leaves]
    packs = pack([x.shape[1] for x in matrices], small(len(kept)))
    columns = [concatenate([matrices[i] for i in pack]) for pack in packs]
    products = list(itertools.accumulate(factors, jnp.multiply))
    numbers = jnp.where(kept, products[-1] if products else 1.0, 0.0)

    # One factor alone is what it is, but bfloat16 takes it apart.
    is_wide = all(x.dtype == jnp.float32 for x in columns)
    is_fine = _are_in_range(products[1:] if is_wide else products, factors)
    if products:
        # The product wherever it will do, for the same bits as those of the dot.
        first, *others = factors
        first = jnp.where(is_fine, products[-1], first)
        factors = [first, *(jnp.where(is_fine, 1.0, x) for x in others)]

    def at_once() -> list[jax.Array]:
        return [_matmul(numbers, x) for x in columns]

    def one_by_one() -> list[jax.Array]:
        def add(client: jax.Array, totals: list[jax.Array]) -> list[jax.Array]:
            client = in_steps(client)

            def own(stacked: jax.Array) -> jax.Array:
                # It is not negative, which indexing would provide for, leaf by leaf.
                return jax.lax.dynamic_index_in_dim(
                    stacked, client, keepdims=False, allow_negative_indices=False
                )

            scale, is_kept = [own(x) for x in factors], own(kept)
            rows = [entries(own(x), scale, is_kept) for x in columns]
            return pytree.add(totals, rows)

        zeros = pytree.zeros(jax.eval_shape(at_once))
        return jax.lax.fori_loop(0, len(kept), add, zeros)

    if finite is None:
        totals = at_once()
        squares = jnp.stack([jnp.vdot(x, x) for x in totals])
        is_sound = jnp.isfinite(jnp.sum(squares)) | jnp.all(kept)
        totals = jax.lax.cond(is_sound & is_fine, lambda: totals, one_by_one)
    else:
        is_sound = jnp.all(kept | finite)
        totals = jax.lax.cond(is_sound & is_fine, at_once, one_by_one)
    sums = {}
    for positions, total in zip(packs, totals, strict=True):
        sizes = [matrices[i].shape[1] for i in positions]
        sums.update(zip(positions, cut(total, sizes), strict=True))
    return [sums[i] for i in range(len(leaves))]


def _are_in_range(products: list[jax.Array], factors: list[jax.Array]) -> jax.Array:
    """Whether the products are far from over- and underflow; a zero or NaN is fine."""
    if not products:
        return jnp.bool_(True)
    sizes = [jnp.abs(x) for x in products]
    is_out = [(x < _LEAST) | (x > _MOST) for x in sizes]
    is_zero = [x == 0.0 for x in factors]
    either = functools.partial(functools.reduce, jnp.logical_or)
    return ~jnp.any(either(is_out) & ~either(is_zero))


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
