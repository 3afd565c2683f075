"""What each aggregator should give, in float64 by NumPy, a client at a time."""

from collections.abc import Callable

import numpy as np

Stack = np.ndarray  # [n, d]
Weights = np.ndarray  # [n]

_ZERO = 21.0  # what zeroing starts from


def total(stack: Stack, weights: Weights) -> np.ndarray:
    return _sum(stack, np.ones_like(weights), lambda row: row)


def mean(stack: Stack, weights: Weights) -> np.ndarray:
    return _sum(stack, weights, lambda row: row) / weights.sum()


def clipped_mean(stack: Stack, weights: Weights) -> np.ndarray:
    return _sum(stack, np.ones_like(weights), _clip) / len(stack)


def clipped_total(stack: Stack, weights: Weights) -> np.ndarray:
    return _sum(stack, np.ones_like(weights), _clip)


def error_of_noise(
    stack: Stack, weights: Weights, deviation: float, clients: bool = False
) -> float:
    """The squared error to expect of noise on each entry, or on each of a client's."""
    return (len(stack) if clients else 1) * stack.shape[1] * deviation**2


def weighted_clipped_mean(stack: Stack, weights: Weights) -> np.ndarray:
    return _sum(stack, weights, _clip) / weights.sum()


def robust_mean(stack: Stack, weights: Weights) -> np.ndarray:
    def zero_and_clip(row: np.ndarray) -> np.ndarray:
        return _clip(row) if np.abs(row).max() <= _ZERO else np.zeros_like(row)

    return _sum(stack, weights, zero_and_clip) / weights.sum()


def robust_mean_of_columns(
    columns: np.ndarray, largest: np.ndarray, norms: np.ndarray, weights: Weights
) -> np.ndarray:
    """Some columns `[n, k]`, of clients whose largest entries and norms are known."""
    factors = np.where(largest <= _ZERO, np.minimum(1.0, 1.0 / norms), 0.0)
    return (weights * factors) @ columns / weights.sum()


def median(stack: Stack, weights: Weights) -> np.ndarray:
    return np.median(stack.astype(np.float64), axis=0)


def trimmed_mean(stack: Stack, weights: Weights) -> np.ndarray:
    return np.sort(stack, axis=0)[1:-1].astype(np.float64).mean(axis=0)


def weighted_median(stack: Stack, weights: Weights) -> np.ndarray:
    ordered, of_each = _ordered_with(stack, weights)
    up_to, half = np.cumsum(of_each, axis=0), weights.sum() / 2.0
    places = (up_to >= half).argmax(axis=0), (up_to > half).argmax(axis=0)
    low, high = (np.take_along_axis(ordered, i[None], axis=0)[0] for i in places)
    return (low.astype(np.float64) + high) / 2.0


def weighted_trimmed_mean(stack: Stack, weights: Weights) -> np.ndarray:
    """Of entries that are equal and not all trimmed, each counts for a part."""
    ordered, of_each = (x[1:-1] for x in _ordered_with(stack, weights))
    for end in (ordered[0], ordered[-1]):
        equal = stack == end
        mean = (weights @ equal) / equal.sum(axis=0)
        of_each = np.where(ordered == end, mean, of_each)
    return (ordered * of_each).sum(axis=0) / of_each.sum(axis=0)


def _ordered_with(stack: Stack, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """Columns in ascending order, and the weight of each entry's client."""
    order = np.argsort(stack, axis=0, kind="stable")
    return np.take_along_axis(stack, order, axis=0), weights[order]


def mean_around_median(stack: Stack, weights: Weights, left_out: int = 1) -> np.ndarray:
    """Without those entries of a column that are farthest from its median."""
    away = np.abs(stack - median(stack, weights))
    farthest = np.argpartition(away, len(stack) - left_out, axis=0)[-left_out:]
    kept = np.ones(stack.shape, bool)
    np.put_along_axis(kept, farthest, False, axis=0)
    return np.asarray(np.mean(stack, axis=0, dtype=np.float64, where=kept))


def krum(stack: Stack, weights: Weights) -> np.ndarray:
    return stack[_krum_scores(stack).argmin()].astype(np.float64)


def multi_krum(stack: Stack, weights: Weights) -> np.ndarray:
    best = np.argsort(_krum_scores(stack))[:-1]
    return np.asarray(np.mean(stack[best], axis=0, dtype=np.float64))


def bulyan(stack: Stack, weights: Weights, fewer: int = 1) -> np.ndarray:
    """Around the median of those whom Krum chooses one after another, all but two.

    Krum adds up the distances to all others but `fewer`; to one at least.
    """
    squares, left = _squares(stack), list(range(len(stack)))
    chosen: list[int] = []
    while len(left) > 2:
        best = int(_scores(squares[np.ix_(left, left)], fewer).argmin())
        chosen.append(left.pop(best))
    return mean_around_median(stack[chosen], weights[chosen], left_out=2)


def geometric_median(stack: Stack, weights: Weights) -> np.ndarray:
    """Weiszfeld's iteration on the parts that clients have in the point."""
    gram = _gram(stack)
    size, parts = gram.diagonal(), weights / weights.sum()
    for _ in range(1000):
        squares = size - 2.0 * gram @ parts + parts @ gram @ parts
        pull = weights / np.sqrt(np.maximum(squares, 1e-18))
        parts = pull / pull.sum()
    return parts @ stack.astype(np.float64)


def _krum_scores(stack: Stack) -> np.ndarray:
    return _scores(_squares(stack))


def _scores(squares: np.ndarray, fewer: int = 1) -> np.ndarray:
    """Of each client the sum of squares of distances to all others but some."""
    nearest = max(len(squares) - fewer, 2)  # with itself
    return np.sort(squares, axis=1)[:, :nearest].sum(axis=1)


def _squares(stack: Stack) -> np.ndarray:
    """Of the distances of all pairs `[n, n]`."""
    gram = _gram(stack)
    size = gram.diagonal()
    return size[:, None] + size - 2.0 * gram


def _gram(stack: Stack) -> np.ndarray:
    wide = stack.astype(np.float64)
    return wide @ wide.T


def error_of_steps(stack: Stack, weights: Weights, bits: int = 8) -> float:
    """The most squared error to expect of rounding randomly in each client's range."""
    ranges = (stack.max(axis=1) - stack.min(axis=1)).astype(np.float64)
    steps = weights * ranges / (2**bits - 1)
    return stack.shape[1] * np.sum(steps**2) / 4.0 / weights.sum() ** 2


def error_of_secure_sum(stack: Stack, weights: Weights, bound: float) -> float:
    """The squared error to expect of a mean in steps that 1000 clients can share."""
    step = bound / (2**31 // 1000)
    return stack.size * step**2 / 12.0 / weights.sum() ** 2


def error_in_parts(stack: Stack, weights: Weights, part: float) -> float:
    """The squared error of clients that err by this part of their squared norm."""
    squares = np.array([np.sum(row.astype(np.float64) ** 2) for row in stack])
    return part * np.sum(weights**2 * squares) / weights.sum() ** 2


def _sum(stack: Stack, weights: Weights, fn: Callable) -> np.ndarray:
    result = np.zeros(stack.shape[1])
    for row, weight in zip(stack, weights, strict=True):
        result += weight * fn(row.astype(np.float64))
    return result


def _clip(row: np.ndarray) -> np.ndarray:
    return row * min(1.0, 1.0 / np.sqrt(np.sum(row * row)))
