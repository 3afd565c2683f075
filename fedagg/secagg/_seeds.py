"""In a hybrid plan, what ML-KEM adds to the masks of two clients.

For each two neighbours the one of the lower number makes a secret, its seed, and sends
the other a ciphertext. If either drops out, its s^SK gives the server the seed: that of
the other opens the ciphertext, and that of the maker takes off what hides the seed from
the server. A digest binds both to one seed, so that no lie about it gives a wrong sum.
"""

from collections.abc import Mapping
from typing import NamedTuple

from fedagg.secagg import _crypto
from fedagg.secagg._agreement import Key, decapsulated, encapsulated
from fedagg.secagg._errors import ContradictionError
from fedagg.secagg._plan import Plan


class Seed(NamedTuple):
    """What two neighbours share by ML-KEM; empty if the plan is not hybrid."""

    secret: bytes = b""
    sent: bytes = b""  # the ciphertext


NO_SEED = Seed()


def make_seeds(
    plan: Plan, owner: int, private: bytes, publics: Mapping[int, bytes]
) -> tuple[dict[int, Seed], list[tuple[int, bytes, bytes, bytes]]]:
    """An owner's seeds, by neighbour of a higher number, and what it sends of them."""
    seeds = {
        j: Seed(*encapsulated(plan, public))
        for j, public in sorted(publics.items())
        if j > owner
    }
    sent = []
    for j, seed in seeds.items():
        hidden = _hidden(plan, owner, j, private, seed.secret)
        sent.append((j, seed.sent, hidden, _digest(plan, owner, j, seed.secret)))
    return seeds, sent


def receive_seed(
    plan: Plan, owner: int, holder: int, key: Key, sent: bytes, digest: bytes
) -> Seed:
    """The seed that a neighbour of a lower number sent.

    Raises:
        ContradictionError: if it is not that of the digest.
    """
    secret = decapsulated(key, sent)
    if _digest(plan, owner, holder, secret) != digest:
        raise ContradictionError(f"Client {owner} sent another seed than it said.")
    return Seed(secret, sent)


def recover_seed(
    plan: Plan, owner: int, holder: int, private: bytes, hidden: bytes, digest: bytes
) -> bytes | None:
    """The owner's seed, by its private key; None if it is not that of the digest."""
    secret = _hidden(plan, owner, holder, private, hidden)
    return secret if _digest(plan, owner, holder, secret) == digest else None


def _hidden(
    plan: Plan, owner: int, holder: int, private: bytes, secret: bytes
) -> bytes:
    about = _crypto.context("hidden seed", plan.identifier, owner, holder)
    pad = _crypto.derive(private, about)
    return bytes(x ^ y for x, y in zip(secret, pad, strict=True))


def _digest(plan: Plan, owner: int, holder: int, secret: bytes) -> bytes:
    about = _crypto.context("seed", plan.identifier, owner, holder)
    return _crypto.commit(about + secret)
