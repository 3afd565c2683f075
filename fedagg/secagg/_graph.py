"""Who is whose neighbour."""

import functools
import hashlib


@functools.lru_cache(maxsize=8)
def neighbourhoods(
    clients: int, degree: int, seed: bytes
) -> tuple[tuple[int, ...], ...]:
    """For each client its neighbours, in ascending order.

    Clients stand on a ring in an order that a public seed shuffles, each beside the
    degree / 2 next ones on either side: a Harary graph. All are neighbours where the
    degree is `clients - 1`.

    Reference: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
        Overhead", 2020, section 3.
    """
    if degree == clients - 1:
        everyone = tuple(range(clients))
        return tuple(everyone[:i] + everyone[i + 1 :] for i in range(clients))
    ring = sorted(range(clients), key=lambda client: _rank(seed, client))
    result: list[tuple[int, ...]] = [()] * clients
    steps = [step for d in range(1, degree // 2 + 1) for step in (d, -d)]
    for place, client in enumerate(ring):
        around = (ring[(place + step) % clients] for step in steps)
        result[client] = tuple(sorted(around))
    return tuple(result)


def _rank(seed: bytes, client: int) -> bytes:
    """As good as a random number for each client; no two are the same."""
    return hashlib.sha256(b"fedagg graph" + seed + client.to_bytes(4)).digest()
