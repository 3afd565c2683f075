"""Norms over many leaves in few operations, each a single read."""

import itertools

import jax
import jax.numpy as jnp

# Leaves of up to so many bytes, all clients together, are handled as one: an operation
# of its own costs more than a copy.
_SMALL = 2**18

_ROWS = 8

Measure = tuple[str, str]  # how entries are reduced, and what of them

MEASURES: set[Measure] = {
    ("reduce_max", "absolute"),
    ("reduce_sum", "absolute"),
    ("reduce_sum", "square"),
    ("reduce_or", "is nan"),
}


def pack(sizes: list[int], n: int) -> list[list[int]]:
    """Positions of leaves of `n` clients, those of the small ones together."""
    small = [i for i, size in enumerate(sizes) if 4 * n * size <= _SMALL]
    large = [[i] for i in range(len(sizes)) if i not in small]
    return [*large, small] if small else large


def concatenate(arrays: list[jax.Array]) -> jax.Array:
    """Along the last axis, in float32; one array alone is not copied."""
    if len(arrays) == 1:
        return arrays[0]
    return jnp.concatenate([x.astype(jnp.float32) for x in arrays], axis=-1)


def cut(vector: jax.Array, sizes: list[int]) -> list[jax.Array]:
    """Cuts a vector into parts of these sizes: the inverse of `concatenate`."""
    if len(sizes) <= 1:
        return [vector] * len(sizes)
    # With offsets that the compiler cannot see, slices of one size are one kernel.
    starts = jax.lax.optimization_barrier(
        [jnp.int32(x) for x in itertools.accumulate([0, *sizes[:-1]])]
    )
    return [
        jax.lax.dynamic_slice(vector, (start,), (size,))
        for start, size in zip(starts, sizes, strict=True)
    ]


def reduce_together(
    measure: Measure, leaves: list[jax.Array], n: int
) -> dict[Measure, jax.Array]:
    """A measure of all entries of one of `n` clients, and what comes free with it."""
    vectors = [x.ravel().astype(jnp.float32) for x in leaves]
    packs = pack([x.size for x in vectors], n)
    packed = [concatenate([vectors[i] for i in pack]) for pack in packs]
    if measure == ("reduce_sum", "absolute"):
        return {measure: jnp.sum(jnp.stack([jnp.sum(jnp.abs(x)) for x in packed]))}
    if measure == ("reduce_sum", "square"):
        return {measure: jnp.sum(jnp.stack([jnp.sum(x * x) for x in packed]))}
    both = [_largest_and_squares(x) for x in packed]
    largest, squares = map(jnp.stack, zip(*both, strict=True))
    return {
        ("reduce_max", "absolute"): jnp.max(largest),
        ("reduce_or", "is nan"): jnp.any(jnp.isnan(largest)),
        ("reduce_sum", "square"): jnp.sum(squares),
    }


@jax.custom_jvp
def _largest_and_squares(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest absolute value and the sum of squares of `x` `[d]`, in one pass.

    As integers, the bits of absolute values compare as the values do, with NaN on top.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & 0x7FFFFFFF
    largest, squares = jax.lax.reduce(
        (bits, x * x),
        (jnp.int32(0), jnp.float32(0.0)),
        lambda a, b: (jnp.maximum(a[0], b[0]), a[1] + b[1]),
        (0,),
    )
    return jax.lax.bitcast_convert_type(largest, jnp.float32), squares


@_largest_and_squares.defjvp
def _(primals: tuple, tangents: tuple):
    return jax.jvp(
        lambda x: (jnp.max(jnp.abs(x)), jnp.sum(jnp.square(x))), primals, tangents
    )


def smallest_and_largest(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The extremes of a float32 vector `[d]`, d > 0; both NaN if one is not finite.

    As integers, which are quicker to compare than floats, and leave no NaN out.
    """
    order = _order(jax.lax.bitcast_convert_type(x, jnp.int32))
    # Several rows, for several cores.
    body, tail = jnp.split(order, [x.size // _ROWS * _ROWS])
    rows = body.reshape(_ROWS, -1)
    limits = jnp.iinfo(jnp.int32)
    low, high = jax.lax.reduce(
        (rows, rows),
        (jnp.int32(limits.max), jnp.int32(limits.min)),
        lambda a, b: (jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1])),
        (1,),
    )
    low = jnp.min(jnp.concatenate([low, tail]))
    high = jnp.max(jnp.concatenate([high, tail]))
    low, high = (
        jax.lax.bitcast_convert_type(_order(bits), jnp.float32) for bits in (low, high)
    )
    zero = 0.0 * low + 0.0 * high
    return low + zero, high + zero


def _order(bits: jax.Array) -> jax.Array:
    """Bits of floats as integers in the order of the floats, and back.

    A NaN is beyond the infinity of its sign.
    """
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
