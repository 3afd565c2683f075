"""Entropy coding: the bytes, their number, and what is not a code."""

import itertools
import json
import math
import pathlib
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg

RECORDED = json.loads(
    (pathlib.Path(__file__).parents[1] / "data" / "tff_elias_gamma.json").read_text()
)["rows"]

bits_of = jax.jit(fedagg.elias_gamma_bits)

magnitudes = st.one_of(st.integers(1, 4), st.integers(1, 2**31 - 1), st.just(2**31 - 1))
values = st.one_of(magnitudes, magnitudes.map(lambda x: -x), st.just(-(2**31)))
# Zeros and then an entry, over and over, and zeros at the end.
arrays = st.builds(
    lambda runs, rest: np.array(
        [x for zeros, value in runs for x in [0] * zeros + [value]] + [0] * rest,
        np.int32,
    ),
    st.lists(st.tuples(st.integers(0, 70), values), max_size=20),
    st.integers(0, 70),
)
# Many more than elsewhere: nothing here is compiled.
often = hypothesis.settings(max_examples=300)


def slowly_encoded(x: np.ndarray) -> bytes:
    """Bit by bit, as the code is described."""
    bits: list[int] = []

    def write_gamma(k: int) -> None:
        digits = [int(digit) for digit in reversed(f"{k:b}")]
        bits.extend([0] * (len(digits) - 1) + [1] + digits[:-1])

    zeros = 0
    for entry in x.reshape(-1).tolist():
        if entry == 0:
            zeros += 1
            continue
        write_gamma(zeros + 1)
        bits.append(int(entry > 0))
        write_gamma(abs(entry))
        zeros = 0
    if zeros:
        write_gamma(zeros + 1)
    bits.extend([0] * (-len(bits) % 8))
    return bytes(
        sum(bit << i for i, bit in enumerate(bits[start : start + 8]))
        for start in range(0, len(bits), 8)
    )


def mixed(size: int, density: float = 0.3, most: int = 200) -> np.ndarray:
    draw = np.random.default_rng(size)
    held = draw.random(size) < density
    return np.where(held, draw.integers(-most, most, size), 0).astype(np.int32)


def assert_no_code_or_the_only_one(data: bytes, size: int) -> None:
    try:
        x = fedagg.elias_gamma_decode(data, (size,))
    except ValueError:
        return
    assert fedagg.elias_gamma_encode(x) == data


@pytest.mark.parametrize("row", RECORDED, ids=[row["hex"] for row in RECORDED])
def test_the_bytes_are_those_recorded_from_tff(row):
    x = np.array(row["x"], np.int32)

    data = fedagg.elias_gamma_encode(x)

    assert data.hex() == row["hex"]
    assert len(data) == row["bytes"]
    assert bits_of(jnp.asarray(x)) == row["bits"]
    np.testing.assert_array_equal(fedagg.elias_gamma_decode(data, x.shape), x)


@often
@hypothesis.given(arrays)
@pytest.mark.deep
def test_encoding_is_the_slow_one_and_decoding_undoes_it(x):
    data = fedagg.elias_gamma_encode(x)
    decoded = fedagg.elias_gamma_decode(data, x.shape)

    assert data == slowly_encoded(x)
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, x)


def test_every_short_array_of_small_entries_has_its_own_code_and_count():
    every = np.array(list(itertools.product([-1, 0, 1, 2], repeat=5)), np.int32)

    codes = [fedagg.elias_gamma_encode(x) for x in every]
    counts = jax.jit(jax.vmap(fedagg.elias_gamma_bits))(jnp.asarray(every))

    assert codes == [slowly_encoded(x) for x in every]
    assert len(set(codes)) == len(every)
    np.testing.assert_array_equal(counts, [8 * len(code) for code in codes])


@hypothesis.settings(max_examples=100)
@hypothesis.given(arrays)
def test_the_count_is_the_length_of_what_is_encoded(x):
    x = np.append(x, np.zeros(1500, np.int32))[:1500]  # one size compiles once

    count = bits_of(jnp.asarray(x))

    assert count.shape == () and count.dtype == jnp.uint32
    assert count == 8 * len(fedagg.elias_gamma_encode(x))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 3, 4)])
def test_any_shape_is_coded_in_order(shape):
    x = mixed(math.prod(shape), density=1.0).reshape(shape)

    data = fedagg.elias_gamma_encode(x)

    assert data == fedagg.elias_gamma_encode(x.reshape(-1))
    assert fedagg.elias_gamma_decode(data, shape).shape == shape
    np.testing.assert_array_equal(fedagg.elias_gamma_decode(data, shape), x)
    assert bits_of(jnp.asarray(x)) == 8 * len(data)


def test_an_array_without_entries_has_no_bytes():
    assert fedagg.elias_gamma_encode(np.zeros(0, np.int32)) == b""


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
def test_many_entries_come_back_and_are_counted(density):
    x = mixed(200_000, density)  # up to ten pieces of the decoder's

    data = fedagg.elias_gamma_encode(x)

    np.testing.assert_array_equal(fedagg.elias_gamma_decode(data, x.shape), x)
    assert bits_of(jnp.asarray(x)) == 8 * len(data)


