"""Guesses whether a canary was there, learnt from trials of which that is known."""

from typing import Any, NamedTuple

import numpy as np

from fedagg._privacy.tradeoff import gaussian_distance, largest_rate


class Attack(NamedTuple):
    """A sum of what was read: the canary was there if it exceeds a threshold."""

    used: slice  # of each round's readings
    weights: np.ndarray  # [rounds * used]
    threshold: float

    def score(self, read: np.ndarray) -> np.ndarray:
        """The sums, of readings `[..., rounds, 1 + metrics]`."""
        used = read[..., self.used]
        return used.reshape(*used.shape[:-2], -1) @ self.weights

    def errors(self, read: np.ndarray, level: float) -> tuple[float, float]:
        """What the rates of false accusations and of misses do not exceed, each.

        Readings are `[2, trials, ...]`; each bound is wrong with a chance of `level`.
        """
        accused = self.score(read[0]) > self.threshold
        missed = self.score(read[1]) <= self.threshold
        bounds = largest_rate([accused.sum(), missed.sum()], len(accused), level)
        return float(bounds[0]), float(bounds[1])


VALUES, ALL = slice(0, 1), slice(0, None)

# A threshold is chosen by bounds as sure as this. Of many that are less sure, the best
# is one where errors are few by luck, and the attack is then weak.
_SURE = 1e-5


def learnt(read: np.ndarray, used: slice) -> Attack:
    """The attack that makes the most of readings `[2, trials, rounds, 1 + metrics]`.

    Weights are Fisher's, best between Gaussians of one covariance, and the threshold is
    that whose errors, as they are bounded, tell most apart.
    """
    x = read[..., used].reshape(*read.shape[:2], -1)
    apart = x[1].mean(axis=0) - x[0].mean(axis=0)
    centered = (x - x.mean(axis=1, keepdims=True)).reshape(-1, x.shape[-1])
    deviation = centered.std(axis=0)
    # What does not vary tells all, or nothing.
    size = np.maximum(deviation, 1e-6 * np.abs(x).max(axis=(0, 1)))
    size = np.where(size > 0.0, size, 1.0)
    covariance = (centered / size).T @ (centered / size) / len(centered)
    ridge = 1e-6 * np.eye(len(size))
    weights = np.linalg.solve(covariance + ridge, apart / size) / size
    attack = Attack(used, weights, 0.0)
    out, there = np.sort(attack.score(read[0])), np.sort(attack.score(read[1]))
    tried = np.quantile(np.concatenate([out, there]), np.linspace(0.0, 1.0, 257))
    accused = len(out) - np.searchsorted(out, tried, side="right")
    missed = np.searchsorted(there, tried, side="right")
    rates = [largest_rate(x, len(out), _SURE) for x in (accused, missed)]
    best = int(np.argmax(gaussian_distance(*rates)))
    return attack._replace(threshold=float(_between(out, there, tried[best])))


def _between(out: np.ndarray, there: np.ndarray, threshold: float) -> float:
    """The middle of the gap above a threshold."""
    scores = np.concatenate([out, there])
    above = scores[scores > threshold]
    return threshold if not above.size else (threshold + float(above.min())) / 2.0


def promise(read: np.ndarray, used: slice, level: float) -> float:
    """How far apart an attack tells the worlds: learnt on one half, tried on the other.

    Where it makes no errors, the gap between the worlds is counted in deviations too.
    """
    half = read.shape[1] // 2
    attack = learnt(read[:, :half], used)
    rest: Any = attack.score(read[:, half:])
    accused, missed = attack.errors(read[:, half:], level)
    deviation = np.sqrt(rest.var(axis=1).mean())
    gap = rest[1].mean() - rest[0].mean()
    ratio = gap / deviation if deviation > 0.0 else np.inf * np.sign(gap)
    bounded = float(gaussian_distance(accused, missed))
    return bounded + (1e-3 * np.nan_to_num(np.clip(ratio, -100.0, 100.0)))
