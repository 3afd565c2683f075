"""Codes of a few bits in bytes: the layout, its length, and the way back."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedagg._messages.packing import bit_fields, pack, unpack
from fedagg.secagg import _masking
from tests.helpers import first_now

SIZES = [0, 1, 2, 7, 8, 9, 1000]


def codes_of(bits: int, size: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng([bits, size, seed])
    codes = draw.integers(0, 2**bits, size, dtype=np.uint32)
    codes[:2] = [0, 2**bits - 1][:size]
    return codes


def widths_of(bits: int) -> list[int]:
    """Bytes first, and then what the rest is the sum of, the largest first."""
    return [8] * (bits // 8) + [x for x in (4, 2, 1) if bits % 8 & x]


def slowly_packed(codes: np.ndarray, bits: int) -> list[list[int]]:
    """Code by code, as the layout is described."""
    arrays, taken = [], 0
    for width in widths_of(bits):
        length = -(-len(codes) * width // 8)
        packed = [0] * length
        for i, code in enumerate(codes.tolist()):
            part = code >> taken & (1 << width) - 1
            packed[i % length] |= part << i // length * width
        arrays.append(packed)
        taken += width
    return arrays


def back_and_forth(codes: jax.Array, bits: int) -> tuple:
    packed = pack(codes, bits)
    return packed, unpack(packed, bits, codes.size)


def assert_packed(result: tuple, codes: np.ndarray, bits: int) -> None:
    packed, unpacked = result
    assert [x.dtype for x in packed] == [jnp.uint8] * len(packed)
    assert [x.tolist() for x in packed] == slowly_packed(codes, bits)
    assert unpacked.shape == codes.shape
    np.testing.assert_array_equal(np.asarray(unpacked).astype(np.uint32), codes)


@first_now("bits", range(1, 33))
def test_codes_of_any_size_are_packed_as_described_and_come_back(bits):
    every = [codes_of(bits, size) for size in SIZES]

    results = jax.jit(lambda xs: [back_and_forth(x, bits) for x in xs])(
        [jnp.asarray(x) for x in every]
    )

    for result, codes in zip(results, every, strict=True):
        assert_packed(result, codes, bits)


@hypothesis.given(st.integers(1, 32), st.integers(0, 300), st.integers(0, 9))
@pytest.mark.deep
def test_any_number_of_codes_is_packed_and_comes_back(bits, size, seed):
    codes = codes_of(bits, size, seed)

    result = jax.jit(back_and_forth, static_argnums=1)(jnp.asarray(codes), bits)

    assert_packed(result, codes, bits)


@first_now("bits", [1, 3, 4, 8, 13, 32])
def test_codes_of_many_clients_are_packed_each_alone(bits):
    every = np.stack([codes_of(bits, 9, seed) for seed in range(5)])

    many = jax.vmap(lambda x: back_and_forth(x, bits))
    packed, unpacked = jax.jit(many)(jnp.asarray(every))

    for i, codes in enumerate(every):
        assert_packed(([x[i] for x in packed], unpacked[i]), codes, bits)


@pytest.mark.parametrize("bits", [1, 5, 8, 20, 32])
@pytest.mark.deep
def test_signed_integers_are_taken_by_their_bits(bits):
    codes = codes_of(bits, 100)

    result = back_and_forth(jnp.asarray(codes.view(np.int32)), bits)

    assert_packed(result, codes, bits)


@hypothesis.settings(max_examples=100)
@hypothesis.given(st.integers(1, 32), st.integers(0, 10**9))
def test_each_part_is_as_long_as_it_needs_to_be(bits, size):
    codes = jax.ShapeDtypeStruct((size,), jnp.uint32)

    packed = jax.eval_shape(lambda x: pack(x, bits), codes)

    assert [x.size for x in packed] == [-(-size * x // 8) for x in widths_of(bits)]
    assert 8 * sum(x.size for x in packed) < size * bits + 8 * 3


@first_now("bits, octets", [(1, 125), (2, 250), (4, 500), (12, 1500)])
def test_a_thousand_codes_take_their_bits_and_no_more(bits, octets):
    packed = pack(jnp.asarray(codes_of(bits, 1000)), bits)

    assert sum(x.nbytes for x in packed) == octets


@first_now("bits", range(1, 33))
def test_the_protocol_packs_as_compression_does(bits):
    codes = codes_of(bits, 101)

    packed = jax.jit(lambda x: pack(x, bits))(jnp.asarray(codes))
    data = _masking.pack(codes, bits)

    assert b"".join(np.asarray(x).tobytes() for x in packed) == data
    assert _masking.packed_size(bits, 101) == len(data)
    np.testing.assert_array_equal(_masking.unpack(data, bits, 101), codes)
    assert [width for _, width in bit_fields(bits)] == widths_of(bits)
