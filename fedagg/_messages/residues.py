"""Numbers as integers modulo a power of two, as they go under a secure sum."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from fedagg._types import PyTree


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["words"],
    meta_fields=["bits", "dtype"],
)
@dataclasses.dataclass(frozen=True)
class Residues:
    """Integers modulo `2**bits`, of which the server learns nothing but the sum."""

    words: jax.Array  # uint32, whose sums wrap around
    bits: int
    dtype: str  # of the numbers that they stand for

    @classmethod
    def of(cls, x: jax.Array, bits: int, dtype: jnp.dtype) -> "Residues":
        """The residues of int32 or uint32 numbers."""
        words = jax.lax.bitcast_convert_type(x, jnp.uint32)
        return cls(words & jnp.uint32(2**bits - 1), bits, str(dtype))

    def from_zero(self) -> jax.Array:
        """The residues from 0 to `2**bits - 1`, as uint32, also of a sum."""
        return self.words & jnp.uint32(2**self.bits - 1)

    def around_zero(self) -> jax.Array:
        """The residues from `-2**(bits - 1)` on, as int32, also of a sum."""
        spare = 32 - self.bits
        signed = jax.lax.bitcast_convert_type(self.words << spare, jnp.int32)
        return signed >> spare


def is_residues(x: PyTree) -> bool:
    return isinstance(x, Residues)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["integers"], meta_fields=["bits"]
)
@dataclasses.dataclass(frozen=True)
class Wrapping:
    """Integers of which the sum is meant modulo `2**bits`, and no other."""

    integers: PyTree
    bits: int

    @classmethod
    def of(cls, integers: PyTree, bits: int) -> "Wrapping":
        """int32 as the numbers around zero that they are modulo `2**bits`."""
        return cls(jax.tree.map(lambda x: _around_zero(x, bits), integers), bits)

    def again(self) -> PyTree:
        """The same of a sum."""
        return jax.tree.map(lambda x: _around_zero(x, self.bits), self.integers)


def is_wrapping(x: PyTree) -> bool:
    return isinstance(x, Wrapping)


def _around_zero(x: jax.Array, bits: int) -> jax.Array:
    return Residues.of(x, bits, x.dtype).around_zero()
