"""The random bits for rounding: uniform, and uncorrelated wherever a sum would show it.

A check takes a hash and returns numbers that are standard normal for true random bits.
It sees the upper 16 bits, which are all that rounding uses.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedagg._compression.random import map_seeded, random_bits, round_randomly
from fedagg._trees.checks import check_key

pytestmark = pytest.mark.thorough


# (words [k, 2], size) -> bits [k, size]
Hash = Callable[[np.ndarray, int], np.ndarray]

MANY = 2**20  # positions, for 16 seeds at once
FEW = 2**16


@functools.partial(jax.jit, static_argnums=1)
def _hashes(words: jax.Array, size: int) -> jax.Array:
    return jax.vmap(lambda x: random_bits(x, size))(words)


def ours(words: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(_hashes(jnp.asarray(words), size))


def mixed(x: np.ndarray) -> np.ndarray:
    """A hash that is good, of a position and a seed that may be put together badly."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def added(words: np.ndarray, size: int) -> np.ndarray:
    """Bad: other seeds give the same sequence, shifted."""
    return mixed(np.arange(size, dtype=np.uint32) + words[:, :1])


def exchanged(words: np.ndarray, size: int) -> np.ndarray:
    """Bad: other seeds give the same sequence in another order."""
    return mixed(np.arange(size, dtype=np.uint32) ^ words[:, :1])


def multiplied(words: np.ndarray, size: int) -> np.ndarray:
    """Bad: neighbours differ by a constant."""
    position = np.arange(size, dtype=np.uint32) ^ words[:, :1]
    return (position * np.uint32(0x7FEB352D)) ^ words[:, 1:]


def multiplied_twice(words: np.ndarray, size: int) -> np.ndarray:
    """Bad, but not by much: in long vectors a few distances are correlated."""
    x = multiplied(words, size) ^ words[:, 1:]  # which takes the second word off
    return (x ^ (x >> 16) ^ words[:, 1:]) * np.uint32(0x846CA68B)


def short_of_ones(words: np.ndarray, size: int) -> np.ndarray:
    """Bad: what is near the top is moved down a little."""
    x = mixed(np.arange(size, dtype=np.uint32) ^ words[:, :1] ^ mixed(words[:, 1:]))
    return x - (x >> 8)


def words_from(*path: int, rows: int) -> np.ndarray:
    """The seeds `[rows, 2]` of as many clients' keys."""
    key = jax.random.key(7)
    for step in path:
        key = jax.random.fold_in(key, step)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(rows))
    return np.array(jax.vmap(lambda x: jax.random.bits(x, (2,), jnp.uint32))(keys))


