"""The graph: regular, symmetric, shuffled, and hard to cut."""

import collections
import hashlib
import itertools
import tracemalloc

import pytest

from fedagg.secagg._graph import neighbours


def neighbourhoods(clients: int, degree: int, seed: bytes):
    return [neighbours(clients, degree, seed, i) for i in range(clients)]


sizes = pytest.mark.parametrize(
    ("clients", "degree"), [(9, 4), (9, 8), (2, 1), (100, 22)]
)


def parts(graph, left: set[int]) -> int:
    """Into how many parts the clients that are left fall."""
    count, left = 0, set(left)
    while left:
        count, reached = count + 1, [left.pop()]
        while reached:
            around = left.intersection(graph[reached.pop()])
            left -= around
            reached.extend(around)
    return count


@sizes
def test_it_is_regular_and_symmetric_and_nobody_is_a_neighbour_of_itself(
    clients, degree
):
    graph = neighbourhoods(clients, degree, bytes(32))

    for i, around in enumerate(graph):
        assert len(set(around)) == degree == len(around)
        assert sorted(around) == list(around)
        assert all(i in graph[j] and i != j for j in around)


def test_a_large_ring_takes_little_memory_and_is_the_order_of_hashes():
    seed, clients = b"y" * 32, 2**15
    tracemalloc.start()

    around = neighbours(clients, 2, seed, 5)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * clients  # bytes

    def rank(client: int) -> bytes:
        text = b"fedagg graph" + seed + client.to_bytes(4)
        return hashlib.sha256(text).digest()

    ring = sorted(range(clients), key=rank)
    place = ring.index(5)
    assert set(around) == {ring[place - 1], ring[(place + 1) % clients]}


def test_fewer_clients_than_the_degree_do_not_cut_it():
    graph = neighbourhoods(9, 4, b"x" * 32)

    for gone in itertools.combinations(range(9), 3):
        assert parts(graph, set(range(9)) - set(gone)) == 1


def test_two_gaps_of_half_the_degree_cut_it():
    graph = neighbourhoods(9, 4, b"x" * 32)

    cut = [
        gone
        for gone in itertools.combinations(range(9), 4)
        if parts(graph, set(range(9)) - set(gone)) == 2
    ]

    assert len(cut) == 9 * 4 // 2  # choices of two gaps that do not touch


def test_every_pair_is_equally_likely_over_seeds():
    counts = collections.Counter()

    for seed in range(2000):
        graph = neighbourhoods(6, 2, seed.to_bytes(32))
        counts.update((i, j) for i in range(6) for j in graph[i])

    expected, spread = 2000 * 2 / 5, (2000 * 0.4 * 0.6) ** 0.5
    assert len(counts) == 30
    assert all(abs(x - expected) < 4.5 * spread for x in counts.values())
