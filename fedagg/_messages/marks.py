"""Marks on what travels: facts about a value or its sum, which do not change it.

`Noised` says that the sum of a value is released with noise, `Single` that the server
needs a client's value by itself.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

import jax

from fedagg._messages.payload import decode
from fedagg._messages.residues import Residues
from fedagg._payload import Payload
from fedagg._trees import pytree
from fedagg._types import PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noised(Payload):
    """What is released of its sum, the stage that marks it noises for privacy."""

    value: PyTree

    is_added: ClassVar[bool] = True
    is_noised: ClassVar[bool] = True
    marks: ClassVar[str] = "value"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoisedModulo(Payload):
    """Integers with noise in them, whose sum is meant modulo `2**modulus_bits`."""

    value: PyTree
    modulus_bits: int = field(metadata={"static": True})

    is_added: ClassVar[bool] = True
    is_noised: ClassVar[bool] = True
    marks: ClassVar[str] = "value"

    @classmethod
    def of(cls, integers: PyTree, bits: int) -> "NoisedModulo":
        """int32 numbers, each as the signed one that is the same modulo `2**bits`."""
        return cls(jax.tree.map(lambda x: _signed(x, bits), integers), bits)

    def wrapped(self) -> PyTree:
        """The integers of a sum, taken modulo `2**modulus_bits` and signed."""
        return jax.tree.map(lambda x: _signed(x, self.modulus_bits), self.value)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WeightNote(Payload):
    """A client's weight as a note; of the sum, the unit that it is in as well."""

    weight: jax.Array  # []
    unit: PyTree = ()  # [], or one

    is_added: ClassVar[bool] = True
    marks: ClassVar[str] = "weight"

    def in_ones(self) -> jax.Array:
        return self.weight if isinstance(self.unit, tuple) else self.weight * self.unit


def in_units(note: PyTree, unit: jax.Array) -> PyTree:
    """A note whose weights are in units of this."""
    return pytree.map_parts(
        lambda x: dataclasses.replace(x, unit=unit), note, _is_weight_note
    )


def _is_weight_note(x: PyTree) -> bool:
    return isinstance(x, WeightNote)


def _signed(x: jax.Array, bits: int) -> jax.Array:
    return Residues.of(x, bits, x.dtype).signed()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Single(Payload):
    """A value that the server needs of this client by itself, and not in a sum."""

    value: PyTree
    weight: PyTree = ()  # [], where the server needs it as well

    marks: ClassVar[str] = "value"

    def decode(self) -> PyTree:
        return decode(self.value)
