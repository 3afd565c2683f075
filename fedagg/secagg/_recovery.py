"""Secrets reconstructed from the shares that clients open, and checked."""

from collections.abc import Callable, Collection, Mapping

from fedagg.secagg import _crypto
from fedagg.secagg._errors import RecoveryError, TooFewClientsError
from fedagg.secagg._masking import Mask
from fedagg.secagg._plan import Plan
from fedagg.secagg._shamir import combine
from fedagg.secagg._statements import commitment, pairwise_mask, self_mask


def masks_left(
    plan: Plan,
    sharers: Collection[int],
    survivors: Collection[int],
    openings: Mapping[int, Mapping[int, bytes]],
    commitments: Mapping[int, bytes],
    keys: Mapping[int, bytes],
) -> list[Mask]:
    """The masks in the sum of the survivors, with the signs that take them off.

    Args:
        plan: the round's.
        sharers: those whose secrets others have shares of.
        survivors: those of them whose vectors are in the sum.
        openings: by client, the shares that it opened, by the secret's owner.
        commitments: by client, to its b.
        keys: by client, its s^PK.

    Raises:
        TooFewClientsError: if too few shares of a secret were opened.
        RecoveryError: if they are wrong.
    """
    masks = []
    for i in sorted(sharers):
        neighbours = plan.neighbours(i)
        shares = {j: openings[j][i] for j in neighbours if j in openings}
        if len(shares) < plan.threshold:
            raise TooFewClientsError(
                f"{len(shares)} neighbours opened a secret of client {i}, "
                f"not {plan.threshold}."
            )
        if i in survivors:
            mask = _recover_b(plan, i, shares, commitments[i])
            masks.append(mask._replace(sign=-1))
            continue
        s = _recover_s(plan, i, shares, keys[i])
        for j in neighbours:
            # What i would have added is what j has left in the sum, but for a sign.
            if j in survivors:
                masks.append(pairwise_mask(plan, i, s, j, keys[j]))
    return masks


def _recover_b(
    plan: Plan, client: int, shares: Mapping[int, bytes], committed: bytes
) -> Mask:
    """The mask that a client added for itself.

    Raises:
        RecoveryError: if no b fits what the client committed to.
    """
    found = _search(
        plan, client, shares, lambda b: commitment(plan, client, b) == committed
    )
    return self_mask(plan, client, found)


def _recover_s(
    plan: Plan, client: int, shares: Mapping[int, bytes], public: bytes
) -> bytes:
    """The private key from which a client made the masks it shares with others.

    Raises:
        RecoveryError: if no key fits the public one.
    """
    return _search(plan, client, shares, lambda s: _crypto.public_key(s) == public)


def _search(
    plan: Plan,
    client: int,
    shares: Mapping[int, bytes],
    is_right: Callable[[bytes], bool],
) -> bytes:
    """The secret from t consecutive shares, tried from each start, with wrap-around.

    Wrong shares do no harm where t others, one after the other, are left.
    """
    points = [(j + 1, int.from_bytes(y)) for j, y in shares.items()]
    for start in range(len(points)):
        turned = points[start:] + points[:start]
        secret = combine(dict(turned[: plan.threshold])).to_bytes(32)
        if is_right(secret):
            return secret
        if len(points) == plan.threshold:
            break  # the others are the same ones
    raise RecoveryError(
        f"Shares of client {client} do not give the secret that it announced."
    )