def test_a_count_is_exact_where_float32_is_not():
    x = np.full(300_007, 2**31 - 1, np.int32)
    exact = 63 * x.size  # one more than a whole number of bytes

    count = bits_of(jnp.asarray(x))

    assert int(np.float32(exact)) == exact - 1
    assert count == exact + 7 == 8 * len(fedagg.elias_gamma_encode(x))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint8, np.uint16])
def test_a_narrow_dtype_is_coded_as_its_values(dtype):
    bounds = np.iinfo(dtype)
    x = np.array([bounds.max, 0, bounds.min, 1], dtype)

    data = fedagg.elias_gamma_encode(x)

    assert data == slowly_encoded(x)
    assert bits_of(jnp.asarray(x)) == 8 * len(data)


def test_a_wide_dtype_is_coded_where_its_values_fit():
    x = np.array([2**31 - 1, 0, -(2**31), 5])

    assert fedagg.elias_gamma_encode(x) == slowly_encoded(x)
    assert fedagg.elias_gamma_encode(x[:2].astype(np.uint64)) == slowly_encoded(x[:2])


@pytest.mark.parametrize("dtype", [np.float32, np.bool_, np.complex64])
def test_what_is_not_an_integer_is_refused(dtype):
    with pytest.raises(TypeError, match="Expected integers, got"):
        fedagg.elias_gamma_encode(np.zeros(3, dtype))
    with pytest.raises(TypeError, match="Expected integers that int32 holds, got"):
        fedagg.elias_gamma_bits(jnp.zeros(3, dtype))


@pytest.mark.parametrize(
    "x",
    [
        np.array([2**31]),
        np.array([-(2**31) - 1]),
        np.array([2**32 - 1], np.uint32),
        np.array([2**63], np.uint64),
    ],
)
def test_an_entry_beyond_int32_is_refused(x):
    with pytest.raises(ValueError, match="range of int32, got"):
        fedagg.elias_gamma_encode(x)


def test_a_dtype_beyond_int32_is_not_counted():
    with pytest.raises(TypeError, match="int32 holds, got uint32"):
        fedagg.elias_gamma_bits(jnp.zeros(3, jnp.uint32))


def test_a_shape_of_too_many_entries_is_refused():
    with pytest.raises(ValueError, match="at most 2147483648 entries"):
        fedagg.elias_gamma_decode(b"\x02", (2**31 + 1,))
    with pytest.raises(ValueError, match="at most 2147483648 entries"):
        fedagg.elias_gamma_encode(np.broadcast_to(np.int32(0), (2**32,)))
    with pytest.raises(ValueError, match="no negative number"):
        fedagg.elias_gamma_decode(b"\x02", (-1, -1))


@often
@hypothesis.given(arrays, st.integers(0, 2000))
def test_another_number_of_entries_is_refused(x, size):
    data = fedagg.elias_gamma_encode(x)
    hypothesis.assume(size != x.size)

    with pytest.raises(ValueError, match="Expected the code of"):
        fedagg.elias_gamma_decode(data, (size,))


@often
@hypothesis.given(arrays, st.integers(1, 20))
def test_data_that_is_cut_off_or_goes_on_is_refused(x, count):
    data = fedagg.elias_gamma_encode(x)

    with pytest.raises(ValueError, match="Expected the code of"):
        fedagg.elias_gamma_decode(data + bytes(count), x.shape)
    if x.size:
        with pytest.raises(ValueError, match="Expected the code of"):
            fedagg.elias_gamma_decode(data[:-count], x.shape)


@often
@hypothesis.given(st.binary(max_size=60), st.integers(0, 200))
def test_any_bytes_are_refused_or_the_code_of_what_they_decode_to(data, size):
    assert_no_code_or_the_only_one(data, size)


@often
@hypothesis.given(arrays, st.data())
@pytest.mark.deep
def test_a_flipped_bit_is_refused_or_the_code_of_what_it_decodes_to(x, draw):
    data = bytearray(fedagg.elias_gamma_encode(x))
    hypothesis.assume(data)
    flipped = draw.draw(st.integers(0, 8 * len(data) - 1))
    data[flipped // 8] ^= 1 << flipped % 8

    assert_no_code_or_the_only_one(bytes(data), x.size)


@pytest.mark.parametrize("zeros", [32, 63, 64, 65, 1000, 10**6])
def test_a_number_too_long_for_its_place_is_refused(zeros):
    def gamma(digits: int) -> list[int]:
        return [0] * digits + [1] + [0] * digits

    long_value = np.packbits([1, 1, *gamma(zeros)], bitorder="little").tobytes()
    long_gap = np.packbits([*gamma(zeros), 1, 1], bitorder="little").tobytes()

    for data in (long_value, long_gap):
        with pytest.raises(ValueError, match="Expected"):
            fedagg.elias_gamma_decode(data, (5,))


@pytest.mark.parametrize("kind", ["zeros", "ones", "any"])
def test_a_megabyte_of_garbage_is_refused_in_little_memory(kind):
    data = {
        "zeros": bytes(10**6),
        "ones": b"\xff" * 10**6,
        "any": np.random.default_rng(0).bytes(10**6),
    }[kind]
    tracemalloc.start()

    with pytest.raises(ValueError, match="Expected"):
        fedagg.elias_gamma_decode(data, (1000,))
    with pytest.raises(ValueError, match="Expected"):
        fedagg.elias_gamma_decode(b"", (2**31,))

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20
