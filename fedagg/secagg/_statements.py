"""What is signed, committed to and derived, bound to a round and its parties."""

from collections.abc import Collection, Sequence

from fedagg.secagg import _crypto
from fedagg.secagg._agreement import Key, agree, check_form, curve_key
from fedagg.secagg._errors import ContradictionError, TooFewClientsError
from fedagg.secagg._masking import Mask
from fedagg.secagg._plan import Plan
from fedagg.secagg._seeds import Seed


def about_keys(plan: Plan, client: int, agreement: bytes, masking: bytes) -> bytes:
    """What a client signs in step 0."""
    return _crypto.context("keys", plan.identifier, client) + agreement + masking


def about_survivors(
    plan: Plan, survivors: Collection[int], everyone: Sequence[tuple[int, bytes]]
) -> bytes:
    """What a client signs in step 3, of whom keys were advertised and who survived."""
    numbers = [j for j, _ in everyone]
    keys = _crypto.context("everyone", plan.identifier, *numbers)
    digest = _crypto.commit(keys + b"".join(x for _, x in everyone))
    return _crypto.context("survivors", plan.identifier, *sorted(survivors)) + digest


def keys_digest(client: int, agreement: bytes, masking: bytes) -> bytes:
    """What stands for a client's keys in what all sign."""
    return _crypto.commit(client.to_bytes(4) + agreement + masking)


def check_keys(
    plan: Plan,
    roster: Sequence[bytes] | None,
    keys: Sequence[tuple[int, bytes, bytes, bytes]],
    everyone: Sequence[tuple[int, bytes]],
) -> None:
    """Passes for keys in form, all different and, if signed, known so to owner and all.

    Raises:
        ContradictionError: if two are one, or not those of their digest.
        NotAuthenticError: if a key has another form, or a signature does not hold.
        TooFewClientsError: if fewer than a quorum have keys.
    """
    found = {x for _, c, s, _ in keys for x in (c, s)}
    for key in found:
        check_form(plan, key)
    if len({curve_key(x) for x in found}) < 2 * len(keys):
        raise ContradictionError("Two clients have one key.")
    if roster is None:
        if everyone:
            raise ContradictionError("Digests, though the plan is not signed.")
        return
    for j, c, s, signature in keys:
        _crypto.verify(roster[j], signature, about_keys(plan, j, c, s))
    digests = dict(everyone)
    if any(digests.get(j) != keys_digest(j, c, s) for j, c, s, _ in keys):
        raise ContradictionError("The digest of a client's keys is not theirs.")
    if len(digests) < plan.quorum:
        raise TooFewClientsError(f"Only {len(digests)} clients have keys.")


def check_signatures(
    plan: Plan,
    roster: Sequence[bytes],
    survivors: Collection[int],
    about: bytes,
    signatures: Sequence[tuple[int, bytes]],
) -> None:
    """Passes if a quorum of the survivors signed what is `about_survivors`.

    Raises:
        TooFewClientsError: if fewer did.
        ContradictionError: if somebody else signed.
        NotAuthenticError: if a signature does not hold.
    """
    if len(signatures) < plan.quorum:
        raise TooFewClientsError("Fewer than a quorum signed the survivors.")
    for client, signature in signatures:
        if client not in survivors:
            raise ContradictionError(f"Client {client} signed and did not survive.")
        _crypto.verify(roster[client], signature, about)


def check_neighbours(
    plan: Plan, named: Collection[int], known: Collection[int]
) -> None:
    """Passes if those named are among the known, and enough.

    That is as many as the threshold, and so many that a quorum may be left in all.

    Raises:
        ContradictionError: if one is not known.
        TooFewClientsError: if they are fewer.
    """
    strangers = set(named) - set(known)
    if strangers:
        raise ContradictionError(f"Clients {sorted(strangers)} are not expected.")
    if len(named) < max(plan.threshold, plan.degree - (plan.clients - plan.quorum)):
        raise TooFewClientsError(f"Only {len(named)} neighbours are left.")


def commitment(plan: Plan, client: int, b: bytes) -> bytes:
    """What a client publishes of b, so that wrong shares are seen."""
    return _crypto.commit(_crypto.context("commitment", plan.identifier, client) + b)


def share_digest(plan: Plan, owner: int, holder: int, what: str, share: bytes) -> bytes:
    """What an owner publishes of a share, so that another is refused when opened.

    Of one of b or of s^SK, which is uniform, so that the digest hides it.
    """
    about = _crypto.context(f"share of {what}", plan.identifier, owner, holder)
    return _crypto.commit(about + share)


def self_mask(plan: Plan, client: int, b: bytes) -> Mask:
    """PRG(b), which a client adds."""
    info = _crypto.context("self mask", plan.identifier, client)
    return Mask(_crypto.derive(b, info), 1)


def pairwise_mask(
    plan: Plan, client: int, key: Key, other: int, public: bytes, seed: Seed
) -> Mask:
    """PRG(s_{i,j}), which the client of the lower number adds, the other takes off."""
    pair = min(client, other), max(client, other)
    info = _crypto.context("pairwise mask", plan.identifier, *pair)
    first, second = (key.public, public)[:: 1 if client < other else -1]
    agreed = agree(plan, key, public, seed.secret, first + second + seed.sent)
    return Mask(_crypto.derive(agreed, info), 1 if client < other else -1)


def check_roster(
    plan: Plan, roster: Sequence[bytes] | None
) -> tuple[bytes, ...] | None:
    """The public keys of all clients, if the plan is signed.

    Raises:
        ValueError: if they are missing, too many, not different, or not expected.
    """
    if (roster is None) == plan.signed:
        raise ValueError("Expected a roster if the plan is signed, else none.")
    if roster is None:
        return None
    if len(roster) != plan.clients or not all(map(_crypto.is_verifying_key, roster)):
        raise ValueError(f"Expected a roster of {plan.clients} keys of 32 bytes.")
    if len(set(roster)) != len(roster):
        raise ValueError("Expected a roster of different keys.")
    return tuple(roster)
