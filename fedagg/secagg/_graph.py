"""Who is whose neighbour.

Reference: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
    Overhead", 2020, section 3.
"""

import functools
import hashlib

import numpy as np


def neighbours(clients: int, degree: int, seed: bytes, client: int) -> tuple[int, ...]:
    """The neighbours of a client, in ascending order.

    Clients stand on a ring in an order that a public seed shuffles, and are neighbours
    of the degree / 2 next ones on either side: a Harary graph. All are neighbours where
    the degree is `clients - 1`.
    """
    if degree == clients - 1:
        return (*range(client), *range(client + 1, clients))
    ring, place = _ring(clients, seed)
    steps = np.arange(1, degree // 2 + 1)
    places = (place[client] + np.concatenate([steps, -steps])) % clients
    return tuple(np.sort(ring[places]).tolist())


@functools.lru_cache(maxsize=8)
def _ring(clients: int, seed: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The clients in their order `[clients]`, and the place of each `[clients]`."""
    ranks = bytearray(32 * clients)
    for client in range(clients):
        ranks[32 * client : 32 * (client + 1)] = _rank(seed, client)
    words = np.frombuffer(ranks, ">u8").reshape(clients, 4)
    ring = np.lexsort(words.T[::-1])  # the first word counts most
    place = np.empty_like(ring)
    place[ring] = np.arange(clients)
    return ring, place


def _rank(seed: bytes, client: int) -> bytes:
    """A pseudorandom number for each client, all of them different."""
    return hashlib.sha256(b"fedagg graph" + seed + client.to_bytes(4)).digest()
