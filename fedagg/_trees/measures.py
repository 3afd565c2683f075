"""Minimum, maximum and sum of squares of a client's entries, in one read.

Bounds compare with the norms that follow from them, and quantizers take their range
from them. They are a primitive of JAX, so that `_execution` sees in a traced function
what is asked of a client's leaves, and reads those of all clients together.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

from fedagg._trees.reductions import concatenate, pack, small

# Sums are made of so many numbers, and sums of these of so many again: exact to a
# relative (512 - 1) * 2**-24 on each level, in whatever order XLA adds numbers.
_BLOCK = 2**9


class Measures(NamedTuple):
    """Of the entries of some arrays together, each `[]`.

    Minimum and maximum are those of the total order of floats, in which a NaN lies
    beyond the infinity of its sign: a NaN is always one of the two.
    """

    minimum: jax.Array
    maximum: jax.Array
    squares: jax.Array  # their sum

    def size(self) -> jax.Array:
        """The largest absolute value; NaN if there is a NaN."""
        size = jnp.maximum(-self.minimum, self.maximum)
        has_nan = jnp.isnan(self.minimum) | jnp.isnan(self.maximum)
        return jnp.where(has_nan, jnp.nan, size)


def norm_error(sizes: list[int]) -> float:
    """The largest relative error of the root of `squares`, of arrays of these sizes.

    A sum of `m` numbers of one sign is exact to `(m - 1) u`, where `u` is `2**-24`, and
    so are sums of sums to the sum of these, over the levels of blocks. To that squares
    and casts from wider floats add `3 u`. A root has half of all that. Then `8 u` are
    for what underflows of `2**36` entries with a norm of 1e-10 or more, for the root,
    and for the products and quotients by which something is scaled to that norm.

    Reference: Higham, "Accuracy and Stability of Numerical Algorithms", 2002, sections
        3.1 and 4.2.
    """
    count, terms = sum(-(-size // _BLOCK) for size in sizes), 3
    terms += min(_BLOCK, max(sizes, default=1)) - 1
    while count > 1:
        terms += min(_BLOCK, count) - 1
        count = -(-count // _BLOCK)
    u = 2.0**-24
    return (0.5 * terms + 8.0) * u / (1.0 - terms * u)


measure_p = Primitive("fedagg_measure")
measure_p.multiple_results = True


def measure(arrays: list[jax.Array]) -> Measures:
    """Measures of all entries of arrays, at least one entry, as float32."""
    vectors = [x.astype(jnp.float32).ravel() for x in arrays if x.size]
    return Measures(*measure_p.bind(*vectors))


def minimum_and_maximum(arrays: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The extremes of all entries; both NaN if one is not finite."""
    found = measure(arrays)
    zero = 0.0 * found.minimum + 0.0 * found.maximum
    return found.minimum + zero, found.maximum + zero


def _measure_rows(*arrays: jax.Array) -> list[jax.Array]:
    """Measures `[...]` of arrays `[..., k]` of the same leading axes."""
    clients = math.prod(arrays[0].shape[:-1])
    packs = pack([x.shape[-1] for x in arrays], small(clients))
    parts = []
    for positions in packs:
        row = concatenate([arrays[i] for i in positions])
        parts += [_of_entries(x) for x in _in_blocks(row)]
    columns = _in_one(parts)
    while columns[0].shape[-1] > _BLOCK:
        blocks = zip(*map(_in_blocks, columns), strict=True)
        columns = _in_one([_reduce_last_axis(*x) for x in blocks])
    # As one reduction of all three: XLA takes one of each apart, into a chain over the
    # parts that it repeats for every entry that depends on it.
    low, high, squares = _reduce_last_axis(*columns)
    minimum, maximum = (
        jax.lax.bitcast_convert_type(_in_order(x), jnp.float32) for x in (low, high)
    )
    return jax.lax.optimization_barrier([minimum, maximum, squares])


def _in_blocks(row: jax.Array) -> list[jax.Array]:
    """`[..., k]` as blocks `[..., k // 512, 512]` and a rest `[..., 1, k % 512]`."""
    *batch, size = row.shape
    whole = size // _BLOCK * _BLOCK
    blocks, rest = jnp.split(row, [whole], axis=-1)
    shaped = blocks.reshape(*batch, -1, _BLOCK), rest.reshape(*batch, 1, size - whole)
    return [x for x in shaped if x.size]


def _in_one(parts: list[list[jax.Array]]) -> list[jax.Array]:
    """Each measure of all parts together, along the last axis."""
    columns = [jnp.concatenate(x, axis=-1) for x in zip(*parts, strict=True)]
    # Else the compiler makes one long sum of all levels.
    return jax.lax.optimization_barrier(columns)


def _of_entries(x: jax.Array) -> list[jax.Array]:
    """Minimum and maximum, as integers in order, and sum of squares of each row.

    Integers are compared quicker than floats, of which XLA moreover leaves out NaN on a
    CPU.
    """
    order = _in_order(jax.lax.bitcast_convert_type(x, jnp.int32))
    return _reduce_last_axis(order, order, x * x)


def _reduce_last_axis(
    low: jax.Array, high: jax.Array, squares: jax.Array
) -> list[jax.Array]:
    limits = jnp.iinfo(jnp.int32)
    return jax.lax.reduce(
        (low, high, squares),
        (jnp.int32(limits.max), jnp.int32(limits.min), jnp.float32(0.0)),
        lambda a, b: (
            jnp.minimum(a[0], b[0]),
            jnp.maximum(a[1], b[1]),
            a[2] + b[2],
        ),
        (low.ndim - 1,),
    )


def _in_order(bits: jax.Array) -> jax.Array:
    """Bits of floats as integers in the total order of the floats, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@measure_p.def_abstract_eval
def _(*avals):
    # Traced, for what a type has beside shape and dtype: on which devices it varies.
    return jax.make_jaxpr(_measure_rows)(*avals).out_avals


measure_p.def_impl(functools.partial(xla.apply_primitive, measure_p))
mlir.register_lowering(measure_p, mlir.lower_fun(_measure_rows, multiple_results=True))


def _batch(arrays: list, axes: list):
    size = next(
        x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None
    )
    rows = [
        batching.bdim_at_front(x, axis, size)
        for x, axis in zip(arrays, axes, strict=True)
    ]
    return measure_p.bind(*rows), [0, 0, 0]


batching.primitive_batchers[measure_p] = _batch


def _differentiate(arrays: list, tangents: list):
    """The derivative; an entry that is not finite takes no part in that of squares.

    Zero times NaN would be NaN for a client whose measures are then not used.
    """
    minimum, maximum, squares = measure_p.bind(*arrays)
    tangents = [ad.instantiate_zeros(x) for x in tangents]

    def total(parts: list[jax.Array]) -> jax.Array:
        return functools.reduce(jnp.add, [jnp.sum(x, axis=-1) for x in parts])

    def at(extreme: jax.Array) -> jax.Array:
        """The mean of the tangents where the extreme is reached."""
        found = [x == extreme[..., None] for x in arrays]
        count = total([x.astype(jnp.float32) for x in found])
        there = [jnp.where(x, t, 0.0) for x, t in zip(found, tangents, strict=True)]
        return total(there) / jnp.maximum(count, 1.0)  # none reaches a NaN

    products = [
        2.0 * jnp.where(jnp.isfinite(x), x, 0.0) * t
        for x, t in zip(arrays, tangents, strict=True)
    ]
    return (
        [minimum, maximum, squares],
        [at(minimum), at(maximum), total(products)],
    )


ad.primitive_jvps[measure_p] = _differentiate
