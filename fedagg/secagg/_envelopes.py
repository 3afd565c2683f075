"""Shares on their way from one client to another, past the server."""

from collections.abc import Callable
from typing import NamedTuple

from fedagg.secagg import _crypto
from fedagg.secagg._errors import MalformedMessageError
from fedagg.secagg._plan import Plan
from fedagg.secagg._shamir import PRIME


class Way(NamedTuple):
    """Where an envelope comes from and goes to."""

    plan: Plan
    sender: int
    receiver: int

    def context(self) -> bytes:
        """What its key is for, and what it binds."""
        pair = self.sender, self.receiver
        return _crypto.context("envelope", self.plan.identifier, *pair)


def seal_shares(
    way: Way, agreed: bytes, shares: tuple[int, int], random: Callable[[int], bytes]
) -> bytes:
    """An envelope with shares of b and of s^SK, under a key for this way only."""
    about = way.context()
    content = b"".join(share.to_bytes(32) for share in shares)
    return _crypto.seal(_crypto.derive(agreed, about), content, about, random)


def open_shares(way: Way, agreed: bytes, envelope: bytes) -> tuple[bytes, bytes]:
    """The shares of b and of s^SK.

    Raises:
        NotAuthenticError: if the envelope does not open.
        MalformedMessageError: if it holds numbers that are not of the field.
    """
    about = way.context()
    content = _crypto.unseal(_crypto.derive(agreed, about), envelope, about)
    shares = content[:32], content[32:]
    if any(int.from_bytes(share) >= PRIME for share in shares):
        raise MalformedMessageError(f"Client {way.sender} sent no share.")
    return shares
