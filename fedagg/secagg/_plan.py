"""What all parties of a round know and agree on."""

import dataclasses
import functools
import hashlib
import secrets
import struct

from fedagg.secagg._degree import Bounds, Mode, pick
from fedagg.secagg._errors import MalformedMessageError
from fedagg.secagg._graph import neighbours

_FORM = struct.Struct(">7sIIBIIIBQ32s32s32s")
_MAGIC = b"secagg2"
_MOST_CLIENTS = 2**20
_MOST_ENTRIES = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """A round: its clients, their vectors, the graph of neighbours, the thresholds.

    Public, and the same for all. Clients are numbered from zero. A plan is for
    one round: `renewed` gives the next one. Make it by `Plan.for_cohort`, or by
    `Plan.complete` for the graph of Bonawitz et al. 2017.

    Raises:
        ValueError: if a number is out of range, or if in a signed plan two quorums, or
            two groups that open a client's secrets, may have no client in common.
    """

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

    def __post_init__(self):
        for name, value, least, most in (
            ("clients", self.clients, 2, _MOST_CLIENTS),
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

    @classmethod
    def for_cohort(
        cls,
        clients: int,
        length: int,
        bits: int,
        context: bytes,
        *,
        number: int = 0,
        smallest_cohort: int = 2,
        dropout: float = 0.1,
        adversary: float = 0.1,
        security: float = 40.0,
        failure: float = 2.0**-20,
        mode: Mode = "semi-malicious",
    ) -> "Plan":
        """A plan with the least degree that keeps inputs private and rounds alive.

        But for a probability of 2 ** -security, no client's neighbours who collude with
        the server can open its secrets, and the clients that are left hang together.
        But for a probability of `failure`, the secrets of all can be opened when a
        round ends. Both hold for a graph that is drawn independently of who is corrupt
        and of who drops out. If more drop out than `dropout`, or fewer than
        `smallest_cohort` are left, the round ends in an error. Session and seed are
        fresh.

        Args:
            clients: how many there are.
            length: entries of a vector.
            bits: of an entry, as many as the aggregator's sum has.
            context: 32 bytes, `context_of` what clients were told.
            number: of the round.
            smallest_cohort: the fewest clients in a sum. Noise of clients is calibrated
                to it.
            dropout: the largest fraction of clients that drop out.
            adversary: the largest fraction of clients that collude with the server.
            security: bits of statistical security.
            failure: of the round, though not too many drop out.
            mode: "semi-malicious" takes a threshold at which no two groups of
                neighbours open two secrets of one client. "semi-honest" is cheaper, and
                only for where all follow the protocol. "signed" has a round in which
                clients sign who survived; this alone is for a server that lies.

        Raises:
            ValueError: if no graph does, or an argument is out of range.

        Reference: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
            Overhead", 2020, section 3.
        """
        if not 2 <= clients <= _MOST_CLIENTS:
            raise ValueError(f"Expected 2 to {_MOST_CLIENTS} clients, got {clients=}.")
        bounds = Bounds(dropout, adversary, security, failure, mode)
        degree, threshold, quorum = pick(clients, bounds)
        return cls(
            *(clients, length, bits, degree, threshold),
            max(quorum, smallest_cohort),
            *(mode == "signed", number, context),
            *_fresh(),
        )

    @classmethod
    def complete(
        cls,
        clients: int,
        length: int,
        bits: int,
        context: bytes,
        *,
        number: int = 0,
        smallest_cohort: int = 2,
        threshold: int | None = None,
        signed: bool = False,
    ) -> "Plan":
        """A plan in which all are neighbours. Session and seed are fresh.

        Args:
            clients: how many there are.
            length: entries of a vector.
            bits: of an entry, as many as the aggregator's sum has.
            context: 32 bytes, `context_of` what clients were told.
            number: of the round.
            smallest_cohort: the fewest clients in a sum. More than the threshold are
                anyway.
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
        shared = (clients + degree // 3) // 2 + 1 if signed else 2
        quorum = max(shared, threshold + 1, smallest_cohort)
        return cls(
            *(clients, length, bits, degree, threshold, quorum, signed),
            *(number, context),
            *_fresh(),
        )

    def renewed(self, context: bytes) -> "Plan":
        """The same plan for the next round, with a session and a seed of its own.

        Args:
            context: 32 bytes, `context_of` what clients were told for that round.
        """
        new = dict(zip(("session", "graph_seed"), _fresh(), strict=True))
        number = self.number + 1
        return dataclasses.replace(self, number=number, context=context, **new)

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
        return _FORM.pack(_MAGIC, *dataclasses.astuple(self))

    @classmethod
    def decode(cls, data: bytes) -> "Plan":
        """The plan of `encode`. A client checks it by its `Demands`.

        Args:
            data: the bytes.

        Raises:
            MalformedMessageError: if they are no plan.
        """
        if len(data) != _FORM.size:
            raise MalformedMessageError(f"Expected a plan of {_FORM.size} bytes.")
        magic, *fields = _FORM.unpack(data)
        if magic != _MAGIC or fields[6] > 1:
            raise MalformedMessageError("Expected a plan, got something else.")
        fields[6] = bool(fields[6])  # signed
        try:
            return cls(*fields)
        except ValueError as error:
            raise MalformedMessageError(f"Expected a plan: {error}") from error


def _fresh() -> tuple[bytes, bytes]:
    """A session and a seed."""
    return secrets.token_bytes(32), secrets.token_bytes(32)
