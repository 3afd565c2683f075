"""Shamir's sharing of a secret: t shares give it, fewer reveal nothing.

Reference: Shamir, "How to Share a Secret", 1979.
"""

import math
from collections.abc import Callable, Mapping, Sequence

PRIME = 2**256 - 189  # so that a share takes 32 bytes


def draw_below(bound: int, random: Callable[[int], bytes]) -> int:
    """A uniform number below `bound`, of random bytes."""
    bits = (bound - 1).bit_length()
    size = (bits + 7) // 8
    while True:
        number = int.from_bytes(random(size)) >> (8 * size - bits)
        if number < bound:  # else it would not be uniform
            return number


def split(
    secret: int,
    threshold: int,
    points: Sequence[int],
    random: Callable[[int], bytes],
    prime: int = PRIME,
) -> list[int]:
    """The values at `points` of a random polynomial of which `secret` is that at zero.

    Points are different from each other and from zero, modulo the prime.
    """
    higher = [draw_below(prime, random) for _ in range(threshold - 1)]
    shares = []
    for x in points:
        y = 0
        for coefficient in reversed([secret, *higher]):
            y = (y * x + coefficient) % prime
        shares.append(y)
    return shares


def combine(shares: Mapping[int, int], prime: int = PRIME) -> int:
    """The secret, from the values at exactly as many points as the threshold."""
    factors = coefficients(list(shares), prime)
    return sum(c * shares[x] for x, c in factors.items()) % prime


def combine_without(
    left_out: int,
    factors: Mapping[int, int],
    shares: Mapping[int, int],
    prime: int = PRIME,
) -> int:
    """The secret from the values at all points but one, with the `factors` of all.

    One set of factors, on one point more than the threshold, is so enough for every
    secret of which one holder is missing: without the point z, the coefficient of the
    value at x is that with it times (z - x) / z.
    """
    total = sum(
        c * (left_out - x) * shares[x] for x, c in factors.items() if x != left_out
    )
    return total * pow(left_out, -1, prime) % prime


def coefficients(points: Sequence[int], prime: int = PRIME) -> dict[int, int]:
    """By what values at points are multiplied to add up to that at zero (Lagrange)."""
    product = math.prod(points) % prime
    below = [x * math.prod(z - x for z in points if z != x) % prime for x in points]
    # One inverse for all: that of the product, from which each takes the others off.
    before = [1]
    for y in below:
        before.append(before[-1] * y % prime)
    inverse, found = pow(before[-1], -1, prime) * product % prime, {}
    for x, y, others in reversed(list(zip(points, below, before, strict=False))):
        found[x] = inverse * others % prime
        inverse = inverse * y % prime
    return found