def centred(bits: np.ndarray) -> np.ndarray:
    """The upper 16 bits as numbers of mean zero and variance one."""
    return ((bits >> 16).astype(np.float32) - 32767.5) / np.sqrt((2.0**32 - 1) / 12)


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each row of one with the row of the other, in standard deviations."""
    return np.einsum("kd,kd->k", x, y) / np.sqrt(x.shape[1])


def between(x: np.ndarray) -> np.ndarray:
    """Correlations of all pairs of rows."""
    return (x @ x.T)[np.triu_indices(len(x), 1)] / np.sqrt(x.shape[1])


def walsh_hadamard(x: np.ndarray) -> np.ndarray:
    """The orthonormal transform of each row."""
    rows, size = x.shape
    width = 1
    while width < size:
        pairs = x.reshape(-1, 2, width)
        upper, lower = pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]
        x = np.stack([upper, lower], axis=1)
        width *= 2
    return x.reshape(rows, size) / np.sqrt(size)


@functools.cache
def histogram_of(hashed: Hash) -> np.ndarray:
    """How often each value of the upper 16 bits occurs in 2**24 draws."""
    rows = hashed(words_from(rows=16), MANY)
    return np.bincount((rows >> 16).reshape(-1), minlength=2**16)


def chi_square(counts: np.ndarray) -> np.ndarray:
    expected = counts.sum() / counts.size
    excess = np.sum((counts - expected) ** 2) / expected - (counts.size - 1)
    return np.array([excess / np.sqrt(2 * (counts.size - 1))])


def mean(hashed: Hash) -> np.ndarray:
    counts = histogram_of(hashed)
    total = np.sum(counts * (np.arange(2**16) - 32767.5))
    return np.array([total / np.sqrt(counts.sum() * (2.0**32 - 1) / 12)])


def each_bit(hashed: Hash) -> np.ndarray:
    counts = histogram_of(hashed)
    is_one = np.arange(2**16)[:, None] >> np.arange(16) & 1
    return (counts @ (2 * is_one - 1)) / np.sqrt(counts.sum())


def upper_byte(hashed: Hash) -> np.ndarray:
    return chi_square(histogram_of(hashed).reshape(256, 256).sum(axis=1))


def lower_byte(hashed: Hash) -> np.ndarray:
    return chi_square(histogram_of(hashed).reshape(256, 256).sum(axis=0))


def both_bytes(hashed: Hash) -> np.ndarray:
    return chi_square(histogram_of(hashed))


def neighbours(hashed: Hash) -> np.ndarray:
    draws = centred(hashed(words_from(1, rows=4), MANY))
    lags = [*range(1, 65), *(2**i for i in range(7, 20))]
    return np.concatenate([correlations(draws[:, :-x], draws[:, x:]) for x in lags])


def every_lag(hashed: Hash) -> np.ndarray:
    """Correlations with all cyclic shifts of itself."""
    spectrum = np.fft.rfft(centred(hashed(words_from(2, rows=16), FEW)))
    return np.fft.irfft(np.abs(spectrum) ** 2)[:, 1 : FEW // 2] / np.sqrt(FEW)


def pairs_of_neighbours(hashed: Hash) -> np.ndarray:
    draws = hashed(words_from(3, rows=4), MANY) >> 28
    lags = [1, 2, 3, 4, 8, 64, 1024]
    pairs = [(draws[:, :-x] << 4 | draws[:, x:]).reshape(-1) for x in lags]
    return np.concatenate([chi_square(np.bincount(x, minlength=256)) for x in pairs])


def clients(hashed: Hash) -> np.ndarray:
    return between(centred(hashed(words_from(4, rows=64), FEW)))


def rare_events_of_clients(hashed: Hash) -> np.ndarray:
    draws = hashed(words_from(4, rows=64), FEW) >> 16
    return between(((draws < 2**13) - np.float32(1 / 8)) / np.sqrt(7 / 64))


def rounds(hashed: Hash) -> np.ndarray:
    words = np.concatenate([words_from(5, i, rows=8) for i in range(8)])
    return between(centred(hashed(words, FEW)))


def moved_seeds(hashed: Hash) -> np.ndarray:
    """Of two seeds whose first words hash the same positions, in another order."""
    position = np.arange(FEW)
    moves = np.array([0, 1, 2, 3, 5, 64, 255, 4096, 2**15, FEW - 1, 12345], np.uint32)
    words, others = words_from(6, rows=2 * len(moves)).reshape(2, len(moves), 2)
    words[:, 0] &= np.uint32(2**32 - 2 * FEW)  # so that nothing is carried beyond
    draws = centred(hashed(words, 2 * FEW))
    others[:, 0] = words[:, 0] ^ moves
    swapped = centred(hashed(others, FEW))
    others[:, 0] = words[:, 0] + moves
    shifted = centred(hashed(others, FEW))
    there = np.take_along_axis(draws, position ^ moves[:, None], axis=1)
    behind = np.take_along_axis(draws, position + moves[:, None], axis=1)
    return np.concatenate(
        [correlations(there, swapped), correlations(behind, shifted)]
        + [correlations(draws[:, :FEW], x) for x in (swapped, shifted)]
    )


def rotated_errors(hashed: Hash) -> np.ndarray:
    """Rounding errors, summed over 16 clients whose seeds are close, and rotated."""
    words = words_from(8, rows=64).reshape(4, 16, 2)
    words[:, :, 0] = words[:, :1, 0] ^ np.arange(16, dtype=np.uint32)
    draws = hashed(words.reshape(64, 2), FEW).reshape(4, 16, FEW) >> 16
    chances = [np.full(FEW, 20_000), np.random.default_rng(0).integers(0, 2**16, FEW)]
    transformed = []
    for chance in chances:
        errors = np.sum(draws < chance, axis=1) - 16 * (chance / 2**16)
        variance = 16 * np.mean(chance / 2**16 * (1 - chance / 2**16))
        transformed.append(walsh_hadamard(errors / np.sqrt(variance)))
    return np.concatenate(transformed)


CHECKS = {
    x.__name__: x
    for x in (
        mean,
        each_bit,
        upper_byte,
        lower_byte,
        both_bytes,
        neighbours,
        every_lag,
        pairs_of_neighbours,
        clients,
        rare_events_of_clients,
        rounds,
        moved_seeds,
        rotated_errors,
    )
}


def is_normal(deviations: np.ndarray) -> bool:
    """False for what true random bits would do once in a thousand runs at most."""
    limit = 5 if deviations.size < 5000 else 6
    if deviations.size > 100:
        excess = abs(np.var(deviations) - 1) / np.sqrt(2 / deviations.size)
        limit = limit if excess < 5 else 0
    return bool(np.max(np.abs(deviations)) < limit)


@pytest.mark.parametrize("check", CHECKS)
def test_the_bits_are_as_true_random_bits_would_be(check):
    assert is_normal(CHECKS[check](ours))


@pytest.mark.parametrize(
    "hashed, failed",
    [
        (added, {"moved_seeds", "rotated_errors"}),
        (exchanged, {"moved_seeds", "rotated_errors"}),
        (multiplied, {"neighbours", "every_lag", "clients", "rounds"}),
        (multiplied_twice, {"neighbours"}),
        (short_of_ones, {"mean", "each_bit", "upper_byte", "both_bytes"}),
    ],
)
def test_the_checks_find_what_is_bad_with_a_hash(hashed, failed):
    found = {name for name in failed if not is_normal(CHECKS[name](hashed))}

    assert found == failed


def test_every_leaf_of_every_client_has_words_of_its_own():
    keys = jax.random.split(jax.random.key(7), 4)
    tree = {"a": jnp.zeros(3), "b": [jnp.zeros(3), jnp.zeros(3)]}

    seeded = jax.vmap(lambda key: map_seeded(lambda x, words: words, key, tree))(keys)

    words = np.concatenate(jax.tree.leaves(seeded))
    assert words.shape == (12, 2) and words.dtype == np.uint32
    assert len(np.unique(words)) == 24


def test_without_a_key_there_are_no_words():
    assert map_seeded(lambda x, words: words is None, None, [1.0]) == [True]


def test_fewer_positions_have_the_same_bits():
    words = words_from(rows=2)

    assert ours(words, 0).shape == (2, 0)
    np.testing.assert_array_equal(ours(words, 7), ours(words, 50)[:, :7])


rounded = jax.jit(round_randomly)


def test_rounding_has_the_mean_of_each_entry():
    values = np.array(
        [-1000.25, -2.7, -0.5, -0.001, 0.03, 0.5, 1.9, 7000.4], np.float32
    )
    each = 2**20
    x = np.tile(values, each)

    y = np.asarray(rounded(jnp.asarray(x), words_from(1, rows=1)[0])).reshape(each, -1)

    chance = values.astype(np.float64) - np.floor(values)
    deviation = np.mean(y, axis=0, dtype=np.float64) - values
    # A chance is of 16 bits, rounded.
    most = 5 * np.sqrt(chance * (1 - chance) / each) + 2.0**-17
    assert np.all(np.abs(deviation) < most)
    assert np.all((y == np.floor(values)) | (y == np.ceil(values)))


def test_a_whole_number_stays_what_it_is():
    values = [0.0, 1.0, -1.0, -3.0, 255.0, 2.0**23, 2.0**23 + 1, -(2.0**24), 3e38]
    x = jnp.asarray(np.tile(np.array([*values, np.inf, -np.inf], np.float32), 10_000))

    np.testing.assert_array_equal(rounded(x, words_from(2, rows=1)[0]), x)


def test_a_number_that_is_almost_whole_becomes_whole():
    x = jnp.asarray(
        np.tile(np.array([2**-18, 1 - 2**-18, -(2**-18)], np.float32), 10_000)
    )

    np.testing.assert_array_equal(rounded(x, words_from(3, rows=1)[0]), jnp.round(x))


def test_what_is_not_a_number_stays_so():
    x = jnp.asarray(np.array([np.nan, 0.5, np.nan], np.float32))

    y = rounded(x, words_from(4, rows=1)[0])

    assert jnp.array_equal(jnp.isnan(y), jnp.array([True, False, True]))


def test_a_missing_key_is_refused_by_name():
    key = jax.random.key(0)

    assert check_key(key, "quantization", "random numbers") is key
    with pytest.raises(ValueError, match="quantization draws random numbers"):
        check_key(None, "quantization", "random numbers")
