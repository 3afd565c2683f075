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
