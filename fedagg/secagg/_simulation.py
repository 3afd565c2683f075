"""A whole round in one process."""

from collections.abc import Mapping, Sequence

import numpy as np

from fedagg.secagg._client import Client
from fedagg.secagg._demands import AnyPlan
from fedagg.secagg._identity import generate_identity
from fedagg.secagg._plan import Plan
from fedagg.secagg._server import Server


def simulate(
    plan: Plan,
    vectors: Sequence[np.ndarray] | np.ndarray,
    *,
    drop: Mapping[int, str] | None = None,
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Runs the real protocol, and gives the sum and the clients that are in it.

    The sum `[length]` is uint32, modulo 2**bits. Identities are made up.

    Args:
        plan: the round's.
        vectors: one for each client, uint32 `[length]` below 2**bits.
        drop: for clients that drop out, what they no longer send: "keys", "shares",
            "vectors", "signatures" or "openings".

    Raises:
        ProtocolError: if too many drop out. There is no wrong sum.
        ValueError: if vectors or `drop` do not fit the plan.

    Reference: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
        Overhead", 2020, algorithm 2.
    """
    drop = {} if drop is None else drop
    if len(vectors) != plan.clients:
        raise ValueError(f"Expected {plan.clients} vectors, got {len(vectors)}.")
    steps = ["keys", "shares", "vectors", "signatures", "openings"]
    if not set(drop) <= set(range(plan.clients)) or not set(drop.values()) <= {*steps}:
        raise ValueError(f"Expected clients of the plan and {steps}, got {drop=}.")
    identities, roster = [None] * plan.clients, None
    if plan.signed:
        identities, roster = zip(
            *(generate_identity() for _ in range(plan.clients)), strict=True
        )
    clients = [
        Client(plan, i, vector, AnyPlan(), identity=identity, roster=roster)
        for i, (vector, identity) in enumerate(zip(vectors, identities, strict=True))
    ]
    server = Server(plan, roster=roster)
    messages: Mapping[int, bytes | None] = dict.fromkeys(range(plan.clients))
    while messages:
        for i, message in messages.items():
            if i in drop and steps.index(drop[i]) <= steps.index(server.step):
                continue
            server.receive(i, clients[i].respond(message))
        messages = server.close()
    return server.total, server.survivors
