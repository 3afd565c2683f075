"""What is signed, committed to and derived, bound to a round and its parties."""

from collections.abc import Collection, Sequence

from fedagg.secagg import _crypto
from fedagg.secagg._errors import ContradictionError, TooFewClientsError
from fedagg.secagg._masking import Mask
from fedagg.secagg._plan import Plan


def about_keys(plan: Plan, client: int, agreement: bytes, masking: bytes) -> bytes:
    """What a client signs in step 0."""
    return _crypto.context("keys", plan.identifier, client) + agreement + masking


def about_survivors(plan: Plan, survivors: Collection[int]) -> bytes:
    """What a client signs in step 3."""
    return _crypto.context("survivors", plan.identifier, *sorted(survivors))


def check_signatures(
    plan: Plan,
    roster: Sequence[bytes],
    survivors: Collection[int],
    signatures: Sequence[tuple[int, bytes]],
) -> None:
    """Passes if a quorum of the survivors signed that they are the survivors.

    Raises:
        TooFewClientsError: if fewer did.
        ContradictionError: if somebody else signed.
        NotAuthenticError: if a signature does not hold.
    """
    if len(signatures) < plan.quorum:
        raise TooFewClientsError("Fewer than a quorum signed the survivors.")
    about = about_survivors(plan, survivors)
    for client, signature in signatures:
        if client not in survivors:
            raise ContradictionError(f"Client {client} signed and did not survive.")
        _crypto.verify(roster[client], signature, about)


def check_neighbours(
    plan: Plan, named: Collection[int], known: Collection[int]
) -> None:
    """Passes if those named are among the known, and as many as the threshold.

    Raises:
        ContradictionError: if one is not known.
        TooFewClientsError: if they are fewer.
    """
    strangers = set(named) - set(known)
    if strangers:
        raise ContradictionError(f"Clients {sorted(strangers)} are not expected.")
    if len(named) < plan.threshold:
        raise TooFewClientsError(f"Only {len(named)} neighbours are left.")


def commitment(plan: Plan, client: int, b: bytes) -> bytes:
    """What a client publishes of b, so that wrong shares are seen."""
    return _crypto.commit(_crypto.context("commitment", plan.identifier, client) + b)


def self_mask(plan: Plan, client: int, b: bytes) -> Mask:
    """PRG(b), which a client adds."""
    info = _crypto.context("self mask", plan.identifier, client)
    return Mask(_crypto.derive(b, info), 1)


def pairwise_mask(
    plan: Plan, client: int, private: bytes, other: int, public: bytes
) -> Mask:
    """PRG(s_{i,j}), which the client of the lower number adds, the other takes off."""
    pair = min(client, other), max(client, other)
    info = _crypto.context("pairwise mask", plan.identifier, *pair)
    key = _crypto.derive(_crypto.agree(private, public), info)
    return Mask(key, 1 if client < other else -1)


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
    if len(roster) != plan.clients or any(len(key) != 32 for key in roster):
        raise ValueError(f"Expected a roster of {plan.clients} keys of 32 bytes.")
    if len(set(roster)) != len(roster):
        raise ValueError("Expected a roster of different keys.")
    return tuple(roster)
