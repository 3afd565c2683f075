"""Masks: what is added comes off, and the server's view tells the sum alone."""

import collections
import itertools
import tracemalloc

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from fedagg.secagg import MalformedMessageError, _masking
from fedagg.secagg._masking import Mask

often = hypothesis.settings(max_examples=100)


@pytest.mark.parametrize("length", [0, 1, 2**16 - 1, 2**16, 2**17 + 3])
def test_masks_are_keystreams_and_come_off_again(length):
    plain = np.arange(length, dtype=np.uint32)
    masks = [Mask(b"a" * 32, 1), Mask(b"b" * 32, -1)]
    streams = []
    for mask in masks:
        buffer = bytearray(4 * length + 15)
        _masking.keystream(mask.key)(bytes(4 * length), buffer)
        streams.append(np.frombuffer(buffer, "<u4", length))

    total = plain.copy()
    _masking.add_masks(total, masks)
    masked = total.copy()
    _masking.add_masks(total, [mask._replace(sign=-mask.sign) for mask in masks])

    assert np.array_equal(masked, plain + streams[0] - streams[1])
    assert np.array_equal(total, plain)


def test_masking_needs_memory_for_a_piece_of_one_mask_only():
    total = np.zeros(2**20, np.uint32)
    masks = [Mask(bytes([i]) * 32, 1) for i in range(20)]
    tracemalloc.start()

    _masking.add_masks(total, masks)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20  # a quarter of the vector


def test_a_key_is_not_shown():
    assert "secret" not in repr([Mask(b"secret" * 5, 1)])


def constant(key: bytes):
    """In place of a keystream: the one entry that the key is."""

    def fill(plain: bytes, buffer: bytearray) -> int:
        buffer[: len(plain)] = key * (len(plain) // 4)
        return len(plain)

    return fill


def masked(x: int, masks: list[tuple[int, int]], bits: int) -> int:
    """An entry under masks that are given as numbers, by our arithmetic."""
    total = np.array([x], np.uint32)
    keys = [Mask(mask.to_bytes(4, "little"), sign) for mask, sign in masks]
    _masking.add_masks(total, keys, constant)
    return int(_masking.reduce(total, bits)[0])


@pytest.mark.parametrize("dropped", [False, True])
def test_the_servers_view_is_the_same_for_all_inputs_of_one_sum(dropped):
    """Three clients with entries in Z_4, and all masks there are.

    The server learns all y, b of who survived, and s of a client 2 that dropped out,
    whose y comes late.
    """
    ring, bits = range(4), 2
    views = collections.defaultdict(collections.Counter)
    inputs = [(0, 1, 2), (3, 0, 0), (1, 1, 1), (2, 3, 2)]  # of sum 3
    if dropped:
        inputs = [(0, 1, 2), (3, 2, 0), (2, 3, 3)]  # those of 0 and 1 have sum 1

    for x in inputs:
        for b0, b1, b2, s01, s02, s12 in itertools.product(ring, repeat=6):
            y = (
                masked(x[0], [(b0, 1), (s01, 1), (s02, 1)], bits),
                masked(x[1], [(b1, 1), (s01, -1), (s12, 1)], bits),
                masked(x[2], [(b2, 1), (s02, -1), (s12, -1)], bits),
            )
            opened = (b0, b1, s02, s12) if dropped else (b0, b1, b2)
            views[x][y, opened] += 1

    assert len(set(map(frozenset, (view.items() for view in views.values())))) == 1


vectors = st.integers(1, 32).flatmap(
    lambda bits: st.tuples(
        st.just(bits),
        hnp.arrays(np.uint32, st.integers(0, 40), elements=st.integers(0, 2**bits - 1)),
    )
)


@often
@hypothesis.given(vectors)
def test_a_packed_vector_comes_back_from_as_many_bytes_as_said(drawn):
    bits, vector = drawn

    data = _masking.pack(vector, bits)

    assert len(data) == _masking.packed_size(bits, vector.size)
    assert 0 <= len(data) - vector.size * bits / 8 < 4
    assert np.array_equal(_masking.unpack(data, bits, vector.size), vector)


@often
@hypothesis.given(st.integers(1, 32), st.integers(0, 20), st.data())
def test_bytes_are_refused_or_the_only_ones_of_their_vector(bits, length, draw):
    size = _masking.packed_size(bits, length)
    data = draw.draw(st.binary(min_size=size, max_size=size))

    try:
        vector = _masking.unpack(data, bits, length)
    except MalformedMessageError:
        return

    assert _masking.pack(vector, bits) == data
    for other in (data + b"\0", data[:-1]):
        if len(other) != size:
            with pytest.raises(MalformedMessageError, match="entries"):
                _masking.unpack(other, bits, length)
