"""A server whose clients lie, in a complete graph: its work alone, of many clients.

What clients of a complete graph do grows with the square of their number, so that these
are made up: they share their secrets by constant polynomials, which the server cannot
tell from others, and seal nothing in their envelopes, which it does not open.
"""

import secrets
import time
from collections.abc import Iterable

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


def measure(plan: secagg.Plan, liars: Iterable[int], dropped: int) -> dict:
    """What the server took, whom it refused, and whether its sum is that of the rest.

    Args:
        plan: of a complete graph, not signed.
        liars: clients that open, in place of a share that they got, another.
        dropped: how many of the last clients drop out with their vectors.
    """
    everybody, left = range(plan.clients), range(plan.clients - dropped)
    server, spent = secagg.Server(plan), [0.0]

    def receive(i: int, message) -> None:
        data = messages.encode(message, plan, i, SERVER)
        start = time.perf_counter()
        try:
            server.receive(i, data)
        finally:
            spent[0] += time.perf_counter() - start

    def close() -> float:
        start = time.perf_counter()
        server.close()
        spent[0] += (took := time.perf_counter() - start)
        return took

    b, s, c = ([_secret() for _ in everybody] for _ in range(3))
    keys = [key_of(plan, x) for x in s]
    publics = [x.public for x in keys]
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
    expected, gone = np.zeros(plan.length, np.uint32), everybody[len(left) :]
    for i in left:
        vector = np.full(plan.length, i, np.uint32)
        expected += vector
        # Masks that two survivors have in common cancel, and are left out.
        masks = [pairwise_mask(plan, i, keys[i], j, publics[j], NO_SEED) for j in gone]
        add_masks(vector, [self_mask(plan, i, b[i]), *masks])
        receive(i, messages.MaskedInput(pack(vector, plan.bits)))
    close()
    lying, refused = set(liars), []
    for i in left:
        opened = [(j, b[j]) for j in left if j != i]
        if i in lying:
            opened[0] = opened[0][0], _secret()
        try:
            receive(i, messages.Opened(opened, [(j, s[j]) for j in gone]))
        except secagg.ContradictionError:
            refused.append(i)
    closing = close()
    return {
        "clients": plan.clients,
        "degree": plan.degree,
        "threshold": plan.threshold,
        "entries": plan.length,
        "liars": len(lying),
        "dropped": dropped,
        "refused": refused,
        "is_right": bool((server.total == expected).all()),
        "server_seconds": spent[0],
        "close_seconds": closing,
    }


def _secret() -> bytes:
    return _shamir.draw_below(_shamir.PRIME, secrets.token_bytes).to_bytes(32)
