"""What the two rates of errors of an attack say of epsilon.

An attack guesses from what is released whether a client took part. Privacy bounds its
errors from below: the chance to accuse who is absent, and that to miss who is there.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy  # whose parts are imported when they are used


def largest_rate(errors: Any, tries: int, level: float) -> np.ndarray:
    """A rate that is exceeded with a chance of at most `level`, from independent tries.

    Reference: Clopper and Pearson, "The Use of Confidence or Fiducial Limits", 1934.
    """
    errors = np.asarray(errors, np.float64)
    left = np.maximum(tries - errors, 0.5)  # with errors alone there is no bound
    bound = np.asarray(scipy.special.betaincinv(errors + 1.0, left, 1.0 - level))
    return np.where(errors < tries, bound, 1.0)


def gaussian_distance(accused: Any, missed: Any) -> np.ndarray:
    """How many deviations apart two Gaussians are that make just these errors.

    Reference: Dong, Roth and Su, "Gaussian Differential Privacy", 2022, section 2.2.
    """
    return np.maximum(
        0.0,
        -np.asarray(scipy.special.ndtri(accused))
        - np.asarray(scipy.special.ndtri(missed)),
    )


def gaussian_delta(epsilon: float, distance: float) -> float:
    """The delta of Gaussians that are so many deviations apart.

    Reference: Balle and Wang, "Improving the Gaussian Mechanism for Differential
        Privacy", 2018, theorem 5; Dong, Roth and Su, 2022, corollary 2.13.
    """
    if distance <= 0.0:
        return 0.0
    shift = epsilon / distance
    tail = math.exp(epsilon + float(scipy.special.log_ndtr(-shift - distance / 2.0)))
    return max(0.0, float(scipy.special.ndtr(-shift + distance / 2.0)) - tail)


def gaussian_epsilon(distance: float, delta: float) -> float:
    """The epsilon of Gaussians that are so many deviations apart."""
    if gaussian_delta(0.0, distance) <= delta:
        return 0.0
    most = distance * (distance / 2.0 - float(scipy.special.ndtri(delta))) + 1.0
    return _root(lambda x: gaussian_delta(x, distance) - delta, 0.0, most)


def any_epsilon(accused: float, missed: float, delta: float) -> float:
    """The least epsilon of any mechanism of which an attack makes these errors.

    Reference: Kairouz, Oh and Viswanath, "The Composition Theorem for Differential
        Privacy", 2015, theorem 2.1.
    """
    right = [(1.0 - b - delta) / a for a, b in ((accused, missed), (missed, accused))]
    return math.log(max(1.0, *right))


def contradicts(
    claim: Callable[[float], float], accused: float, missed: float, delta: float
) -> bool:
    """Whether an attack makes fewer errors than a claim lets it.

    The claim is an epsilon for each delta, and all of them hold together. Where it is
    of Gaussian noise, a tangent of its trade-off at the errors made is asked.
    """
    claimed = claim(delta)
    if not claimed < math.inf:
        return False
    distance = _distance_of(claimed, delta)
    for a, b in ((accused, missed), (missed, accused)):
        slope = distance * (-float(scipy.special.ndtri(a)) - distance / 2.0)
        at_tangent = gaussian_delta(max(0.0, slope), distance)
        for asked in (delta, min(max(at_tangent, delta), 0.999)):
            if any_epsilon(a, b, asked) > claim(asked):
                return True
    return False


def _distance_of(epsilon: float, delta: float) -> float:
    """The inverse of `gaussian_epsilon` in its first argument."""
    high = 1.0
    while gaussian_epsilon(high, delta) <= epsilon:
        high *= 2.0
    return _root(lambda x: gaussian_epsilon(x, delta) - epsilon, 0.0, high)


def _root(fn: Callable[[float], float], low: float, high: float) -> float:
    found: Any = scipy.optimize.brentq(fn, low, high)
    return float(found)
