"""Fixed-point encoding: numbers as integers that sum exactly, modulo a power of two.

Under a secure sum this is how notes travel: weights, counts, what bounds learn from.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._messages.marks import NoisedModulo
from fedagg._messages.residues import Residues, is_residues
from fedagg._trees import checks, pytree
from fedagg._types import PyTree


class FixedPoint(NamedTuple):
    """The fixed-point encoding of numbers of up to `largest` that many clients add.

    A number in units of `2**-fraction_bits` is cut into a low part of `width` bits and
    a high part, each a residue. As many low parts as the largest cohort has clients do
    not reach `2**bits`, nor do the high parts.
    """

    bits: int
    largest_cohort: int
    width: int
    fraction_bits: int
    largest: float

    @classmethod
    def of(cls, bits: int, largest_cohort: int, largest_weight: float) -> "FixedPoint":
        """The finest encoding, of up to 24 bits after the point.

        Raises:
            ValueError: if an argument is out of range.
        """
        checks.check_whole(2, 32, bits=bits)
        checks.check_whole(1, largest_cohort=largest_cohort)
        checks.check_within("[1, inf)", largest_weight=largest_weight)
        bits, largest_cohort = int(bits), int(largest_cohort)
        if largest_cohort >= 2**bits:
            raise ValueError(
                f"largest_cohort must be below 2**bits, got {largest_cohort=}, {bits=}."
            )
        width = min(24, bits - math.ceil(math.log2(largest_cohort)))
        fraction_bits = _fraction_bits(width, largest_weight)
        return cls(bits, largest_cohort, width, fraction_bits, float(largest_weight))

    def check(self, name: str) -> None:
        """Raises a ValueError if halves, in which quantiles are learnt, do not fit."""
        if self.fraction_bits < 1:
            needed = next(x for x in range(64) if _fraction_bits(x, self.largest) >= 1)
            raise ValueError(
                f"{name}: {self.bits} bits do not hold the notes of "
                f"{self.largest_cohort} clients with weights up to {self.largest:g}: "
                f"each of a note's two parts would have {max(self.width, 0)} bits and "
                f"needs {needed}. Take more bits, fewer clients or a smaller largest "
                "weight."
            )

    def encode(self, x: jax.Array) -> tuple[Residues, jax.Array]:
        """A number as residues `[2, ...]`, and whether it is in range throughout."""
        if jnp.issubdtype(x.dtype, jnp.floating):
            units = jnp.round(x.astype(jnp.float32) * 2.0**self.fraction_bits)
            high = jnp.floor(units * 2.0**-self.width)
            low = units - high * 2.0**self.width
            fits = jnp.all(jnp.abs(x) <= self.largest)  # which NaN fails
            high, low = (jnp.where(fits, part, 0.0) for part in (high, low))
            parts = high.astype(jnp.int32), low.astype(jnp.int32)
        else:
            units = _as_int32(x)
            high, low = units >> self.width, units & jnp.int32(2**self.width - 1)
            most = jnp.int32(2 ** (self.width - 1) - 1)
            is_held = (-most <= high) & (high <= most)
            if x.dtype.itemsize > 4:
                is_held &= units.astype(x.dtype) == x
            fits = jnp.all(is_held)
            parts = high, low
        return Residues.of(jnp.stack(parts), self.bits, pytree.wide(x).dtype), fits

    def encode_all(self, notes: PyTree, name: str) -> tuple[PyTree, jax.Array]:
        """A tree of numbers as residues, and whether all are in range.

        Noised integers that are meant modulo `2**bits` are residues as they are.
        """
        found = [jnp.bool_(True)]

        def residues(x: PyTree) -> PyTree:
            if self._is_as_it_is(x):
                return jax.tree.map(lambda y: Residues.of(y, self.bits, y.dtype), x)
            self.check(name)
            encoded, fits = self.encode(jnp.asarray(x))
            found.append(fits)
            return encoded

        encoded = jax.tree.map(residues, notes, is_leaf=self._is_as_it_is)
        return encoded, jnp.all(jnp.stack(found))

    def _is_as_it_is(self, x: PyTree) -> bool:
        return isinstance(x, NoisedModulo) and x.modulus_bits == self.bits

    def decode(self, total: Residues) -> jax.Array:
        """The sum of the numbers encoded, in 32 bits of their kind or more."""
        high, low = total.signed()[0], total.unsigned()[1]
        # What the low parts carry, so that the rest is signed, and exact in floats.
        carry = ((low >> (self.width - 1)) + 1) >> 1
        high = high + carry.astype(jnp.int32)
        rest = _as_int32(low - (carry << self.width))
        if jnp.issubdtype(total.dtype, jnp.floating):
            units = high.astype(jnp.float32) * 2.0**self.width
            units += rest.astype(jnp.float32)
            return (units * 2.0**-self.fraction_bits).astype(total.dtype)
        return ((high << self.width) + rest).astype(total.dtype)

    def decode_all(self, totals: PyTree) -> PyTree:
        """The sums of what `encode_all` encoded."""

        def numbers(x: PyTree) -> PyTree:
            if self._is_as_it_is(x):
                return jax.tree.map(Residues.signed, x, is_leaf=is_residues)
            return self.decode(x)

        return jax.tree.map(
            numbers, totals, is_leaf=lambda x: is_residues(x) or self._is_as_it_is(x)
        )


def _fraction_bits(width: int, largest: float) -> int:
    """Bits after the point if two parts of so many bits hold a number and its sign."""
    if width < 2:
        return -1
    most = (2.0 ** (width - 1) - 1.0) * 2.0**width
    return min(24, math.floor(math.log2(most / largest)))


def _as_int32(x: jax.Array) -> jax.Array:
    """The int32 with the same bits; narrower integers as their value."""
    if x.dtype == jnp.uint32:
        return jax.lax.bitcast_convert_type(x, jnp.int32)
    return x.astype(jnp.int32)
