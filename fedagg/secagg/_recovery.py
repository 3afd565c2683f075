"""Secrets reconstructed from the shares that clients open, and checked."""

from collections.abc import Collection, Mapping

from fedagg.secagg._agreement import Key, key_of
from fedagg.secagg._envelopes import Dealt
from fedagg.secagg._errors import ContradictionError, TooFewClientsError
from fedagg.secagg._masking import Mask
from fedagg.secagg._plan import Plan
from fedagg.secagg._seeds import NO_SEED, Seed, receive_seed, recover_seed
from fedagg.secagg._shamir import coefficients, combine, combine_without
from fedagg.secagg._statements import commitment, pairwise_mask, self_mask


def masks_left(
    plan: Plan,
    sharers: Collection[int],
    survivors: Collection[int],
    openings: Mapping[int, Mapping[int, bytes]],
    dealt: Mapping[int, Dealt],
    keys: Mapping[int, bytes],
) -> tuple[list[Mask], list[int]]:
    """The masks in the sum of the survivors, with the signs that take them off.

    And the clients whose shares give another secret than they announced. Every share is
    as its owner dealt it, so that nobody else can be at fault.

    Args:
        plan: the round's.
        sharers: those whose secrets others have shares of.
        survivors: those of them whose vectors are in the sum.
        openings: by client, the shares that it opened, by the secret's owner.
        dealt: by client, what it dealt.
        keys: by client, its s^PK.

    Raises:
        TooFewClientsError: if too few shares of a secret were opened.
    """
    masks, wrong = [], set()
    for i, secret in _secrets(plan, sharers, openings).items():
        if i in survivors:
            if commitment(plan, i, secret) == dealt[i].commitment:
                masks.append(self_mask(plan, i, secret)._replace(sign=-1))
            else:
                wrong.add(i)
            continue
        key = key_of(plan, secret)
        if key.public != keys[i]:
            wrong.add(i)
            continue
        for j in plan.neighbours(i):
            if j not in survivors:
                continue
            seed = _seed(plan, i, j, secret, key, dealt)
            if seed is None:
                wrong.add(min(i, j))  # who made it
            else:
                # What i would have added is what j has left, but for a sign.
                masks.append(pairwise_mask(plan, i, key, j, keys[j], seed))
    return masks, sorted(wrong)


def _seed(
    plan: Plan,
    dropped: int,
    other: int,
    secret: bytes,
    key: Key,
    dealt: Mapping[int, Dealt],
) -> Seed | None:
    """The seed of two neighbours, by the s^SK of one; None if it is not as dealt."""
    if not plan.hybrid:
        return NO_SEED
    owner, holder = min(dropped, other), max(dropped, other)
    sent, hidden, digest = dealt[owner].seeds[holder]
    if dropped == owner:
        found = recover_seed(plan, owner, holder, secret, hidden, digest)
        return None if found is None else Seed(found, sent)
    try:
        return receive_seed(plan, owner, holder, key, sent, digest)
    except ContradictionError:
        return None


def _secrets(
    plan: Plan, owners: Collection[int], openings: Mapping[int, Mapping[int, bytes]]
) -> dict[int, bytes]:
    """By client, the secret of it that others opened.

    Raises:
        TooFewClientsError: if too few shares of one were opened.
    """
    threshold, found = plan.threshold, {}
    # In the complete graph all secrets have the same holders but for their owners.
    common = sorted(openings)[: threshold + 1]
    whole = plan.degree == plan.clients - 1 and len(common) > threshold
    factors = coefficients([j + 1 for j in common]) if whole else {}
    for i in sorted(owners):
        holders = common if whole else [j for j in plan.neighbours(i) if j in openings]
        holders = [j for j in holders if j != i]
        if len(holders) < threshold:
            raise TooFewClientsError(
                f"{len(holders)} neighbours opened a secret of client {i}, "
                f"not {threshold}."
            )
        shares = {j + 1: int.from_bytes(openings[j][i]) for j in holders[:threshold]}
        if whole:
            left_out = i if i in common else common[-1]
            secret = combine_without(left_out + 1, factors, shares)
        else:
            secret = combine(shares)
        found[i] = secret.to_bytes(32)
    return found
