"""A server whose clients are made up: its work alone, of many clients.

They share their secrets by constant polynomials, which the server cannot tell from
others, seal nothing in their envelopes, which it does not open, and leave out masks
that two survivors have in common, which cancel. What the server does of their messages
is all that it does of others'.
"""

import secrets
import time
from collections.abc import Callable, Iterable

import numpy as np

from fedagg import secagg
from fedagg.secagg import _messages as messages
from fedagg.secagg import _shamir
from fedagg.secagg._agreement import key_of
from fedagg.secagg._crypto import SEALED
from fedagg.secagg._masking import add_masks, pack
from fedagg.secagg._messages import SERVER
from fedagg.secagg._seeds import NO_SEED
from fedagg.secagg._statements import (
    commitment,
    pairwise_mask,
    self_mask,
    share_digest,
)


def measure(plan: secagg.Plan, dropped: int, liars: Iterable[int] = ()) -> dict:
    """What the server took, whom it refused, and whether its sum is that of the rest.

    Args:
        plan: neither signed nor hybrid.
        dropped: how many of the last clients drop out with their vectors.
        liars: clients that open, in place of a share that they got, another.
    """
    everybody, left = range(plan.clients), range(plan.clients - dropped)
    server, clock = secagg.Server(plan), Clock()

    def receive(i: int, message) -> None:
        data = messages.encode(message, plan, i, SERVER)
        clock.time(lambda: server.receive(i, data))

    def close() -> float:
        outbox = clock.time(server.close)
        took = clock.last
        for i in outbox:
            clock.time(lambda i=i: outbox[i])
        return took

    b, s, c = ([_secret() for _ in everybody] for _ in range(3))
    publics = [key_of(plan, x).public for x in s]
    for i in everybody:
        known = key_of(plan, c[i]).public, publics[i], messages.NO_SIGNATURE
        receive(i, messages.Keys(*known))
    close()
    envelope = bytes(64 + SEALED)
    for i in everybody:
        shared = [
            (
                *(j, envelope),
                share_digest(plan, i, j, "b", b[i]),
                share_digest(plan, i, j, "s", s[i]),
            )
            for j in plan.neighbours(i)
        ]
        receive(i, messages.Shares(commitment(plan, i, b[i]), shared))
    close()
    expected = np.zeros(plan.length, np.uint32)
    for i in left:
        vector = np.full(plan.length, i, np.uint32)
        expected += vector
        key, gone = key_of(plan, s[i]), _gone(plan, i, left)
        masks = [pairwise_mask(plan, i, key, j, publics[j], NO_SEED) for j in gone]
        add_masks(vector, [self_mask(plan, i, b[i]), *masks])
        vector &= np.uint32(2**plan.bits - 1)
        receive(i, messages.MaskedInput(pack(vector, plan.bits)))
    close()
    lying, refused = set(liars), []
    for i in left:
        opened = [(j, b[j]) for j in plan.neighbours(i) if j in left]
        if i in lying:
            opened[0] = opened[0][0], _secret()
        try:
            gone = _gone(plan, i, left)
            receive(i, messages.Opened(opened, [(j, s[j]) for j in gone]))
        except secagg.ContradictionError:
            refused.append(i)
    closing = close()
    expected &= np.uint32(2**plan.bits - 1)
    return {
        "clients": plan.clients,
        "degree": plan.degree,
        "threshold": plan.threshold,
        "entries": plan.length,
        "liars": len(lying),
        "dropped": dropped,
        "refused": refused,
        "is_right": bool((server.total == expected).all()),
        "server_seconds": clock.spent,
        "close_seconds": closing,
    }


class Clock:
    """How long something took, the last time and in all, in seconds."""

    def __init__(self):
        self.last = self.spent = 0.0

    def time(self, run: Callable):
        start = time.perf_counter()
        try:
            return run()
        finally:
            self.last = time.perf_counter() - start
            self.spent += self.last


def _gone(plan: secagg.Plan, client: int, left: range) -> list[int]:
    """Its neighbours that drop out."""
    return [j for j in plan.neighbours(client) if j not in left]


def _secret() -> bytes:
    return _shamir.draw_below(_shamir.PRIME, secrets.token_bytes).to_bytes(32)
