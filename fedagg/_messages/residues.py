"""Numbers as integers modulo a power of two, as they go under a secure sum."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp

from fedagg._payload import Payload
from fedagg._types import PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Residues(Payload):
    """Integers modulo `2**modulus_bits`, of which the server learns the sum alone."""

    words: jax.Array  # uint32, whose sums wrap around
    modulus_bits: int = field(metadata={"static": True})
    dtype: str = field(metadata={"static": True})  # of the numbers that they stand for

    is_added: ClassVar[bool] = True
    marks: ClassVar[str] = "words"

    @classmethod
    def of(cls, x: jax.Array, bits: int, dtype: jnp.dtype) -> "Residues":
        """The residues of integers of 32 bits, or of the lower 32 of 64."""
        words = jax.lax.bitcast_convert_type(x, jnp.uint32)
        words = words if x.dtype.itemsize == 4 else words[..., 0]
        return cls(words & jnp.uint32(2**bits - 1), bits, str(dtype))

    def unsigned(self) -> jax.Array:
        """The residues from 0 to `2**bits - 1`, as uint32, also of a sum."""
        return self.words & jnp.uint32(2**self.modulus_bits - 1)

    def signed(self) -> jax.Array:
        """The residues from `-2**(bits - 1)` on, as int32, also of a sum."""
        spare = 32 - self.modulus_bits
        signed = jax.lax.bitcast_convert_type(self.words << spare, jnp.int32)
        return signed >> spare

    def bits(self) -> int:
        """They travel packed."""
        return self.words.size * self.modulus_bits

    def seen(self) -> str:
        return f"secure sum modulo 2**{self.modulus_bits}"


def is_residues(x: PyTree) -> bool:
    return isinstance(x, Residues)
