"""What all parties of a round know and agree on."""

import dataclasses
import functools
import hashlib
import math
import secrets
import struct
from typing import Literal

from fedagg.secagg._degree import pick_degree
from fedagg.secagg._errors import MalformedMessageError
from fedagg.secagg._graph import neighbours

_FORM = struct.Struct(">7sIIBIIIB32s32s")
_MAGIC = b"secagg1"
_MOST_CLIENTS = 2**20
_MOST_ENTRIES = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """A round: its clients, their vectors, the graph of neighbours, the thresholds.

    Public, and the same for all. Clients are numbered from zero. A plan is for
    one round: `renewed` gives the next one. Make it by `Plan.for_cohort`, or by
    `Plan.complete` for the graph of Bonawitz et al. 2017.

    Raises:
        ValueError: if a number is out of range, or if clients might sign two different
            sets of survivors with a quorum each.
    """

    clients: int
    length: int  # entries of a vector
    bits: int  # of an entry; sums are modulo 2**bits
    degree: int  # neighbours of a client
    threshold: int  # neighbours that together open its secrets
    quorum: int  # fewest clients in a sum
    signed: bool  # whether keys and the set of survivors are signed
    session: bytes  # 32 bytes that no other round has
    graph_seed: bytes  # 32 bytes that nobody could choose

    def __post_init__(self):
        for name, value, least, most in (
            ("clients", self.clients, 2, _MOST_CLIENTS),
            ("length", self.length, 0, _MOST_ENTRIES),
            ("bits", self.bits, 1, 32),
            ("degree", self.degree, 1, self.clients - 1),
            ("threshold", self.threshold, 1, self.degree),
            ("quorum", self.quorum, 2, self.clients),
        ):
            if type(value) is not int or not least <= value <= most:
                raise ValueError(
                    f"Expected {name} in {least} to {most}, got {value!r}."
                )
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
        for name, value in (("session", self.session), ("graph_seed", self.graph_seed)):
            if type(value) is not bytes or len(value) != 32:
                raise ValueError(f"Expected {name} of 32 bytes, got {value!r}.")

    @classmethod
    def for_cohort(
        cls,
        clients: int,
        length: int,
        *,
        bits: int = 32,
        dropout: float = 0.1,
        adversary: float = 0.1,
        security: float = 40.0,
        failure: float = 2.0**-20,
        mode: Literal["semi-honest", "semi-malicious", "signed"] = "semi-honest",
    ) -> "Plan":
        """A plan with the least degree that keeps inputs private and rounds alive.

        But for a probability of 2 ** -security, no client's neighbours who collude with
        the server can open its secrets, and the clients that are left hang together.
        But for a probability of `failure`, the secrets of all can be opened when a
        round ends. Both hold for a graph that is drawn independently of who is corrupt
        and of who drops out. Session and seed are fresh.

        Args:
            clients: how many there are.
            length: entries of a vector.
            bits: of an entry.
            dropout: the largest fraction of clients that drop out.
            adversary: the largest fraction of clients that collude with the server.
            security: bits of statistical security.
            failure: of the round, though not too many drop out.
            mode: "semi-honest" if all follow the protocol. "semi-malicious" takes a
                threshold at which no two groups of neighbours open two secrets of one
                client. "signed" takes it too, and has a round in which clients sign
                who survived; this alone is for a server that lies.

        Raises:
            ValueError: if no graph does, or an argument is out of range.

        Reference: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
            Overhead", 2020, section 3.
        """
        if mode not in ("semi-honest", "semi-malicious", "signed"):
            raise ValueError(f"Expected a mode that there is, got {mode!r}.")
        if not 2 <= clients <= _MOST_CLIENTS:
            raise ValueError(f"Expected 2 to {_MOST_CLIENTS} clients, got {clients=}.")
        if not (0 <= dropout < 1 and 0 <= adversary < 1):
            raise ValueError(
                f"Expected fractions in [0, 1), got {dropout=}, {adversary=}."
            )
        if not (0 < failure < 1 and 0 <= security <= 1000):
            raise ValueError(
                "Expected 0 < failure < 1 and 0 <= security <= 1000, "
                f"got {failure=}, {security=}."
            )
        corrupt, dropped = (_at_most(f, clients) for f in (adversary, dropout))
        picked = pick_degree(
            clients,
            corrupt,
            dropped,
            security=security,
            failure=failure,
            semi_malicious=mode != "semi-honest",
        )
        signed = mode == "signed"
        quorum = (clients + corrupt) // 2 + 1
        if picked is None or (signed and quorum > clients - dropped):
            raise ValueError(
                f"Expected a cohort that bears {corrupt} corrupt and {dropped} dropped "
                f"clients in {mode!r} mode, got {clients=}: take more clients, lower "
                "the fractions, or pick a threshold yourself in Plan.complete."
            )
        degree, threshold = picked
        # Who survives has as many neighbours left as the threshold, at least.
        quorum = quorum if signed else threshold + 1
        return cls(clients, length, bits, degree, threshold, quorum, signed, *_fresh())

    @classmethod
    def complete(
        cls,
        clients: int,
        length: int,
        *,
        bits: int = 32,
        threshold: int | None = None,
        signed: bool = False,
    ) -> "Plan":
        """A plan in which all are neighbours. Session and seed are fresh.

        Args:
            clients: how many there are.
            length: entries of a vector.
            bits: of an entry.
            threshold: by default one more than two thirds of a client's neighbours,
                which holds against a third of them that lie together with the server.
            signed: whether clients sign their keys, and who survived.

        Raises:
            ValueError: if an argument is out of range.

        Reference: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving
            Machine Learning", 2017, figure 4.
        """
        if clients < 2:
            raise ValueError(f"Expected at least two clients, got {clients=}.")
        degree = clients - 1
        threshold = 2 * degree // 3 + 1 if threshold is None else threshold
        quorum = (clients + degree // 3) // 2 + 1 if signed else 2
        quorum = max(quorum, threshold + 1)
        return cls(clients, length, bits, degree, threshold, quorum, signed, *_fresh())

    def renewed(self) -> "Plan":
        """The same plan for another round, with a session and a seed of its own."""
        session, graph_seed = _fresh()
        return dataclasses.replace(self, session=session, graph_seed=graph_seed)

    @functools.cached_property
    def identifier(self) -> bytes:
        """32 bytes to which keys, signatures and messages of the round are bound."""
        return hashlib.sha256(self.encode()).digest()

    def neighbours(self, client: int) -> tuple[int, ...]:
        """The neighbours of a client, in ascending order.

        Args:
            client: its number.
        """
        return neighbours(self.clients, self.degree, self.graph_seed, client)

    def encode(self) -> bytes:
        """The plan as bytes."""
        return _FORM.pack(_MAGIC, *dataclasses.astuple(self))

    @classmethod
    def decode(cls, data: bytes) -> "Plan":
        """The plan of `encode`.

        A client that gets its plan from a server checks degree, threshold, quorum and
        mode against what it asks for itself.

        Args:
            data: the bytes.

        Raises:
            MalformedMessageError: if they are no plan.
        """
        if len(data) != _FORM.size:
            raise MalformedMessageError(f"Expected a plan of {_FORM.size} bytes.")
        magic, *fields = _FORM.unpack(data)
        signed = fields[6]
        if magic != _MAGIC or signed > 1:
            raise MalformedMessageError("Expected a plan, got something else.")
        fields[6] = bool(signed)
        try:
            return cls(*fields)
        except ValueError as error:
            raise MalformedMessageError(f"Expected a plan: {error}") from error


def _at_most(fraction: float, clients: int) -> int:
    """Up to how many clients a fraction is; 0.1 of 30 are 3, in spite of rounding."""
    return math.ceil(fraction * clients - 1e-9)


def _fresh() -> tuple[bytes, bytes]:
    """A session and a seed."""
    return secrets.token_bytes(32), secrets.token_bytes(32)
