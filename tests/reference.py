"""Slow float64 NumPy versions, straight from the formulas. Imports nothing of ours.

A value is a dict of arrays, one client's; `values` is a list of them. A client whose
weight is not positive and finite takes no part. The formulas are those of TensorFlow
Federated 0.87.0, but for such clients and for a norm that is NaN or infinite, which is
above every bound.
"""

import math
from typing import Any, NamedTuple

import numpy as np

Value = dict[str, Any]


class Estimate(NamedTuple):
    """A quantile's arguments."""

    quantile: float
    rate: float
    multiplier: float = 1.0
    increment: float = 0.0
    expected: float | None = None
    geometric: bool = True


class Round(NamedTuple):
    """What a round of the robust mean gives."""

    value: Value
    zeroed: int
    clipped: int
    weight: float
    zeroing_estimate: float
    clipping_estimate: float


LARGEST = Estimate(0.98, math.log(10.0), multiplier=2.0, increment=1.0)
NORMS = Estimate(0.8, 0.2)


def unstack(stacked: Any) -> list[Value]:
    """A dict of `[n, ...]` as a list of n dicts."""
    arrays = {k: np.asarray(x).astype(np.float64) for k, x in stacked.items()}
    n = len(next(iter(arrays.values())))
    return [{k: x[i] for k, x in arrays.items()} for i in range(n)]


def norm(value: Value, order: float = 2.0) -> float:
    entries = np.concatenate([np.abs(np.ravel(x)) for x in value.values()])
    entries = entries.astype(np.float64)
    if order == math.inf:
        return float(np.max(entries, initial=0.0))
    return float(np.sum(entries**order) ** (1.0 / order))


def zero(value: Value, bound: float, order: float = math.inf) -> tuple[Value, bool]:
    """The value, or zeros where its norm is above the bound; and whether it is."""
    size = norm(value, order)
    if size <= bound and size < math.inf:
        return value, False
    return {k: np.zeros_like(x, np.float64) for k, x in value.items()}, True


def clip(value: Value, bound: float) -> tuple[Value, bool]:
    """The value divided by norm / bound where that exceeds one; and whether it does."""
    ratio = norm(value) / bound
    if not ratio > 1.0:
        return value, False
    return {k: np.asarray(x, np.float64) / ratio for k, x in value.items()}, True


def total(values: list[Value], weights: Any) -> Value:
    """The plain sum of those who take part."""
    values = [v for v, w in zip(values, weights, strict=True) if 0.0 < w < math.inf]
    return {k: np.sum([v[k] for v in values], axis=0) for k in values[0]}


def weighted_mean(values: list[Value], weights: Any) -> Value:
    present = [(v, w) for v, w in zip(values, weights, strict=True) if 0 < w < math.inf]
    divisor = sum(float(w) for _, w in present)
    return {
        k: np.sum([np.asarray(v[k], np.float64) * w for v, w in present], 0) / divisor
        for k in values[0]
    }


def quantile_update(estimate: float, sizes: list[float], e: Estimate) -> float:
    """The next estimate, from the sizes of those who take part."""
    n = len(sizes) if e.expected is None else e.expected
    if n == 0:
        return estimate
    below = sum((1.0 if x <= estimate else 0.0) - 0.5 for x in sizes)
    fraction = min(max(below / n + 0.5, 0.0), 1.0)
    step = e.rate * (fraction - e.quantile)
    return estimate * math.exp(-step) if e.geometric else estimate - step


def report(estimate: float, e: Estimate) -> float:
    return e.multiplier * estimate + e.increment


def robust_round(
    zeroing_estimate: float, clipping_estimate: float, values: list[Value], weights: Any
) -> Round:
    """Zeroing, clipping and the weighted mean, with bounds from before the round."""
    present = [(v, w) for v, w in zip(values, weights, strict=True) if 0 < w < math.inf]
    largest = [norm(v, math.inf) for v, _ in present]
    kept = [zero(v, report(zeroing_estimate, LARGEST)) for v, _ in present]
    norms = [norm(v) for v, _ in kept]
    clipped = [clip(v, report(clipping_estimate, NORMS)) for v, _ in kept]
    return Round(
        weighted_mean([v for v, _ in clipped], [w for _, w in present]),
        sum(above for _, above in kept),
        sum(above for _, above in clipped),
        float(sum(w for _, w in present)),
        quantile_update(zeroing_estimate, largest, LARGEST),
        quantile_update(clipping_estimate, norms, NORMS),
    )


def median(values: list[Value], weights: Any) -> Value:
    """Coordinate by coordinate, of the finite entries of those who take part."""
    present = [v for v, w in zip(values, weights, strict=True) if 0 < w < math.inf]

    def of_one(column: np.ndarray) -> float:
        entries = sorted(x for x in column if math.isfinite(x))
        if not entries:
            return 0.0
        return (entries[(len(entries) - 1) // 2] + entries[len(entries) // 2]) / 2.0

    def of_leaf(k: str) -> np.ndarray:
        stacked = np.stack([np.asarray(v[k], np.float64) for v in present])
        columns = stacked.reshape(len(present), -1).T if stacked.size else []
        return np.reshape([of_one(x) for x in columns], stacked.shape[1:])

    return {k: of_leaf(k) for k in values[0]}
