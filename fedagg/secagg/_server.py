"""The server's part in a round."""

from collections.abc import Sequence

import numpy as np

from fedagg.secagg import _crypto, _messages
from fedagg.secagg._errors import (
    ContradictionError,
    MalformedMessageError,
    TooFewClientsError,
    WrongStepError,
)
from fedagg.secagg._masking import add_masks, reduce, unpack
from fedagg.secagg._messages import SERVER
from fedagg.secagg._plan import Plan
from fedagg.secagg._recovery import masks_left
from fedagg.secagg._shamir import PRIME
from fedagg.secagg._statements import (
    about_keys,
    about_survivors,
    check_roster,
)


class Server:
    """The server in one round: bytes of clients in, bytes for clients out.

    In each step, give `receive` what clients send, in any order, then `close` the step
    and send on what it returns. A client that sends nothing in time, or something that
    `receive` refuses, has dropped out. After the last step, `total` is the sum over
    `survivors`. It holds one running sum, to which a vector is added as it comes.

    Args:
        plan: the round's.
        roster: all clients' public Ed25519 keys of 32 bytes, if the plan is signed.

    Raises:
        ValueError: if the roster does not fit the plan.

    Reference: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
        Overhead", 2020, algorithm 2; with signatures, Bonawitz et al., "Practical
        Secure Aggregation for Privacy-Preserving Machine Learning", 2017, figure 4.
    """

    def __init__(self, plan: Plan, *, roster: Sequence[bytes] | None = None):
        self._plan, self._roster = plan, check_roster(plan, roster)
        self._step = "keys"
        self._asked = set(range(plan.clients))  # who may send something in this step
        self._keys: dict[int, _messages.Keys] = {}  # from A_1
        self._taken: set[bytes] = set()  # their c^PK
        self._commitments: dict[int, bytes] = {}  # from A_2
        self._envelopes: dict[int, dict[int, bytes]] = {}  # by sender and receiver
        self._sharers: set[int] = set()  # A_2, whose secrets others have shares of
        self._vectors: set[int] = set()  # A_3, whose y are in the sum
        self._signatures: dict[int, bytes] = {}  # from A_4
        self._openings: dict[int, dict[int, bytes]] = {}  # from A_5, by secret's owner
        self._sum = np.zeros(plan.length, np.uint32)  # of the y, with all masks
        self._total: np.ndarray | None = None

    @property
    def step(self) -> str:
        """What is awaited: keys, shares, vectors, signatures, openings, or nothing."""
        return self._step

    @property
    def waiting_for(self) -> frozenset[int]:
        """The clients that have something left to send in this step."""
        return frozenset(self._asked)

    @property
    def survivors(self) -> tuple[int, ...]:
        """The clients whose vectors are in the sum, in ascending order."""
        return tuple(sorted(self._vectors))

    @property
    def total(self) -> np.ndarray:
        """The sum of the survivors' vectors modulo 2**bits, uint32 `[length]`."""
        if self._total is None:
            raise WrongStepError("There is no sum before the last step is closed.")
        return self._total

    def receive(self, client: int, message: bytes) -> None:
        """Takes a client's message. One that is refused changes nothing.

        Args:
            client: who sent it, as the transport knows.
            message: its bytes.

        Raises:
            ContradictionError: if the client was not asked, or sent something already.
            ProtocolError: of some other kind, if the message is not what was asked for.
        """
        if client not in self._asked:
            raise ContradictionError(f"Client {client} has nothing to send now.")
        _STEPS[self._step][0](self, client, message)
        self._asked.remove(client)

    def close(self) -> dict[int, bytes]:
        """Ends a step: the next messages, by client; none after the last step.

        Raises:
            TooFewClientsError: if a sum is out of reach: the round has failed.
            RecoveryError: if clients sent wrong shares, so that a mask stays unknown.
            WrongStepError: if the round is over.
        """
        if self._step == "nothing":
            raise WrongStepError("The round is over.")
        step, self._step = self._step, "nothing"  # if this fails, the round has
        following, messages = _STEPS[step][1](self)
        self._step, self._asked = following, set(messages)
        return {
            client: _messages.encode(message, self._plan, SERVER, client)
            for client, message in messages.items()
        }

    def _receive_keys(self, client: int, message: bytes) -> None:
        keys = self._read(_messages.Keys, client, message)
        if self._roster is not None:
            about = about_keys(self._plan, client, keys.agreement, keys.masking)
            _crypto.verify(self._roster[client], keys.signature, about)
        elif keys.signature != _messages.NO_SIGNATURE:
            raise MalformedMessageError("A signature, though the plan has none.")
        # Neighbours would refuse these, and end the round for themselves.
        for key in (keys.agreement, keys.masking):
            _crypto.check_public(key)
        if keys.agreement in self._taken:
            raise ContradictionError("Another client has this key.")
        self._taken.add(keys.agreement)
        self._keys[client] = keys

    def _close_keys(self):
        alive = self._connected(set(self._keys))
        self._keys = {i: keys for i, keys in self._keys.items() if i in alive}
        messages = {}
        for i in alive:
            group = sorted([i, *self._neighbours(i, alive)])
            listed = [(j, self._keys[j]) for j in group]
            keys = [(j, x.agreement, x.masking, x.signature) for j, x in listed]
            messages[i] = _messages.KeysOfNeighbours(keys)
        return "shares", messages

    def _receive_shares(self, client: int, message: bytes) -> None:
        shares = self._read(_messages.Shares, client, message)
        envelopes = dict(shares.envelopes)
        if envelopes.keys() != self._keys.keys() & self._plan.neighbours(client):
            raise ContradictionError("The envelopes are not for the neighbours.")
        self._commitments[client] = shares.commitment
        self._envelopes[client] = envelopes

    def _close_shares(self):
        alive = self._connected(set(self._envelopes))
        self._sharers, messages = alive, {}
        for i in alive:
            senders = self._neighbours(i, alive)
            envelopes = [(j, self._envelopes[j][i]) for j in senders]
            messages[i] = _messages.SharesOfNeighbours(envelopes)
        self._envelopes.clear()
        return "vectors", messages

    def _receive_vectors(self, client: int, message: bytes) -> None:
        packed = self._read(_messages.MaskedInput, client, message).vector
        self._sum += unpack(packed, self._plan.bits, self._plan.length)
        self._vectors.add(client)

    def _close_vectors(self):
        self._check_count(self._vectors, "sent vectors")
        for i in self._sharers:
            if len(self._neighbours(i, self._vectors)) < self._plan.threshold:
                raise TooFewClientsError(f"Too few neighbours of client {i} are left.")
        if self._plan.signed:
            listed = _messages.Survivors([(i,) for i in self.survivors])
            return "signatures", dict.fromkeys(self._vectors, listed)
        return self._close_signatures()

    def _receive_signatures(self, client: int, message: bytes) -> None:
        signature = self._read(_messages.Consistency, client, message).signature
        if self._roster is not None:
            about = about_survivors(self._plan, self._vectors)
            _crypto.verify(self._roster[client], signature, about)
        self._signatures[client] = signature

    def _close_signatures(self):
        if self._plan.signed:
            self._check_count(self._signatures, "signed")
        signatures = sorted(self._signatures.items())
        messages = {}
        for i in self._signatures if self._plan.signed else self._vectors:
            alive = self._neighbours(i, self._vectors)
            dropped = self._neighbours(i, self._sharers - self._vectors)
            lists = ([(j,) for j in alive], [(j,) for j in dropped])
            messages[i] = _messages.Unmasking(*lists, signatures)
        return "openings", messages

    def _receive_openings(self, client: int, message: bytes) -> None:
        opened = self._read(_messages.Opened, client, message)
        dropped = self._sharers - self._vectors
        for shares, wanted in (
            (opened.self_masks, self._neighbours(client, self._vectors)),
            (opened.masking_keys, self._neighbours(client, dropped)),
        ):
            if [j for j, _ in shares] != wanted:
                raise ContradictionError("The shares are not those asked for.")
            if any(int.from_bytes(y) >= PRIME for _, y in shares):
                raise MalformedMessageError("A share is not of the field.")
        self._openings[client] = dict([*opened.self_masks, *opened.masking_keys])

    def _close_openings(self):
        masks = masks_left(
            self._plan,
            self._sharers,
            self._vectors,
            self._openings,
            self._commitments,
            {i: keys.masking for i, keys in self._keys.items()},
        )
        for start in range(0, len(masks), 256):  # as each holds a cipher's state
            add_masks(self._sum, masks[start : start + 256])
        self._total = reduce(self._sum, self._plan.bits)
        return "nothing", {}

    def _read(self, kind: type[_messages.M], i: int, message: bytes) -> _messages.M:
        return _messages.decode(kind, message, self._plan, i, SERVER)

    def _neighbours(self, client: int, among) -> list[int]:
        return [j for j in self._plan.neighbours(client) if j in among]

    def _connected(self, alive: set[int]) -> set[int]:
        """Those with enough neighbours among them: others would stop the round."""
        while weak := {
            i for i in alive if len(self._neighbours(i, alive)) < self._plan.threshold
        }:
            alive = alive - weak
        self._check_count(alive, "are left")
        return alive

    def _check_count(self, clients, what: str) -> None:
        if len(clients) < self._plan.quorum:
            wanted = self._plan.quorum
            raise TooFewClientsError(f"{len(clients)} clients {what}, not {wanted}.")


# What takes a message of a step, and what ends it.
_STEPS = {
    "keys": (Server._receive_keys, Server._close_keys),
    "shares": (Server._receive_shares, Server._close_shares),
    "vectors": (Server._receive_vectors, Server._close_vectors),
    "signatures": (Server._receive_signatures, Server._close_signatures),
    "openings": (Server._receive_openings, Server._close_openings),
}
