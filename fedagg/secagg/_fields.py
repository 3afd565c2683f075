"""What stands in a plan: its fields, their ranges, their bytes."""

import dataclasses
import functools
import hashlib
import struct
from typing import Self

from fedagg.secagg._errors import MalformedMessageError
from fedagg.secagg._graph import neighbours

_FORM = struct.Struct(">7sIIBIIIBQ32s32s32s")
_MAGIC = b"secagg2"
MOST_CLIENTS = 2**20
_MOST_ENTRIES = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Fields:
    """The numbers of a round, and what follows from them."""

    clients: int
    length: int  # entries of a vector
    bits: int  # of an entry; sums are modulo 2**bits
    degree: int  # neighbours of a client
    threshold: int  # neighbours that together open its secrets
    quorum: int  # fewest clients in a sum
    signed: bool  # whether keys and the set of survivors are signed
    number: int  # of the round, larger than those of a client's rounds before
    context: bytes  # 32 bytes, `context_of` what clients were told
    session: bytes  # 32 bytes that no other round has
    graph_seed: bytes  # 32 bytes that nobody could choose
    hybrid: bool = False  # whether keys are agreed on by ML-KEM-768 as well

    def __post_init__(self):
        for name, value, least, most in (
            ("clients", self.clients, 2, MOST_CLIENTS),
            ("length", self.length, 0, _MOST_ENTRIES),
            ("bits", self.bits, 1, 32),
            ("degree", self.degree, 1, self.clients - 1),
            # One neighbour alone opens nothing, unless there is but one.
            ("threshold", self.threshold, min(2, self.degree), self.degree),
            ("quorum", self.quorum, 2, self.clients),
            ("number", self.number, 0, 2**63 - 1),
        ):
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"Expected {name} in {least} to {most}, got {value!r}."
                )
        for name in ("signed", "hybrid"):
            if type(getattr(self, name)) is not bool:
                got = getattr(self, name)
                raise ValueError(f"Expected {name} to be True or False, got {got!r}.")
        if self.degree % 2 and self.degree != self.clients - 1:
            raise ValueError(
                f"Expected an even degree or all {self.clients - 1} others, "
                f"got {self.degree}."
            )
        if self.signed and 2 * self.quorum <= self.clients:
            raise ValueError(
                f"Expected a quorum of more than half of {self.clients} clients, "
                f"got {self.quorum}: else two quorums can have no client in common."
            )
        if self.signed and 2 * self.threshold <= self.degree:
            raise ValueError(
                f"Expected a threshold of more than half of {self.degree} neighbours, "
                f"got {self.threshold}: else two groups can open a secret each."
            )
        for name in ("context", "session", "graph_seed"):
            value = getattr(self, name)
            if type(value) is not bytes or len(value) != 32:
                raise ValueError(f"Expected {name} of 32 bytes, got {value!r}.")

    @functools.cached_property
    def identifier(self) -> bytes:
        """32 bytes to which keys, signatures and messages of the round are bound."""
        return hashlib.sha256(self.encode()).digest()

    def neighbours(self, client: int) -> tuple[int, ...]:
        """The neighbours of a client, in ascending order.

        Args:
            client: its number.
        """
        known = self._neighbours.get(client)
        if known is None:
            known = neighbours(self.clients, self.degree, self.graph_seed, client)
            if self.degree < self.clients - 1:  # else there are too many to keep
                self._neighbours[client] = known
        return known

    @functools.cached_property
    def _neighbours(self) -> dict[int, tuple[int, ...]]:
        """Those that were asked for, if the graph is sparse."""
        return {}

    def encode(self) -> bytes:
        """The plan as bytes."""
        *fields, hybrid = dataclasses.astuple(self)
        fields[6] += 2 * hybrid  # beside whether it is signed
        return _FORM.pack(_MAGIC, *fields)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The plan of `encode`. A client checks it by its `Demands`.

        Args:
            data: the bytes.

        Raises:
            MalformedMessageError: if they are no plan.
        """
        if len(data) != _FORM.size:
            raise MalformedMessageError(f"Expected a plan of {_FORM.size} bytes.")
        magic, *fields = _FORM.unpack(data)
        if magic != _MAGIC or fields[6] > 3:
            raise MalformedMessageError("Expected a plan, got something else.")
        fields.append(bool(fields[6] & 2))
        fields[6] = bool(fields[6] & 1)
        try:
            return cls(*fields)
        except ValueError as error:
            raise MalformedMessageError(f"Expected a plan: {error}") from error
