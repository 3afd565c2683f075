"""Laws of integer noise, exact to 96 bits: how much of 2**96 falls on each integer.

All is worked out in Python's integers, once for each size of noise.
"""

import functools
import math
from fractions import Fraction
from typing import NamedTuple

BITS = 96

# Numbers are kept with so many bits, and tails are left out beyond 2**-_TAIL.
_PRECISION, _TAIL = 256, 128


class Shares(NamedTuple):
    """A law in whole parts of 2**96."""

    of: tuple[int, ...]  # the integers -k to k
    error: float  # total variation from the law that is meant, at most


@functools.lru_cache(maxsize=32)
def skellam(stddev: float) -> Shares:
    """Of a difference of two Poissons.

    The difference of two independent Poisson variables of mean `stddev**2 / 2` is `i`
    with a chance in proportion to the Bessel function `I_i(stddev**2)`. These follow
    from the recurrence `I_{i-1} = I_{i+1} + (2 i / stddev**2) I_i`, taken downwards,
    which loses no precision.

    Reference: Skellam, "The Frequency Distribution of the Difference between Two
        Poisson Variates Belonging to Different Populations", 1946; Gautschi,
        "Computational Aspects of Three-Term Recurrence Relations", 1967, section 5.
    """
    variance = Fraction(stddev) ** 2

    def exponent(i: int) -> float:
        """The chance of `i` or more is at most `exp` of minus this (Chernoff)."""
        mean = float(variance)
        return i * math.asinh(i / mean) - math.hypot(i, mean) + mean

    most = 2
    while exponent(most) < _TAIL * math.log(2.0):
        most += most // 2
    above, here = 0, 1 << _PRECISION
    downwards = [here]
    for i in range(most, 0, -1):
        factor = 2 * i / variance
        above, here = here, above + here * factor.numerator // factor.denominator
        downwards.append(here)
    return _shares(downwards[::-1])


@functools.lru_cache(maxsize=32)
def discrete_gaussian(stddev: float) -> Shares:
    """Of the discrete Gaussian.

    The chance of `i` is in proportion to `exp(-i**2 / (2 stddev**2))`.

    Reference: Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential
        Privacy", 2020, definition 1.
    """
    variance = Fraction(stddev) ** 2
    most = 1 + math.ceil(stddev * math.sqrt(2.0 * _TAIL * math.log(2.0)))
    factor = _exp_of_minus(1 / (2 * variance))
    squared = factor * factor >> _PRECISION
    here = 1 << _PRECISION
    upwards = [here]
    for _ in range(most):
        # From i**2 to (i + 1)**2, which are 2 i + 1 apart.
        here = here * factor >> _PRECISION
        factor = factor * squared >> _PRECISION
        upwards.append(here)
    return _shares(upwards)


def _exp_of_minus(x: Fraction) -> int:
    """exp(-x) in units of 2**-_PRECISION, for x from zero to a few."""
    spare = 64
    unit = 1 << (_PRECISION + spare)
    total, term, i = unit, unit, 0
    while term:
        i += 1
        term = term * x.numerator // (x.denominator * i)
        total += -term if i % 2 else term
    return total >> spare


def _shares(weights: list[int]) -> Shares:
    """Of weights of 0, 1, ... and as much of -1, ....

    Each share is rounded to the nearest, also to zero, and what is left over goes to
    zero. Of `n` integers in all that is `n / 2` parts of total variation at most. Tails
    beyond them, and what arithmetic with 256 bits leaves out, are below 2**-120.
    """
    total = 2 * sum(weights) - weights[0]
    unit = BITS + 1
    halves = [((w << unit) + total) // (2 * total) for w in weights[1:]]
    error = (len(weights) - 0.5) * 2.0**-BITS + 2.0**-120
    while halves and halves[-1] == 0:
        halves.pop()
    of = (*reversed(halves), 2**BITS - 2 * sum(halves), *halves)
    return Shares(of, error)
