"""What a client finds in the envelopes of its neighbours."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fedagg.secagg import _messages
from fedagg.secagg._agreement import Key
from fedagg.secagg._envelopes import Way, open_dealt
from fedagg.secagg._errors import ContradictionError, ProtocolError
from fedagg.secagg._messages import SERVER
from fedagg.secagg._plan import Plan
from fedagg.secagg._seeds import Seed, receive_seed


class Opened(NamedTuple):
    """By neighbour, what it dealt to this client."""

    shares: dict[int, tuple[bytes, bytes]]  # of its b and of its s^SK
    seeds: dict[int, Seed]
    accused: list[int]  # whose envelope, or seed, is not what it should be


def read_shares(plan: Plan, client: int, message: bytes):
    """The envelopes for a client, and by neighbour the seeds that they sent.

    Raises:
        ProtocolError: if the message is not what it should be.
    """
    way = plan, SERVER, client
    if not plan.hybrid:
        told = _messages.decode(_messages.SharesOfNeighbours, message, *way)
        return told.envelopes, {}
    told = _messages.decode(_messages.HybridSharesOfNeighbours, message, *way)
    return told.envelopes, {j: x for j, *x in told.seeds}


def open_all(
    plan: Plan,
    client: int,
    own: tuple[Key, Key],
    keys: Mapping[int, tuple[bytes, bytes]],
    envelopes: Sequence[tuple[int, bytes, bytes, bytes]],
    seeds: Mapping[int, Sequence[bytes]],
) -> Opened:
    """Opens all envelopes, and the seeds of neighbours with lower numbers.

    Args:
        plan: the round's.
        client: whose they are.
        own: its c and s.
        keys: by neighbour, c^PK and s^PK.
        envelopes: by sender, with the digests of shares.
        seeds: by sender, ciphertext and digest; none if the plan is not hybrid.

    Raises:
        ContradictionError: if seeds are missing, or of somebody else.
    """
    owners = {j for j, *_ in envelopes if plan.hybrid and j < client}
    if seeds.keys() != owners:
        raise ContradictionError("The seeds are not of the lower neighbours.")
    found = Opened({}, {}, [])
    for j, *envelope in envelopes:
        way = Way(plan, j, client)
        try:
            shares = open_dealt(way, own[0], keys[j][0], *envelope)
            if j in seeds:
                found.seeds[j] = receive_seed(*way, own[1], *seeds[j])
            found.shares[j] = shares
        except ProtocolError:
            found.accused.append(j)
    return found
