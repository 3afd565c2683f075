"""What a server holds of a round, step by step."""

from collections.abc import Sequence

import numpy as np

from fedagg.secagg import _crypto, _messages
from fedagg.secagg._agreement import check_public, curve_key
from fedagg.secagg._envelopes import Dealt, dealt_of
from fedagg.secagg._errors import (
    ContradictionError,
    MalformedMessageError,
    RecoveryError,
    TooFewClientsError,
)
from fedagg.secagg._masking import add_masks, reduce, unpack
from fedagg.secagg._messages import SERVER
from fedagg.secagg._outbox import Outbox
from fedagg.secagg._plan import Plan
from fedagg.secagg._recovery import masks_left
from fedagg.secagg._statements import (
    about_keys,
    about_survivors,
    check_roster,
    keys_digest,
    share_digest,
)


class Round:
    """What clients have sent, and what becomes of it when a step is closed.

    A step has a function that takes a client's message, or refuses it and changes
    nothing, and one that gives the step that follows and what is sent then.
    """

    def __init__(self, plan: Plan, roster: Sequence[bytes] | None):
        self._plan, self._roster = plan, check_roster(plan, roster)
        self._keys: dict[int, _messages.Keys] = {}  # from A_1
        self._taken: set[bytes] = set()  # their c^PK and s^PK
        self._everyone: list[tuple[int, bytes]] = []  # digests of these, if signed
        self._dealt: dict[int, Dealt] = {}  # by A_2
        self._sharers: set[int] = set()  # A_2, whose secrets others have shares of
        self.vectors: set[int] = set()  # A_3, whose y are in the sum
        self.complaints: dict[int, list[int]] = {}  # by client, about whom
        self.wrong: list[int] = []  # whose shares gave another secret than announced
        self._about = b""  # what is signed
        self._signatures: dict[int, bytes] = {}  # from A_4
        self._openings: dict[int, dict[int, bytes]] = {}  # from A_5, by secret's owner
        self._sum = np.zeros(plan.length, np.uint32)  # of the y, with all masks
        self.total: np.ndarray | None = None

    def receive_keys(self, client: int, message: bytes) -> None:
        keys = self._read(_messages.Keys, client, message)
        if self._roster is not None:
            about = about_keys(self._plan, client, keys.agreement, keys.masking)
            _crypto.verify(self._roster[client], keys.signature, about)
        elif keys.signature != _messages.NO_SIGNATURE:
            raise MalformedMessageError("A signature, though the plan has none.")
        # Neighbours would refuse these, and end the round for themselves.
        for key in (keys.agreement, keys.masking):
            check_public(self._plan, key)
        taken = {curve_key(keys.agreement), curve_key(keys.masking)}
        if self._taken & taken:
            raise ContradictionError("Another client has this key.")
        self._taken |= taken
        self._keys[client] = keys

    def close_keys(self):
        alive = self._connected(set(self._keys))
        self._keys = {i: self._keys[i] for i in sorted(alive)}
        if self._plan.signed:
            digests = {i: keys_digest(i, *x[:2]) for i, x in self._keys.items()}
            self._everyone = list(digests.items())
        known, everyone = self._keys, self._everyone

        def write(i: int) -> _messages.KeysOfNeighbours:
            group = sorted([i, *self._neighbours(i, known)])
            listed = ((j, known[j]) for j in group)
            keys = [(j, x.agreement, x.masking, x.signature) for j, x in listed]
            return _messages.KeysOfNeighbours(keys, everyone)

        return "shares", Outbox(self._plan, alive, write)

    def receive_shares(self, client: int, message: bytes) -> None:
        hybrid = self._plan.hybrid
        if hybrid:
            dealt = dealt_of(*self._read(_messages.HybridShares, client, message))
        else:
            dealt = dealt_of(*self._read(_messages.Shares, client, message))
        neighbours = self._neighbours(client, self._keys)
        if dealt.receivers != neighbours:
            raise ContradictionError("The envelopes are not for the neighbours.")
        if list(dealt.seeds) != [j for j in neighbours if hybrid and j > client]:
            raise ContradictionError("The seeds are not for the higher neighbours.")
        self._dealt[client] = dealt

    def close_shares(self):
        self._sharers = alive = self._connected(set(self._dealt))
        found = {i: self._dealt[i] for i in sorted(alive)}
        self._dealt = {i: x._replace(envelopes=b"") for i, x in found.items()}

        def write(i: int) -> _messages.FromServer:
            senders = self._neighbours(i, alive)
            items = [(j, *found[j].item(i)) for j in senders]
            if not self._plan.hybrid:
                return _messages.SharesOfNeighbours(items)
            seeds = [(j, *found[j].seeds[i]) for j in senders if j < i]
            told = [(j, sent, digest) for j, sent, _, digest in seeds]
            return _messages.HybridSharesOfNeighbours(items, told)

        return "vectors", Outbox(self._plan, alive, write)

    def receive_vectors(self, client: int, message: bytes) -> None:
        if _messages.is_of(_messages.Complaint, message):
            accused = self._read(_messages.Complaint, client, message).clients
            about = [j for (j,) in accused]
            if not about or set(about) - {*self._neighbours(client, self._sharers)}:
                raise ContradictionError("A complaint about nobody, or a stranger.")
            self.complaints[client] = about
            return
        packed = self._read(_messages.MaskedInput, client, message).vector
        self._sum += unpack(packed, self._plan.bits, self._plan.length)
        self.vectors.add(client)

    def close_vectors(self):
        accused = {j for about in self.complaints.values() for j in about}
        named = f", with {sorted(accused)} accused" if accused else ""
        self._check_count(self.vectors, f"sent vectors{named}")
        for i in self._sharers:
            if len(self._neighbours(i, self.vectors)) < self._plan.threshold:
                raise TooFewClientsError(f"Too few neighbours of client {i} are left.")
        if not self._plan.signed:
            return self.close_signatures()
        self._about = about_survivors(self._plan, self.vectors, self._everyone)
        listed = _messages.Survivors([(i,) for i in sorted(self.vectors)])
        return "signatures", Outbox(self._plan, self.vectors, lambda i: listed)

    def receive_signatures(self, client: int, message: bytes) -> None:
        signature = self._read(_messages.Consistency, client, message).signature
        if self._roster is not None:
            _crypto.verify(self._roster[client], signature, self._about)
        self._signatures[client] = signature

    def close_signatures(self):
        if self._plan.signed:
            self._check_count(self._signatures, "signed")
        signatures = sorted(self._signatures.items())
        vectors, gone = self.vectors, self._sharers - self.vectors

        def write(i: int) -> _messages.Unmasking:
            alive, dropped = (self._neighbours(i, x) for x in (vectors, gone))
            lists = [(j,) for j in alive], [(j,) for j in dropped]
            return _messages.Unmasking(*lists, signatures)

        asked = self._signatures if self._plan.signed else vectors
        return "openings", Outbox(self._plan, asked, write)

    def receive_openings(self, client: int, message: bytes) -> None:
        opened = self._read(_messages.Opened, client, message)
        dropped = self._sharers - self.vectors
        for at, (shares, owners) in enumerate(
            ((opened.self_masks, self.vectors), (opened.masking_keys, dropped))
        ):
            if [j for j, _ in shares] != self._neighbours(client, owners):
                raise ContradictionError("The shares are not those asked for.")
            for j, share in shares:
                digest = share_digest(self._plan, j, client, "bs"[at], share)
                if digest != self._dealt[j].item(client)[1 + at]:
                    raise ContradictionError(
                        f"Client {client} opened another share than client {j} dealt."
                    )
        self._openings[client] = dict([*opened.self_masks, *opened.masking_keys])

    def close_openings(self):
        masks, self.wrong = masks_left(
            self._plan,
            self._sharers,
            self.vectors,
            self._openings,
            self._dealt,
            {i: keys.masking for i, keys in self._keys.items()},
        )
        if self.wrong:
            raise RecoveryError(
                f"Shares of {self.wrong} do not give the secrets they announced."
            )
        for start in range(0, len(masks), 256):  # as each holds a cipher's state
            add_masks(self._sum, masks[start : start + 256])
        self.total = reduce(self._sum, self._plan.bits)
        return "nothing", Outbox(self._plan)

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
