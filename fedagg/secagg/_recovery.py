"""Secrets out of the shares that clients open, and proof that they are right."""

from collections.abc import Callable, Mapping

from fedagg.secagg import _crypto
from fedagg.secagg._errors import RecoveryError
from fedagg.secagg._masking import Mask
from fedagg.secagg._plan import Plan
from fedagg.secagg._shamir import combine
from fedagg.secagg._statements import commitment, self_mask


def recover_b(
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


def recover_s(
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
    """The secret, from any t shares in a row, over the end to the start.

    One wrong share, or several in a row, are passed over where t others are left.
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
