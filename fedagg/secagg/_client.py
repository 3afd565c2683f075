"""A client's part in a round."""

import secrets
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from numpy.typing import ArrayLike

from fedagg.secagg import _crypto, _messages, _shamir
from fedagg.secagg._agreement import key_of
from fedagg.secagg._demands import Demands
from fedagg.secagg._envelopes import deal
from fedagg.secagg._errors import (
    ContradictionError,
    TooFewClientsError,
    WrongStepError,
)
from fedagg.secagg._ledger import Ledger
from fedagg.secagg._masking import add_masks, own_vector, pack, reduce
from fedagg.secagg._messages import SERVER
from fedagg.secagg._opening import open_all, read_shares
from fedagg.secagg._plan import Plan
from fedagg.secagg._seeds import NO_SEED, Seed, make_seeds
from fedagg.secagg._statements import (
    about_keys,
    about_survivors,
    check_keys,
    check_neighbours,
    check_roster,
    check_signatures,
    commitment,
    pairwise_mask,
    self_mask,
)


class Client:
    """One client in one round: bytes of the server in, bytes for the server out.

    A message that it refuses ends the round for it, and it forgets its secrets. Any
    number of threads may use it, but no process besides this one: it cannot be pickled
    or copied, as two of it could open both secrets of a client.

    Args:
        plan: the round's.
        index: the client's number.
        vector: its input, uint32 `[plan.length]` with entries below 2**plan.bits.
        demands: what it asks of the plan.
        identity: its private Ed25519 key of 32 bytes, if the plan is signed.
        roster: all clients' public Ed25519 keys of 32 bytes, if the plan is signed;
            from a source other than the server.
        ledger: the client's, in which the round is written down when it begins.
        random: what keys are made of. For tests, and for who has to make a client
            anew in the middle of a round, from a secret.

    Raises:
        ContradictionError: if the plan is not as demanded.
        ValueError: if an argument does not fit the plan.

    Reference: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
        Overhead", 2020, algorithm 2; with signatures, Bonawitz et al., "Practical
        Secure Aggregation for Privacy-Preserving Machine Learning", 2017, figure 4.
    """

    def __init__(
        self,
        plan: Plan,
        index: int,
        vector: ArrayLike,
        demands: Demands,
        *,
        identity: bytes | None = None,
        roster: Sequence[bytes] | None = None,
        ledger: Ledger | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ):
        demands.check(plan)  # before work is done for it
        if not 0 <= index < plan.clients:
            raise ValueError(f"Expected a client below {plan.clients}, got {index=}.")
        self._total = own_vector(vector, plan.bits, plan.length)
        self._roster = check_roster(plan, roster)
        if (identity is None) == plan.signed:
            raise ValueError("Expected an identity if the plan is signed, else none.")
        public = None if identity is None else _crypto.verifying_key(identity)
        if self._roster is not None and self._roster[index] != public:
            raise ValueError("Expected the identity that the roster has.")
        self._plan, self._index, self._identity = plan, index, identity
        self._ledger, self._random = ledger, random
        self._lock, self._step = threading.Lock(), "advertise"
        self._neighbours = frozenset(plan.neighbours(index))
        self._keys: dict[int, tuple[bytes, bytes]] = {}  # by neighbour: c^PK, s^PK
        # By neighbour: the share of its b and that of its s^SK.
        self._shares: dict[int, tuple[bytes, bytes]] = {}
        self._seeds: dict[int, Seed] = {}  # by neighbour, if the plan is hybrid
        self._everyone: Sequence[tuple[int, bytes]] = ()  # who has which keys
        self._survivors: frozenset[int] = frozenset()

    def respond(self, message: bytes | None = None) -> bytes:
        """Takes the next step: gives the message for the server.

        Args:
            message: of the server; none for the first step.

        Raises:
            WrongStepError: if there is none, or a message is missing or too many.
            ProtocolError: of some other kind, if the message is refused, or if by its
                ledger the client took part in the round or in a later one.
        """
        with self._lock:  # for a moment: whoever comes during a step finds no step
            step, first = self._step, message is None
            if step == "nothing" or first != (step == "advertise"):
                raise WrongStepError(f"The next step is {step!r}.")
            self._step = "nothing"  # if this one refuses, there is no other try
        following = "nothing"
        try:
            told, answer = _STEPS[step](self, message)
            encoded = _messages.encode(answer, self._plan, self._index, SERVER)
            following = told
        finally:
            if following == "nothing":
                self._forget()
            self._step = following
        return encoded

    def __reduce__(self) -> NoReturn:
        raise TypeError("A Client is one, and is not pickled or copied.")

    def _forget(self) -> None:
        for name in set(vars(self)) - {"_lock", "_step"}:
            delattr(self, name)

    def _advertise(self, message: None):
        """Step 0, AdvertiseKeys: fresh keys for envelopes (c) and for masks (s)."""
        if self._ledger is not None:
            self._ledger.enter(self._plan)
        self._c = self._random(32)
        # A number of the field, as it will be shared.
        self._s = _shamir.draw_below(_shamir.PRIME, self._random).to_bytes(32)
        c_public, s_public = (key_of(self._plan, x).public for x in (self._c, self._s))
        self._public = c_public, s_public
        about = about_keys(self._plan, self._index, c_public, s_public)
        return "share_keys", _messages.Keys(c_public, s_public, self._sign(about))

    def _share_keys(self, message: bytes):
        """Step 1, ShareKeys: shares of b and of s^SK, in an envelope each."""
        told = self._read(_messages.KeysOfNeighbours, message)
        check_keys(self._plan, self._roster, told.keys, told.everyone)
        self._keys = keys = {j: (c, s) for j, c, s, _ in told.keys}
        self._everyone = told.everyone
        if keys.pop(self._index, None) != self._public:
            raise ContradictionError("The list of keys lacks this client's own.")
        check_neighbours(self._plan, keys, self._neighbours)

        b, s = _shamir.draw_below(_shamir.PRIME, self._random), int.from_bytes(self._s)
        self._b = b.to_bytes(32)
        way = self._plan, self._index
        agreeing, masking = ({j: keys[j][x] for j in sorted(keys)} for x in (0, 1))
        c_key = key_of(self._plan, self._c)
        envelopes = deal(*way, c_key, agreeing, (b, s), self._random)
        committed = commitment(*way, self._b)
        if not self._plan.hybrid:
            return "masked_input", _messages.Shares(committed, envelopes)
        self._seeds, sent = make_seeds(*way, self._s, masking)
        return "masked_input", _messages.HybridShares(committed, envelopes, sent)

    def _masked_input(self, message: bytes):
        """Step 2, MaskedInputCollection: the vector under all masks.

        Or a complaint about those whose envelopes do not open.
        """
        envelopes, seeds = read_shares(self._plan, self._index, message)
        check_neighbours(self._plan, [j for j, *_ in envelopes], self._keys)
        own = key_of(self._plan, self._c), key_of(self._plan, self._s)
        way = self._plan, self._index
        opened = open_all(*way, own, self._keys, envelopes, seeds)
        self._shares, accused = opened.shares, opened.accused
        self._seeds |= opened.seeds
        if accused:
            return "nothing", _messages.Complaint([(j,) for j in accused])

        masks = [self_mask(*way, self._b)]
        for j in self._shares:
            known = self._keys[j][1], self._seeds.get(j, NO_SEED)
            masks.append(pairwise_mask(*way, own[1], j, *known))
        add_masks(self._total, masks)
        packed = pack(reduce(self._total, self._plan.bits), self._plan.bits)
        del self._total, self._s, self._b, self._c, self._seeds
        following = "consistency" if self._plan.signed else "unmask"
        return following, _messages.MaskedInput(packed)

    def _consistency(self, message: bytes):
        """Step 3, ConsistencyCheck: signs the list of all who survived."""
        listed = self._read(_messages.Survivors, message).clients
        self._survivors = frozenset(j for (j,) in listed)
        if self._index not in self._survivors:
            raise ContradictionError("The list of survivors lacks this client.")
        if self._survivors - dict(self._everyone).keys():
            raise ContradictionError("A survivor has advertised no keys.")
        if len(self._survivors) < self._plan.quorum:
            raise TooFewClientsError(f"Only {len(self._survivors)} clients survived.")
        check_neighbours(self._plan, self._survivors & self._neighbours, self._shares)
        self._about = about_survivors(self._plan, self._survivors, self._everyone)
        return "unmask", _messages.Consistency(self._sign(self._about))

    def _unmask(self, message: bytes):
        """Step 4, Unmasking: of each neighbour that shared, the share of one secret.

        That of b if it survived, that of s^SK if not. Never both.

        Raises:
            ContradictionError: if a neighbour is on both lists, or on none, or somebody
                is who did not share secrets with this client, or who signed no list.
            TooFewClientsError: if fewer than a quorum signed the list of survivors.
        """
        told = self._read(_messages.Unmasking, message)
        alive, dropped = ({j for (j,) in x} for x in (told.alive, told.dropped))
        if alive & dropped:
            raise ContradictionError("A client is both alive and dropped.")
        if alive | dropped != self._shares.keys():
            raise ContradictionError("The lists are not of those who sent shares.")
        check_neighbours(self._plan, alive, self._shares)
        if self._roster is None and told.signatures:
            raise ContradictionError("Signatures, though the plan has none.")
        if self._roster is not None:
            if alive != self._survivors & self._shares.keys():
                raise ContradictionError("The lists are not the one that was signed.")
            known = self._roster, self._survivors, self._about
            check_signatures(self._plan, *known, told.signatures)
        return "nothing", _messages.Opened(
            [(j, self._shares[j][0]) for j in sorted(alive)],
            [(j, self._shares[j][1]) for j in sorted(dropped)],
        )

    def _read(self, kind: type[_messages.M], message: bytes) -> _messages.M:
        return _messages.decode(kind, message, self._plan, SERVER, self._index)

    def _sign(self, about: bytes) -> bytes:
        if self._identity is None:
            return _messages.NO_SIGNATURE
        return _crypto.sign(self._identity, about)


_STEPS: dict[str, Callable] = {
    "advertise": Client._advertise,
    "share_keys": Client._share_keys,
    "masked_input": Client._masked_input,
    "consistency": Client._consistency,
    "unmask": Client._unmask,
}
