"""Shamir's sharing of a secret: t shares give it, fewer reveal nothing.

Reference: Shamir, "How to Share a Secret", 1979.
"""

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
    secret = 0
    for x, y in shares.items():
        numerator, denominator = 1, 1
        for other in shares:
            if other != x:
                numerator = numerator * other % prime
                denominator = denominator * (other - x) % prime
        secret += y * numerator * pow(denominator, -1, prime)
    return secret % prime
