"""Sharing of secrets: enough shares give the secret, fewer say nothing."""

import collections
import fractions
import itertools
import math

import hypothesis
import hypothesis.strategies as st
import pytest

from fedagg.secagg import _shamir
from tests.secagg.rounds import repeatable


def bytes_of(*numbers: int):
    """A source of random bytes that gives these, each as one byte."""
    rest = iter(numbers)
    return lambda size: bytes(next(rest) for _ in range(size))


@pytest.mark.parametrize("points", [[1, 2, 3, 4, 5], [9, 1, 1000, 2**31, 7]])
def test_every_group_as_large_as_the_threshold_gives_the_secret(points):
    secret = 2**256 - 190

    for threshold in range(1, 6):
        shares = _shamir.split(secret, threshold, points, repeatable("a"))
        shared = dict(zip(points, shares, strict=True))
        for group in itertools.combinations(points, threshold):
            assert _shamir.combine({x: shared[x] for x in group}) == secret


@hypothesis.given(st.integers(0, _shamir.PRIME - 1), st.integers(1, 20), st.randoms())
def test_any_secret_comes_back(secret, threshold, random):
    points = random.sample(range(1, 100), threshold)

    shares = _shamir.split(secret, threshold, points, random.randbytes)

    assert _shamir.combine(dict(zip(points, shares, strict=True))) == secret


@hypothesis.given(st.integers(0, _shamir.PRIME - 1), st.integers(1, 20), st.randoms())
def test_one_set_of_coefficients_serves_whichever_point_is_missing(secret, t, random):
    points = random.sample(range(1, 100), t + 1)
    factors = _shamir.coefficients(points)

    shares = dict(
        zip(points, _shamir.split(secret, t, points, random.randbytes), strict=True)
    )

    for missing in points:
        others = {x: y for x, y in shares.items() if x != missing}
        assert _shamir.combine_without(missing, factors, others) == secret


def test_coefficients_are_those_of_lagrange_in_fractions():
    points, prime = [1, 2, 5, 11], 101
    exact = [
        math.prod(fractions.Fraction(z, z - x) for z in points if z != x)
        for x in points
    ]

    found = _shamir.coefficients(points, prime)

    for x, y in zip(points, exact, strict=True):
        assert found[x] * y.denominator % prime == y.numerator % prime


@pytest.mark.parametrize("threshold", [2, 3])
def test_fewer_shares_are_exactly_uniform_whatever_the_secret(threshold):
    prime, points = 7, range(1, 5)
    views = collections.defaultdict(collections.Counter)

    for secret in range(prime):
        for drawn in itertools.product(range(prime), repeat=threshold - 1):
            # A number takes the three highest bits of a byte.
            random = bytes_of(*(x << 5 for x in drawn))
            shares = _shamir.split(secret, threshold, points, random, prime)
            for group in itertools.combinations(range(4), threshold - 1):
                views[secret, group][tuple(shares[i] for i in group)] += 1

    for view in views.values():
        assert len(view) == prime ** (threshold - 1)
        assert set(view.values()) == {1}


def test_numbers_are_drawn_uniformly_with_those_out_of_range_left_out():
    drawn = [_shamir.draw_below(5, bytes_of(x << 5, 0)) for x in range(8)]

    assert drawn == [0, 1, 2, 3, 4, 0, 0, 0]


def test_the_field_is_that_of_a_prime_and_a_share_has_32_bytes():
    p = _shamir.PRIME

    assert p.bit_length() == 256
    for base in (2, 3, 5, 7, 11, 13):  # the test of Miller and Rabin; p = 3 modulo 4
        assert p % 4 == 3 and pow(base, (p - 1) // 2, p) in (1, p - 1)


def test_a_wrong_share_gives_another_secret():
    shares = dict(enumerate(_shamir.split(5, 3, [1, 2, 3], repeatable("b")), start=1))

    shares[2] += 1

    assert _shamir.combine(shares) != 5
