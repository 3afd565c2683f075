"""A client's part in a round."""

import secrets
from collections.abc import Callable, Sequence

import numpy as np

from fedagg.secagg import _crypto, _messages, _shamir
from fedagg.secagg._envelopes import Way, open_shares, seal_shares
from fedagg.secagg._errors import ContradictionError, TooFewClientsError, WrongStepError
from fedagg.secagg._masking import add_masks, check_vector, pack, reduce
from fedagg.secagg._messages import SERVER
from fedagg.secagg._plan import Plan
from fedagg.secagg._statements import (
    about_keys,
    about_survivors,
    check_neighbours,
    check_roster,
    check_signatures,
    commitment,
    pairwise_mask,
    self_mask,
)


class Client:
    """One client in one round: bytes of the server in, bytes for the server out.

    `advertise` comes first, then the steps below it with what the server sends, in
    order, `consistency` only if the plan is signed; `respond` picks the step. A step
    that refuses a message ends the round for this client.

    Args:
        plan: the round's.
        index: the client's number.
        vector: its input, uint32 `[plan.length]` with entries below 2**plan.bits.
        identity: its private Ed25519 key of 32 bytes, if the plan is signed.
        roster: all clients' public Ed25519 keys of 32 bytes, if the plan is signed;
            from a source other than the server.
        random: what keys are made of. For tests only.

    Raises:
        ValueError: if an argument does not fit the plan.

    Reference: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
        Overhead", 2020, algorithm 2; with signatures, Bonawitz et al., "Practical
        Secure Aggregation for Privacy-Preserving Machine Learning", 2017, figure 4.
    """

    def __init__(
        self,
        plan: Plan,
        index: int,
        vector: np.ndarray,
        *,
        identity: bytes | None = None,
        roster: Sequence[bytes] | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ):
        if not 0 <= index < plan.clients:
            raise ValueError(f"Expected a client below {plan.clients}, got {index=}.")
        check_vector(vector, plan.bits, plan.length)
        self._roster = check_roster(plan, roster)
        if (identity is None) == plan.signed:
            raise ValueError("Expected an identity if the plan is signed, else none.")
        public = None if identity is None else _crypto.verifying_key(identity)
        if self._roster is not None and self._roster[index] != public:
            raise ValueError("Expected the identity that the roster has.")
        self._plan, self._index, self._identity = plan, index, identity
        self._total, self._random = vector.copy(), random
        self._step = "advertise"
        self._neighbours = frozenset(plan.neighbours(index))
        self._keys: dict[int, tuple[bytes, bytes]] = {}  # by neighbour: c^PK, s^PK
        # By neighbour: the share of its b and that of its s^SK.
        self._shares: dict[int, tuple[bytes, bytes]] = {}
        self._survivors: frozenset[int] = frozenset()

    def respond(self, message: bytes | None = None) -> bytes:
        """Takes the next step.

        Args:
            message: of the server; none for the first step.

        Raises:
            WrongStepError: if there is none, or a message is missing or too many.
        """
        if self._step == "nothing" or (message is None) != (self._step == "advertise"):
            raise WrongStepError(f"The next step is {self._step!r}.")
        return (
            self.advertise() if message is None else _STEPS[self._step](self, message)
        )

    def advertise(self) -> bytes:
        """Step 0, AdvertiseKeys: fresh keys for envelopes (c) and for masks (s)."""
        self._enter("advertise")
        self._c = self._random(32)
        # A number of the field, as it will be shared.
        self._s = _shamir.draw_below(_shamir.PRIME, self._random).to_bytes(32)
        c_public, s_public = _crypto.public_key(self._c), _crypto.public_key(self._s)
        self._public = c_public, s_public
        about = about_keys(self._plan, self._index, c_public, s_public)
        message = _messages.Keys(c_public, s_public, self._sign(about))
        return self._leave("share_keys", message)

    def share_keys(self, message: bytes) -> bytes:
        """Step 1, ShareKeys: shares of b and of s^SK, an envelope for each neighbour.

        Args:
            message: the server's `KeysOfNeighbours`.

        Raises:
            ContradictionError: if the keys are not this client's and its neighbours'.
        """
        self._enter("share_keys")
        received = self._read(_messages.KeysOfNeighbours, message).keys
        keys = {j: (c, s) for j, c, s, _ in received}
        if keys.pop(self._index, None) != self._public:
            raise ContradictionError("The list of keys lacks this client's own.")
        check_neighbours(self._plan, keys, self._neighbours)
        if len({c for c, _ in keys.values()} | {self._public[0]}) <= len(keys):
            raise ContradictionError("Two clients have one key.")
        if self._roster is not None:
            for j, c, s, signature in received:
                about = about_keys(self._plan, j, c, s)
                _crypto.verify(self._roster[j], signature, about)
        self._keys = keys

        b, s = _shamir.draw_below(_shamir.PRIME, self._random), int.from_bytes(self._s)
        self._b = b.to_bytes(32)
        others, threshold = sorted(keys), self._plan.threshold
        points = [j + 1 for j in others]  # the secret is at zero
        b_shares = _shamir.split(b, threshold, points, self._random)
        s_shares = _shamir.split(s, threshold, points, self._random)
        envelopes = []
        for j, b_share, s_share in zip(others, b_shares, s_shares, strict=True):
            way = Way(self._plan, self._index, j)
            agreed = _crypto.agree(self._c, keys[j][0])
            shares = b_share, s_share
            envelopes.append((j, seal_shares(way, agreed, shares, self._random)))
        committed = commitment(self._plan, self._index, self._b)
        return self._leave("masked_input", _messages.Shares(committed, envelopes))

    def masked_input(self, message: bytes) -> bytes:
        """Step 2, MaskedInputCollection: the vector under all masks.

        Args:
            message: the server's `SharesOfNeighbours`.

        Raises:
            NotAuthenticError: if an envelope does not open.
        """
        self._enter("masked_input")
        envelopes = dict(self._read(_messages.SharesOfNeighbours, message).envelopes)
        check_neighbours(self._plan, envelopes, self._keys)
        for j, envelope in envelopes.items():
            way = Way(self._plan, j, self._index)
            agreed = _crypto.agree(self._c, self._keys[j][0])
            self._shares[j] = open_shares(way, agreed, envelope)

        masks = [self_mask(self._plan, self._index, self._b)]
        for j in envelopes:
            public = self._keys[j][1]
            masks.append(pairwise_mask(self._plan, self._index, self._s, j, public))
        add_masks(self._total, masks)
        packed = pack(reduce(self._total, self._plan.bits), self._plan.bits)
        del self._total, self._s, self._b, self._c
        following = "consistency" if self._plan.signed else "unmask"
        return self._leave(following, _messages.MaskedInput(packed))

    def consistency(self, message: bytes) -> bytes:
        """Step 3, ConsistencyCheck: signs the list of all who survived.

        Args:
            message: the server's `Survivors`.

        Raises:
            ContradictionError: if the list lacks this client.
            TooFewClientsError: if it is shorter than the plan's quorum.
        """
        self._enter("consistency")
        listed = self._read(_messages.Survivors, message).clients
        self._survivors = frozenset(j for (j,) in listed)
        if self._index not in self._survivors:
            raise ContradictionError("The list of survivors lacks this client.")
        if len(self._survivors) < self._plan.quorum:
            raise TooFewClientsError(f"Only {len(self._survivors)} clients survived.")
        check_neighbours(self._plan, self._survivors & self._neighbours, self._shares)
        signature = self._sign(about_survivors(self._plan, self._survivors))
        return self._leave("unmask", _messages.Consistency(signature))

    def unmask(self, message: bytes) -> bytes:
        """Step 4, Unmasking: of each neighbour that shared, the share of one secret.

        That of b if it survived, that of s^SK if not. Never both.

        Args:
            message: the server's `Unmasking`.

        Raises:
            ContradictionError: if a neighbour is on both lists, or on none, or somebody
                is who did not share secrets with this client, or who signed no list.
            TooFewClientsError: if fewer than a quorum signed the list of survivors.
        """
        self._enter("unmask")
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
            check_signatures(self._plan, self._roster, self._survivors, told.signatures)
        opened = _messages.Opened(
            [(j, self._shares[j][0]) for j in sorted(alive)],
            [(j, self._shares[j][1]) for j in sorted(dropped)],
        )
        del self._shares
        return self._leave("nothing", opened)

    def _enter(self, step: str) -> None:
        if self._step != step:
            raise WrongStepError(f"{step!r} is not the next step: {self._step!r} is.")
        self._step = "nothing"  # if the step refuses, there is no other try

    def _leave(self, following: str, message: _messages.FromClient) -> bytes:
        self._step = following
        return _messages.encode(message, self._plan, self._index, SERVER)

    def _read(self, kind: type[_messages.M], message: bytes) -> _messages.M:
        return _messages.decode(kind, message, self._plan, SERVER, self._index)

    def _sign(self, about: bytes) -> bytes:
        if self._identity is None:
            return _messages.NO_SIGNATURE
        return _crypto.sign(self._identity, about)


_STEPS = {  # those that take a message of the server
    "share_keys": Client.share_keys,
    "masked_input": Client.masked_input,
    "consistency": Client.consistency,
    "unmask": Client.unmask,
}
