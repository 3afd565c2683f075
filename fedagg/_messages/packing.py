"""Integers of a few bits, packed into bytes as they go on the wire."""

import functools
import operator

import jax
import jax.numpy as jnp


def pack(codes: jax.Array, bits: int) -> tuple[jax.Array, ...]:
    """Packs codes `[d]` below `2**bits` into uint8 arrays, `bits` from 1 to 32.

    Bits are cut into parts of 8, 4, 2 and 1, an array each. Where a byte holds several
    codes, they come from as many equal stretches of `codes`, which keeps the work on
    neighbours. Each array is as long as it needs to be.
    """
    if bits == 8:
        return (codes.astype(jnp.uint8),)
    narrow = codes.astype(jnp.uint8 if bits < 8 else jnp.uint32)
    # Else the compiler works each code out again for every part.
    narrow = jax.lax.optimization_barrier(narrow)
    packed = []
    for shift, width in bit_fields(bits):
        part = (narrow >> shift).astype(jnp.uint8)
        if width < 8:
            count = 8 // width
            part = jnp.pad(part & jnp.uint8(2**width - 1), (0, -part.size % count))
            stretches = part.reshape(count, -1)
            shifted = [stretches[i] << jnp.uint8(width * i) for i in range(count)]
            part = functools.reduce(operator.or_, shifted)
        packed.append(part)
    return tuple(jax.lax.optimization_barrier(packed))


def unpack(packed: tuple[jax.Array, ...], bits: int, size: int) -> jax.Array:
    """The codes `[size]` as int32: the inverse of `pack`."""
    codes = jnp.zeros((size,), jnp.int32)
    for part, (shift, width) in zip(packed, bit_fields(bits), strict=True):
        part = part.astype(jnp.int32)
        if width < 8:
            shifts = width * jnp.arange(8 // width, dtype=jnp.int32)
            part = (part[None, :] >> shifts[:, None]) & (2**width - 1)
            part = part.reshape(-1)[:size]
        codes = codes | (part << shift)
    return codes


def bit_fields(bits: int) -> list[tuple[int, int]]:
    """Where each part of a code begins, and its width: bytes, then 4, 2 and 1 bits.

    20 bits are two bytes and a part of 4 bits, `[(0, 8), (8, 8), (16, 4)]`. Messages
    under compression and those of `fedagg.secagg` are cut alike.
    """
    fields, shift = [], 0
    while shift < bits:
        width = next(x for x in (8, 4, 2, 1) if x <= bits - shift)
        fields.append((shift, width))
        shift += width
    return fields
