"""Rules on a matrix `[n, d]` of clients, slow, in float64, straight from the papers."""

import itertools

import numpy as np


def median(x: np.ndarray) -> np.ndarray:
    return np.median(x, axis=0)


def trimmed_mean(x: np.ndarray, f: int) -> np.ndarray:
    return np.sort(x, axis=0)[f : len(x) - f].mean(axis=0)


def mean_around_median(x: np.ndarray, f: int) -> np.ndarray:
    result = []
    for column in x.T:
        order = np.argsort(np.abs(column - np.median(column)))
        result.append(np.mean(column[order[: len(x) - f]]))
    return np.array(result)


def distances(x: np.ndarray) -> np.ndarray:
    return np.array([[np.linalg.norm(a - b) for b in x] for a in x])


def krum_scores(x: np.ndarray, f: int) -> np.ndarray:
    others = np.sort(distances(x) ** 2, axis=1)[:, 1 : len(x) - f]
    return others.sum(axis=1)


def krum(x: np.ndarray, f: int) -> np.ndarray:
    return x[np.argmin(krum_scores(x, f))]


def multi_krum(x: np.ndarray, f: int) -> np.ndarray:
    return x[np.argsort(krum_scores(x, f))[: len(x) - f]].mean(axis=0)


def bulyan(x: np.ndarray, f: int) -> np.ndarray:
    left, chosen = list(range(len(x))), []
    while len(chosen) < len(x) - 2 * f:
        chosen.append(left.pop(int(np.argmin(krum_scores(x[left], f)))))
    return mean_around_median(x[chosen], 2 * f)


def minimum_diameter(x: np.ndarray, f: int) -> np.ndarray:
    d = distances(x)
    subsets = itertools.combinations(range(len(x)), len(x) - f)
    return x[list(min(subsets, key=lambda s: d[np.ix_(s, s)].max()))].mean(axis=0)


def smea(x: np.ndarray, f: int) -> np.ndarray:
    def norm(subset: tuple[int, ...]) -> float:
        return float(np.linalg.norm(np.cov(x[list(subset)].T, bias=True), 2))

    subsets = itertools.combinations(range(len(x)), len(x) - f)
    return x[list(min(subsets, key=norm))].mean(axis=0)


def caf(x: np.ndarray, f: int) -> np.ndarray:
    left, best, least = np.ones(len(x)), np.zeros(x.shape[1]), np.inf
    while left.sum() > len(x) - 2 * f:
        mean = left @ x / left.sum()
        away = x - mean
        values, vectors = np.linalg.eigh((left * away.T) @ away / left.sum())
        if values[-1] < least:
            best, least = mean, values[-1]
        square = (away @ vectors[:, -1]) ** 2
        left = left * (1.0 - square / square.max())
    return best


def geometric_median(x: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    weights = np.ones(len(x)) if weights is None else weights
    point = np.median(x, axis=0)
    for _ in range(20_000):
        pull = weights / np.maximum(np.linalg.norm(x - point, axis=1), 1e-12)
        point = pull @ x / pull.sum()
    return point


def centered_clipping(
    x: np.ndarray, center: np.ndarray, radius: float, iterations: int
) -> np.ndarray:
    for _ in range(iterations):
        away = x - center
        norms = np.linalg.norm(away, axis=1, keepdims=True)
        center = center + (away * np.minimum(1.0, radius / norms)).mean(axis=0)
    return center


def nearest_neighbor_mixing(x: np.ndarray, f: int) -> np.ndarray:
    near = np.argsort(distances(x), axis=1)[:, : len(x) - f]
    return np.array([x[rows].mean(axis=0) for rows in near])


def adaptive_robust_clipping(x: np.ndarray, f: int) -> np.ndarray:
    norms = np.linalg.norm(x, axis=1)
    clipped = 2 * f * (len(x) - f) // len(x)
    bound = np.sort(norms)[len(x) - clipped - 1]
    return x * np.minimum(1.0, bound / norms)[:, None]


def mean_with_ties_in_parts(x: np.ndarray, f: int) -> np.ndarray:
    """As `mean_around_median`, where ties at the edge count for a part each."""
    kept, away = len(x) - f, np.abs(x - np.median(x, axis=0))
    farthest = np.sort(away, axis=0)[kept - 1]
    inside, edge = away < farthest, away == farthest
    room = (kept - inside.sum(axis=0)) / edge.sum(axis=0)
    return (np.where(inside, x, 0.0) + np.where(edge, x * room, 0.0)).sum(axis=0) / kept


def weighted_median(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of the first entries up to which half of the weight is, and more."""
    order = np.argsort(x, axis=0)
    up_to, half = np.cumsum(weights[order], axis=0), weights.sum() / 2
    ordered = np.take_along_axis(x, order, axis=0)
    places = (up_to >= half).argmax(axis=0), (up_to > half).argmax(axis=0)
    low, high = (np.take_along_axis(ordered, i[None], axis=0)[0] for i in places)
    return (low + high) / 2


def weighted_trimmed_mean(x: np.ndarray, weights: np.ndarray, f: int) -> np.ndarray:
    """Of equal entries each has the same part: their mean weight, and its rank."""
    result = []
    for column in x.T:
        order = np.argsort(column)
        ordered, of_each = column[order], weights[order].copy()
        for value in np.unique(ordered):
            of_each[ordered == value] = of_each[ordered == value].mean()
        kept = slice(f, len(column) - f)
        result.append(np.average(ordered[kept], weights=of_each[kept]))
    return np.array(result)
