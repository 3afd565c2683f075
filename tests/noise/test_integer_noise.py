"""Integer noise: its laws to 64 bits, its tables, and what is drawn from them."""

import decimal
import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from fedagg._noise.integer_laws import discrete_gaussian, skellam
from fedagg._noise.integer_noise import (
    LARGEST_STDDEV,
    Table,
    decided,
    draw,
    table_of,
    words,
)

pytestmark = pytest.mark.thorough


DRAWS = 400_000
LAWS = {"skellam": skellam, "discrete_gaussian": discrete_gaussian}
every_law = pytest.mark.parametrize("name", LAWS)


def chances(name: str, stddev: float, k: np.ndarray) -> np.ndarray:
    """The law in float64, by functions that ours does not use."""
    if name == "skellam":
        return scipy.special.ive(np.abs(k), stddev**2)
    weights = np.exp(-(k**2) / (2.0 * stddev**2))
    far = np.arange(1, math.ceil(40 * stddev))
    return weights / (1.0 + 2.0 * np.sum(np.exp(-(far**2) / (2.0 * stddev**2))))


def exact_weights(name: str, stddev: Fraction, most: int) -> list[Fraction]:
    """The law's weights of 0, 1, ..., to 60 digits."""
    with decimal.localcontext(prec=80):
        if name == "discrete_gaussian":
            variance = decimal.Decimal(stddev.numerator) / stddev.denominator
            variance = 2 * variance * variance
            return [Fraction((-i * i / variance).exp()) for i in range(most)]
    half = stddev**2 / 2  # the power series of the Bessel function
    return [
        sum(
            (
                half ** (2 * m + i) / (math.factorial(m) * math.factorial(m + i))
                for m in range(100)
            ),
            Fraction(0),
        )
        for i in range(most)
    ]


@functools.cache
def drawn(name: str, stddev: float, seed: int = 0) -> np.ndarray:
    table = table_of(LAWS[name], stddev)
    draws = jax.jit(lambda key: draw(table, key, DRAWS))(jax.random.key(seed))
    assert draws.dtype == jnp.int32
    return np.asarray(draws)


@every_law
@pytest.mark.parametrize("stddev", [0.5, 1.0, 3.3, 40.0, LARGEST_STDDEV])
def test_a_law_is_the_closed_form(name, stddev):
    shares = LAWS[name](stddev).of

    n = len(shares) // 2
    k = np.arange(-n, n + 1, dtype=np.float64)
    got = np.array([float(x) for x in shares]) / 2.0**96
    assert sum(shares) == 2**96
    assert shares == shares[::-1]
    np.testing.assert_allclose(got, chances(name, stddev, k), rtol=1e-11, atol=2e-28)


@every_law
@pytest.mark.parametrize("stddev", [Fraction(1, 2), Fraction(2), Fraction(13, 4)])
def test_a_law_is_off_by_a_half_of_its_integers_in_units_of_the_96_bits(name, stddev):
    shares, error = LAWS[name](float(stddev))

    n = len(shares) // 2
    weights = exact_weights(name, stddev, n + 60)
    off = errors(shares, weights)
    assert sum(off) / 2 <= Fraction(error) * 2**96
    assert all(x <= Fraction(1, 2) for i, x in enumerate(off) if i != n + 59)
    # And what is stated is no more than all roundings being as large as can be.
    assert error < (len(shares) + 160) * 2.0**-97


def test_the_widest_law_is_as_near_as_stated():
    shares, error = discrete_gaussian(LARGEST_STDDEV)

    # Beyond those, less than 2**-120 of all.
    most = len(shares) // 2 + 4000
    off = errors(shares, exact_weights("discrete_gaussian", Fraction(1800), most))
    assert sum(off) / 2 <= Fraction(error) * 2**96
    assert 2.0**-85 < sum(off) / 2**97 < error < 2.0**-80


