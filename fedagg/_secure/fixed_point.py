"""Notes as integers that sum exactly: counts, weights, what bounds learn from."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._messages.residues import Residues, is_residues
from fedagg._trees import pytree
from fedagg._types import PyTree


class Notation(NamedTuple):
    """How numbers of up to `largest` are written so that `cohort` of them add up.

    A number in units of `2**-point` is cut into a low part of `width` bits and a high
    part, each a residue. As many low parts as there are clients do not reach
    `2**bits`, nor do the high parts.
    """

    bits: int
    cohort: int
    width: int
    point: int
    largest: float

    @classmethod
    def of(cls, bits: int, cohort: int, largest: float) -> "Notation":
        """The finest notation, of up to 24 bits behind the point."""
        width = min(24, bits - math.ceil(math.log2(cohort)))
        return cls(bits, cohort, width, _point(width, largest), float(largest))

    def check(self, name: str) -> None:
        """Raises a ValueError if halves, in which quantiles are learnt, do not fit."""
        if self.point < 1:
            needed = next(x for x in range(64) if _point(x, self.largest) >= 1)
            raise ValueError(
                f"{name}: {self.bits} bits do not hold the notes of {self.cohort} "
                f"clients with weights up to {self.largest:g}: each of a note's two "
                f"parts would have {max(self.width, 0)} bits and needs {needed}. Take "
                "more bits, fewer clients or a smaller largest weight."
            )

    def write(self, x: jax.Array) -> tuple[Residues, jax.Array]:
        """A number as residues `[2, ...]`, and whether it is in range throughout."""
        if jnp.issubdtype(x.dtype, jnp.floating):
            units = jnp.round(x.astype(jnp.float32) * 2.0**self.point)
            high = jnp.floor(units * 2.0**-self.width)
            low = units - high * 2.0**self.width
            fits = jnp.all(jnp.abs(x) <= self.largest)  # which NaN fails
            high, low = (jnp.where(fits, part, 0.0) for part in (high, low))
            parts = high.astype(jnp.int32), low.astype(jnp.int32)
        else:
            units = _as_int32(x)
            high, low = units >> self.width, units & jnp.int32(2**self.width - 1)
            most = jnp.int32(2 ** (self.width - 1) - 1)
            fits = jnp.all((-most <= high) & (high <= most))
            parts = high, low
        return Residues.of(jnp.stack(parts), self.bits, x.dtype), fits

    def write_all(self, notes: PyTree, name: str) -> tuple[PyTree, jax.Array]:
        """A tree of numbers as residues, and whether all are in range."""
        leaves, structure = pytree.flatten(notes)
        if leaves:
            self.check(name)
        written = [self.write(jnp.asarray(x)) for x in leaves]
        fits = jnp.stack([jnp.bool_(True), *(x for _, x in written)])
        return pytree.unflatten(structure, [x for x, _ in written]), jnp.all(fits)

    def read(self, total: Residues) -> jax.Array:
        """The sum of what was written, in its dtype."""
        high, low = total.signed()[0], total.unsigned()[1]
        # What the low parts carry, so that the rest is around zero and exact in floats.
        carry = ((low >> (self.width - 1)) + 1) >> 1
        high = high + carry.astype(jnp.int32)
        rest = _as_int32(low - (carry << self.width))
        if jnp.issubdtype(total.dtype, jnp.floating):
            units = high.astype(jnp.float32) * 2.0**self.width + rest.astype(
                jnp.float32
            )
            return (units * 2.0**-self.point).astype(total.dtype)
        return ((high << self.width) + rest).astype(total.dtype)

    def read_all(self, totals: PyTree) -> PyTree:
        """The sums of what `write_all` wrote."""
        return jax.tree.map(self.read, totals, is_leaf=is_residues)


def _point(width: int, largest: float) -> int:
    """Bits behind the point if two parts of so many bits hold a number and its sign."""
    if width < 2:
        return -1
    most = (2.0 ** (width - 1) - 1.0) * 2.0**width
    return min(24, math.floor(math.log2(most / largest)))


def _as_int32(x: jax.Array) -> jax.Array:
    """The int32 with the same bits; narrower integers as their value."""
    if x.dtype == jnp.uint32:
        return jax.lax.bitcast_convert_type(x, jnp.int32)
    return x.astype(jnp.int32)
