"""Shares on their way from one client to another, past the server."""

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fedagg.secagg import _crypto
from fedagg.secagg._agreement import (
    Key,
    agree,
    ciphertext_size,
    decapsulated,
    encapsulated,
)
from fedagg.secagg._errors import ContradictionError, MalformedMessageError
from fedagg.secagg._plan import Plan
from fedagg.secagg._shamir import PRIME, split
from fedagg.secagg._statements import share_digest


class Way(NamedTuple):
    """Where an envelope comes from and goes to."""

    plan: Plan
    sender: int
    receiver: int

    def context(self) -> bytes:
        """What its key is for, and what it binds."""
        pair = self.sender, self.receiver
        return _crypto.context("envelope", self.plan.identifier, *pair)

    def digests(self, shares: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        """Those of the shares of b and of s^SK."""
        b, s = (
            share_digest(*self, what, share)
            for what, share in zip(("b", "s"), shares, strict=True)
        )
        return b, s


class Dealt(NamedTuple):
    """What an owner has dealt, as the server keeps it, in little room."""

    commitment: bytes
    receivers: list[int]  # in ascending order
    envelopes: bytes  # one after the other
    digests: bytes  # two for each receiver
    seeds: dict[int, tuple[bytes, bytes, bytes]]  # by receiver, if the plan is hybrid

    def item(self, receiver: int) -> tuple[bytes, bytes, bytes]:
        """A receiver's envelope, and the digests of its shares of b and of s^SK."""
        at = bisect.bisect_left(self.receivers, receiver)
        width = len(self.envelopes) // len(self.receivers)
        envelope = self.envelopes[width * at : width * (at + 1)]
        both = self.digests[64 * at : 64 * (at + 1)]
        return envelope, both[:32], both[32:]


def dealt_of(
    commitment: bytes,
    items: Sequence[tuple[int, bytes, bytes, bytes]],
    seeds: Sequence[tuple[int, bytes, bytes, bytes]] = (),
) -> Dealt:
    """What a message with envelopes and digests says."""
    return Dealt(
        commitment,
        [j for j, *_ in items],
        b"".join(envelope for _, envelope, *_ in items),
        b"".join(b + s for *_, b, s in items),
        {j: (sent, hidden, digest) for j, sent, hidden, digest in seeds},
    )


def deal(
    plan: Plan,
    owner: int,
    key: Key,
    publics: Mapping[int, bytes],
    secrets: tuple[int, int],
    random: Callable[[int], bytes],
) -> list[tuple[int, bytes, bytes, bytes]]:
    """Shares of b and of s^SK for each client, under what is agreed on with its key."""
    points = [j + 1 for j in publics]  # the secret is at zero
    b_shares, s_shares = (split(x, plan.threshold, points, random) for x in secrets)
    dealt = []
    for j, shares in zip(publics, zip(b_shares, s_shares, strict=True), strict=True):
        told, sent = encapsulated(plan, publics[j])
        agreed = agree(plan, key, publics[j], told, key.public + publics[j] + sent)
        sealed, of_b, of_s = seal_shares(Way(plan, owner, j), agreed, shares, random)
        dealt.append((j, sent + sealed, of_b, of_s))
    return dealt


def open_dealt(
    way: Way, key: Key, public: bytes, envelope: bytes, *digests: bytes
) -> tuple[bytes, bytes]:
    """The shares of b and of s^SK in what `deal` made for the owner of the key.

    Raises:
        ProtocolError: as `open_shares` does.
    """
    size = ciphertext_size(way.plan)
    sent, sealed = envelope[:size], envelope[size:]
    told = decapsulated(key, sent)
    agreed = agree(way.plan, key, public, told, public + key.public + sent)
    return open_shares(way, agreed, sealed, *digests)


def seal_shares(
    way: Way, agreed: bytes, shares: tuple[int, int], random: Callable[[int], bytes]
) -> tuple[bytes, bytes, bytes]:
    """An envelope with shares of b and of s^SK, under a key for this way only.

    And the digests of both, which are no secret.
    """
    about = way.context()
    content = shares[0].to_bytes(32), shares[1].to_bytes(32)
    key = _crypto.derive(agreed, about)
    envelope = _crypto.seal(key, b"".join(content), about, random)
    return envelope, *way.digests(content)


def open_shares(
    way: Way, agreed: bytes, envelope: bytes, *digests: bytes
) -> tuple[bytes, bytes]:
    """The shares of b and of s^SK.

    Raises:
        NotAuthenticError: if the envelope does not open.
        MalformedMessageError: if it holds numbers that are not of the field.
        ContradictionError: if they are not those of the digests.
    """
    about = way.context()
    content = _crypto.unseal(_crypto.derive(agreed, about), envelope, about)
    shares = content[:32], content[32:]
    if any(int.from_bytes(share) >= PRIME for share in shares):
        raise MalformedMessageError(f"Client {way.sender} sent no share.")
    if way.digests(shares) != digests:
        raise ContradictionError(f"Client {way.sender} sent other shares than it said.")
    return shares
