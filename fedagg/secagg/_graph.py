"""Who is whose neighbour.

Reference: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
    Overhead", 2020, section 3.
"""

import functools
import hashlib


def neighbours(clients: int, degree: int, seed: bytes, client: int) -> tuple[int, ...]:
    """The neighbours of a client, in ascending order.

    Clients stand on a ring in an order that a public seed shuffles, and are neighbours
    of the degree / 2 next ones on either side: a Harary graph. All are neighbours where
    the degree is `clients - 1`.
    """
    if degree == clients - 1:
        return tuple(j for j in range(clients) if j != client)
    ring, place = _ring(clients, seed)
    steps = (step for d in range(1, degree // 2 + 1) for step in (d, -d))
    return tuple(sorted(ring[(place[client] + step) % clients] for step in steps))


@functools.lru_cache(maxsize=8)
def _ring(clients: int, seed: bytes) -> tuple[list[int], list[int]]:
    """The clients in their order, and the place of each."""
    ring = sorted(range(clients), key=lambda client: _rank(seed, client))
    place = [0] * clients
    for i, client in enumerate(ring):
        place[client] = i
    return ring, place


def _rank(seed: bytes, client: int) -> bytes:
    """A pseudorandom number for each client, all of them different."""
    return hashlib.sha256(b"fedagg graph" + seed + client.to_bytes(4)).digest()
