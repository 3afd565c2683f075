"""Guesses whether a canary was there, learnt from trials of which that is known."""

from typing import Any, NamedTuple

import numpy as np

from fedagg._privacy.tradeoff import gaussian_distance, largest_rate


class Mixture(NamedTuple):
    """How readings look of which a canary is a part by chance."""

    chance: float
    otherwise: float  # by what its value is multiplied where it is not itself
    centre: np.ndarray  # [rounds * used], of readings without it
    size: np.ndarray  # of its part
    deviation: np.ndarray  # of the noise

    def ratios(self, x: np.ndarray) -> np.ndarray:
        """The logarithm of the ratio of both chances, for each of `[..., used]`."""
        own, other = (self._log(x, self.size * f) for f in (1.0, self.otherwise))
        return own - other

    def _log(self, x: np.ndarray, size: np.ndarray) -> np.ndarray:
        size = size / self.deviation
        shift = (x - self.centre) / self.deviation * size - size**2 / 2.0
        return np.log1p(self.chance * np.expm1(np.minimum(shift, 500.0)))


class Attack(NamedTuple):
    """A sum of what was read: the canary was there if it exceeds a threshold."""

    used: slice  # of each round's readings
    weights: np.ndarray  # [rounds * used], and as many for ratios
    threshold: float
    mixture: Mixture | None = None

    def score(self, read: np.ndarray) -> np.ndarray:
        """The sums, of readings `[..., rounds, 1 + metrics]`."""
        return _features(read, self.used, self.mixture) @ self.weights

    def errors(self, read: np.ndarray, level: float) -> tuple[float, float]:
        """What the rates of false accusations and of misses do not exceed, each.

        Readings are `[2, trials, ...]`; each bound is wrong with a chance of `level`.
        """
        accused = self.score(read[0]) > self.threshold
        missed = self.score(read[1]) <= self.threshold
        bounds = largest_rate([accused.sum(), missed.sum()], len(accused), level)
        return float(bounds[0]), float(bounds[1])


def _features(read: np.ndarray, used: slice, mixture: Mixture | None) -> np.ndarray:
    x = read[..., used]
    x = x.reshape(*x.shape[:-2], -1)
    return x if mixture is None else np.append(x, mixture.ratios(x), axis=-1)


VALUES, ALL = slice(0, 1), slice(0, None)

# A threshold is chosen by bounds as sure as this. Of many that are less sure, the best
# is one where errors are few by luck, and the attack is then weak.
_SURE = 1e-5


def learnt(
    read: np.ndarray, used: slice, chance: float = 1.0, otherwise: float = 0.0
) -> Attack:
    """The attack that makes the most of readings `[2, trials, rounds, 1 + metrics]`.

    Weights are Fisher's, best between Gaussians of one covariance, and the threshold is
    that whose errors, as they are bounded, tell most apart. Of a canary that is in a
    round by chance, ratios of chances are weighed beside readings.
    """
    mixture = _mixture(read, used, chance, otherwise) if chance < 1.0 else None
    x = _features(read, used, mixture)
    apart = x[1].mean(axis=0) - x[0].mean(axis=0)
    centered = (x - x.mean(axis=1, keepdims=True)).reshape(-1, x.shape[-1])
    deviation = centered.std(axis=0)
    # What does not vary tells all, or nothing.
    size = np.maximum(deviation, 1e-6 * np.abs(x).max(axis=(0, 1)))
    size = np.where(size > 0.0, size, 1.0)
    covariance = (centered / size).T @ (centered / size) / len(centered)
    ridge = 1e-6 * np.eye(len(size))
    weights = np.linalg.solve(covariance + ridge, apart / size) / size
    attack = Attack(used, weights, 0.0, mixture)
    out, there = np.sort(attack.score(read[0])), np.sort(attack.score(read[1]))
    tried = np.quantile(np.concatenate([out, there]), np.linspace(0.0, 1.0, 257))
    accused = len(out) - np.searchsorted(out, tried, side="right")
    missed = np.searchsorted(there, tried, side="right")
    rates = [largest_rate(x, len(out), _SURE) for x in (accused, missed)]
    best = int(np.argmax(gaussian_distance(*rates)))
    return attack._replace(threshold=float(_between(out, there, tried[best])))


def _mixture(read: np.ndarray, used: slice, chance: float, otherwise: float) -> Mixture:
    x = _features(read, used, None)
    out, there = x.mean(axis=1)
    size = (there - out) / (chance * (1.0 - otherwise))
    # What the canary's own coming and going adds is no noise.
    spread = np.var(x[0], axis=0)
    rest = spread - chance * (1.0 - chance) * (otherwise * size) ** 2
    variance = np.maximum(rest, 1e-3 * spread)
    deviation = np.sqrt(np.where(variance > 0.0, variance, 1.0))
    return Mixture(chance, otherwise, out - chance * otherwise * size, size, deviation)


def _between(out: np.ndarray, there: np.ndarray, threshold: float) -> float:
    """The middle of the gap above a threshold."""
    scores = np.concatenate([out, there])
    above = scores[scores > threshold]
    return threshold if not above.size else (threshold + float(above.min())) / 2.0


def promise(
    read: np.ndarray, used: slice, level: float, chance: float, otherwise: float
) -> float:
    """How far apart an attack tells the worlds: learnt on one half, tried on the other.

    Where it makes no errors, the gap between the worlds is counted in deviations too.
    """
    half = read.shape[1] // 2
    attack = learnt(read[:, :half], used, chance, otherwise)
    rest: Any = attack.score(read[:, half:])
    accused, missed = attack.errors(read[:, half:], level)
    deviation = np.sqrt(rest.var(axis=1).mean())
    gap = rest[1].mean() - rest[0].mean()
    ratio = gap / deviation if deviation > 0.0 else np.inf * np.sign(gap)
    bounded = float(gaussian_distance(accused, missed))
    return bounded + (1e-3 * np.nan_to_num(np.clip(ratio, -100.0, 100.0)))
