"""What each rule should give, in float64 by NumPy, of as many liars as inputs have.

Rules of distances need no more of clients than the products of all pairs, and say what
part each client has in the result. An entry is NaN where float32 cannot tell it.
"""

import itertools
from collections.abc import Callable

import numpy as np

from benchmarks.reference import Stack, Weights, mean


def liars(clients: int) -> int:
    """One in sixteen, as many as hold an entry of 100: none of these is a tie."""
    return -(-clients // 16)


def median(stack: Stack, weights: Weights) -> np.ndarray:
    return np.median(stack.astype(np.float64), axis=0)


def weighted_median(stack: Stack, weights: Weights) -> np.ndarray:
    """Half of the weight is on either side; of two such entries, the mean."""
    order = np.argsort(stack, axis=0)
    below = 2.0 * np.cumsum(weights[order], axis=0)
    ranks = [(below < weights.sum()).sum(axis=0), (below <= weights.sum()).sum(axis=0)]
    places = [np.take_along_axis(order, rank[None], axis=0) for rank in ranks]
    low, high = (np.take_along_axis(stack, x, axis=0)[0] for x in places)
    return (low.astype(np.float64) + high) / 2.0


def trimmed_mean(stack: Stack, weights: Weights) -> np.ndarray:
    f = liars(len(stack))
    return np.sort(stack, axis=0)[f:-f].mean(axis=0, dtype=np.float64)


def weighted_trimmed_mean(stack: Stack, weights: Weights) -> np.ndarray:
    """Of entries that are equal and not all trimmed, each counts for a part."""
    f = liars(len(stack))
    order = np.argsort(stack, axis=0)[f:-f]
    kept, of_each = np.take_along_axis(stack, order, axis=0), weights[order]
    for end in (kept[0], kept[-1]):
        equal = stack == end
        of_each = np.where(kept == end, weights @ equal / equal.sum(axis=0), of_each)
    return (kept * of_each).sum(axis=0) / of_each.sum(axis=0)


def mean_around_median(
    stack: Stack, weights: Weights, left_out: int | None = None
) -> np.ndarray:
    """Without those entries of a column that are farthest from its median."""
    left_out = liars(len(stack)) if left_out is None else left_out
    away = np.abs(stack - median(stack, weights))
    number = len(stack) - left_out
    order = np.argpartition(away, (number - 1, number), axis=0)
    kept = np.ones(stack.shape, bool)
    np.put_along_axis(kept, order[number:], False, axis=0)
    result = np.mean(stack, axis=0, dtype=np.float64, where=kept)
    last, next_one = np.take_along_axis(away, order[number - 1 : number + 1], axis=0)
    return np.where(next_one - last > 1e-6 * next_one, result, np.nan)


def krum(stack: Stack, weights: Weights) -> np.ndarray:
    scores = _scores(_squares(stack), liars(len(stack)))
    return stack[scores.argmin()].astype(np.float64)


def multi_krum(stack: Stack, weights: Weights) -> np.ndarray:
    f = liars(len(stack))
    best = np.argsort(_scores(_squares(stack), f))[:-f]
    return np.asarray(np.mean(stack[best], axis=0, dtype=np.float64))


def bulyan(stack: Stack, weights: Weights, fewer: int = 0) -> np.ndarray:
    """Around the median of those whom Krum chooses one after another.

    Krum adds up the distances to all others but as many as lie, and `fewer` more; to
    one at least.
    """
    f, squares, left = liars(len(stack)), _squares(stack), list(range(len(stack)))
    chosen: list[int] = []
    while len(left) > 2 * f:
        best = int(_scores(squares[np.ix_(left, left)], f + fewer).argmin())
        chosen.append(left.pop(best))
    return mean_around_median(stack[chosen], weights[chosen], left_out=2 * f)


def geometric_median(stack: Stack, weights: Weights) -> np.ndarray:
    """Weiszfeld's iteration on the parts that clients have in the point."""
    gram = _gram(stack)
    size, parts = gram.diagonal(), weights / weights.sum()
    for _ in range(1000):
        squares = size - 2.0 * gram @ parts + parts @ gram @ parts
        pull = weights / np.sqrt(np.maximum(squares, 1e-18))
        parts = pull / pull.sum()
    return parts @ stack.astype(np.float64)


def unweighted_geometric_median(stack: Stack, weights: Weights) -> np.ndarray:
    return geometric_median(stack, np.ones_like(weights))


def minimum_diameter(stack: Stack, weights: Weights) -> np.ndarray:
    squares = _squares(stack)
    return _of_best_subset(stack, lambda kept: squares[np.ix_(kept, kept)].max())


def smea(stack: Stack, weights: Weights) -> np.ndarray:
    gram = _gram(stack)

    def spread(kept: list[int]) -> float:
        even = np.full(len(kept), 1.0 / len(kept))
        return float(np.linalg.eigvalsh(_around(gram[np.ix_(kept, kept)], even))[-1])

    return _of_best_subset(stack, spread)


def caf(stack: Stack, weights: Weights) -> np.ndarray:
    f, gram = liars(len(stack)), _gram(stack)
    left, best, least = np.ones(len(stack)), np.zeros(len(stack)), np.inf
    while left.sum() > len(stack) - 2 * f:
        parts, root = left / left.sum(), np.sqrt(left)
        around = _around(gram, parts)
        values, vectors = np.linalg.eigh(root[:, None] * around * root)
        if values[-1] / left.sum() < least:
            best, least = parts, values[-1] / left.sum()
        square = (around @ (root * vectors[:, -1])) ** 2
        left = left * (1.0 - square / square.max())
    result = best @ stack.astype(np.float64)
    # What is left of a liar is the difference of two numbers that are nearly one.
    unsure = 1e-6 / len(stack) * np.abs(stack).max(axis=0)
    return np.where(unsure < 1e-5 * np.median(np.abs(result)), result, np.nan)


def mixed_trimmed_mean(stack: Stack, weights: Weights) -> np.ndarray:
    """After each client's value is the mean of those nearest to it."""
    kept = len(stack) - liars(len(stack))
    near = np.argsort(_squares(stack), axis=1)[:, :kept]
    return trimmed_mean(np.array([stack[x].mean(axis=0) for x in near]), weights)


def clipped_trimmed_mean(stack: Stack, weights: Weights) -> np.ndarray:
    """After the longest are clipped to the longest of the rest."""
    n, f = len(stack), liars(len(stack))
    norms = np.sqrt(_gram(stack).diagonal())
    bound = np.sort(norms)[n - 2 * f * (n - f) // n - 1]
    factors = np.minimum(1.0, bound / norms)
    return trimmed_mean(factors[:, None] * stack.astype(np.float64), weights)


def mean_of_buckets(stack: Stack, weights: Weights) -> np.ndarray:
    return mean(stack, np.ones_like(weights))


def _of_best_subset(stack: Stack, size: Callable[[list[int]], float]) -> np.ndarray:
    n = len(stack)
    subsets = map(list, itertools.combinations(range(n), n - liars(n)))
    return np.asarray(stack[min(subsets, key=size)].mean(axis=0, dtype=np.float64))


def _scores(squares: np.ndarray, fewer: int) -> np.ndarray:
    """Of each client the sum of squares of distances to all others but some."""
    nearest = max(len(squares) - fewer, 2)  # with itself
    return np.partition(squares, nearest - 1, axis=1)[:, :nearest].sum(axis=1)


def _squares(stack: Stack) -> np.ndarray:
    """Of the distances of all pairs `[n, n]`."""
    gram = _gram(stack)
    size = gram.diagonal()
    return size[:, None] + size - 2.0 * gram


def _around(gram: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Products of all pairs after their mean by these parts is subtracted."""
    mean = gram @ parts
    return gram - mean[:, None] - mean + parts @ mean


def _gram(stack: Stack) -> np.ndarray:
    wide = stack.astype(np.float64)
    return wide @ wide.T