def errors(shares: tuple[int, ...], weights: list[Fraction]) -> list[Fraction]:
    """How far shares are from a law, in parts of 2**96, also where there are none."""
    n = len(weights) - 1
    total = 2 * sum(weights) - weights[0]
    padded = dict(enumerate(shares, -(len(shares) // 2)))
    return [
        abs(padded.get(i, 0) - Fraction(2**96) * weights[abs(i)] / total)
        for i in range(-n, n + 1)
    ]


@every_law
@pytest.mark.parametrize("stddev", [0.5, 3.3, LARGEST_STDDEV])
def test_a_table_has_the_law_to_the_last_bit(name, stddev):
    table, shares = table_of(LAWS[name], stddev), LAWS[name](stddev).of

    spare = 32 - table.width
    got = [0] * 2**table.width
    for column in range(2**table.width):
        first, second, third = (
            int(x[column]) for x in (table.first, table.second, table.third)
        )
        threshold = (first % 2**spare) << 64 | second << 32 | third
        got[column] += threshold
        got[first >> spare] += 2 ** (96 - table.width) - threshold

    assert got[: len(shares)] == list(shares)
    assert not any(got[len(shares) :])
    assert table.lowest == -(len(shares) // 2)


def test_what_two_words_leave_open_is_decided_by_a_third():
    # Two columns of 2**95 each, and thresholds that end in a third word of one half.
    half = 2**31
    table = Table(
        np.array([(1 << 31) | 7, (0 << 31) | 7], np.uint32),
        np.array([5, 5], np.uint32),
        np.array([half, half], np.uint32),
        lowest=-1,
        error=0.0,
    )
    word = jnp.array([7, 7, 7, 2**31 + 7], jnp.uint32)
    lower = jnp.array([4, 5, 6, 5], jnp.uint32)

    keys = jax.random.split(jax.random.key(0), 400)
    drawn = np.asarray(jax.vmap(lambda key: decided(table, word, lower, key))(keys))

    # The first is below its threshold, the third above, and two are on it.
    assert np.all(drawn[:, 0] == -1) and np.all(drawn[:, 2] == 0)
    for i in (1, 3):
        assert set(drawn[:, i]) == {-1, 0}
        assert abs(np.mean(drawn[:, i] == 0) - 0.5) < 5.0 * 0.5 / math.sqrt(400)


@every_law
@pytest.mark.parametrize("stddev", [0.5, 3.3, 50.0, LARGEST_STDDEV])
def test_draws_have_the_moments_of_the_law(name, stddev):
    x = drawn(name, stddev).astype(np.float64) / stddev

    k = np.arange(-60.0 - 12.0 * stddev, 61.0 + 12.0 * stddev) // 1.0
    p = chances(name, stddev, k)
    variance, fourth = ((p * (k / stddev) ** i).sum() for i in (2, 4))
    if name == "skellam":
        np.testing.assert_allclose(variance, 1.0, rtol=1e-9)
        np.testing.assert_allclose(fourth / variance**2, 3.0 + stddev**-2, rtol=1e-9)
    # Six deviations of the estimates from so many draws, or a bit less.
    root = math.sqrt(DRAWS)
    sixth = fourth * 15.0
    assert abs(x.mean()) < 5.0 / root
    assert abs(x.var() / variance - 1.0) < 0.012
    assert abs((x**3).mean()) < 6.0 * math.sqrt(sixth) / root
    assert abs((x**4).mean() / fourth - 1.0) < (0.03 if stddev > 1.0 else 0.06)


def p_value(x: np.ndarray, name: str, stddev: float) -> float:
    """That of the counts of single integers, or of stretches of them."""
    width = max(1, round(stddev / 20))
    n = math.ceil(3.5 * stddev / width)
    edges = width * np.arange(-n, n + 1)
    counts = [np.sum(x < edges[0]), *np.histogram(x, edges)[0][:-1]]
    counts += [np.sum((edges[-2] <= x) & (x < edges[-1])), np.sum(x >= edges[-1])]
    k = np.arange(edges[0], edges[-1])
    p = chances(name, stddev, k.astype(np.float64))
    inner = p.reshape(-1, width).sum(axis=1)
    far = np.arange(edges[0] - math.ceil(9 * stddev) - 40, edges[0])
    below = chances(name, stddev, far.astype(np.float64))
    expected = np.array([below.sum(), *inner, 0.0])
    expected[-1] = 1.0 - expected.sum()
    return scipy.stats.chisquare(counts, DRAWS * expected).pvalue


@every_law
@pytest.mark.parametrize("stddev", [0.5, 3.3, 50.0, LARGEST_STDDEV])
def test_draws_have_the_mass_of_the_law_and_not_of_one_five_percent_wider(name, stddev):
    x = drawn(name, stddev)

    assert p_value(x, name, stddev) > 1e-3
    assert p_value(x, name, 1.05 * stddev) < 1e-9


def test_draws_of_two_keys_and_two_places_are_independent():
    one, two = drawn("skellam", 3.3, 0), drawn("skellam", 3.3, 1)

    for a, b in (
        (one, two),
        (one[:-1], one[1:]),
        (one[: DRAWS // 2], one[-DRAWS // 2 :]),
    ):
        assert abs(np.corrcoef(a, b)[0, 1]) < 6.0 / math.sqrt(len(a))
        assert abs(np.corrcoef(a**2, b**2)[0, 1]) < 6.0 / math.sqrt(len(a))


def test_words_are_those_of_the_generator_with_half_of_its_blocks():
    first, second = words(jax.random.key(3), 1000)

    with jax.threefry_partitionable(False):
        bits = jax.random.bits(jax.random.key(3), (2000,), jnp.uint32)
    np.testing.assert_array_equal(np.concatenate([first, second]), bits)


def test_keys_of_another_generator_will_do():
    table = table_of(skellam, 50.0)

    x = draw(table, jax.random.key(0, impl="rbg"), DRAWS)

    assert p_value(np.asarray(x), "skellam", 50.0) > 1e-3


def test_clients_draw_side_by_side_what_each_draws_alone():
    table = table_of(skellam, 3.3)
    keys = jax.random.split(jax.random.key(0), 3)

    together = jax.vmap(lambda key: draw(table, key, 7))(keys)

    for i in range(3):
        np.testing.assert_array_equal(together[i], draw(table, keys[i], 7))
