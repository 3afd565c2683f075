"""ByzFL: clients as one matrix, a row each. It has no sum, weights or zeroing.

Its functions take NumPy arrays and torch tensors, so there is a row for each. It knows
no trees, so there are rows for one leaf only. `Clipping` and `ARC` write to what they
are given.

Rules that take all subsets of clients, and one that copies all values for each client,
are there for small inputs only. CAF and SMEA start from a random direction, of which
they make one step; what is compared is what they give where that is the dominant one,
from which a step is exact.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import reference_of_rules as rules
from benchmarks.peers.rounds import Clients, Round

_SMALL = 5e6  # entries, of all clients
_STEPS = 5  # of the geometric median from zero, enough for all digits compared


def rounds(clients: Clients) -> Iterator[Round]:
    torch = importlib.import_module("torch")
    if len(clients.updates[0]) > 1:
        return
    single = functools.partial(torch.tensor, dtype=torch.float32)
    yield from _rounds("torch", torch, single(clients.stack), torch.clone, single)
    yield from _rounds("NumPy", np.random, clients.stack, np.copy, np.asarray)


def _rounds(
    form: str, random: Any, matrix: Any, copy: Callable, like: Callable
) -> Iterator[Round]:
    """In one of its forms, whose draws are by `random.randn`."""
    byzfl = importlib.import_module("byzfl")
    f = rules.liars(len(matrix))
    clip, average, trim = byzfl.Clipping(c=1.0), byzfl.Average(), byzfl.TrMean(f)

    def after(mixing: Callable, rule: Callable) -> Callable:
        return lambda matrix: rule(mixing(matrix))

    def of(aggregator: str, calls: str, run: Callable, **others: Any) -> Round:
        return Round(aggregator, f"{calls} ({form})", run, matrix, **others)

    def centered(radius: float) -> Callable:
        # It keeps its momentum, so that each round has one of its own.
        return lambda matrix: byzfl.CenteredClipping(tau=radius)(matrix)

    def drawn(aggregator: str, name: str) -> Round:
        rule = getattr(byzfl, name)(f)

        def exact(matrix: Any) -> Any:
            with mock.patch.object(random, "randn", _dominant(like)):
                return rule(matrix)

        return of(aggregator, name, rule, compared=exact)

    yield of("clipped mean", "Clipping, Average", after(clip, average), copy=copy)
    yield of("median", "Median", byzfl.Median())
    yield of("trimmed mean", "TrMean", trim)
    yield of("mean around median", "Meamed", byzfl.Meamed(f))
    yield of("Krum", "Krum", byzfl.Krum(f))
    yield of("multi-Krum", "MultiKrum", byzfl.MultiKrum(f))
    yield of(
        "geometric median",
        f"GeometricMedian, T={_STEPS}",
        byzfl.GeometricMedian(nu=1e-6, T=_STEPS),
        expected=rules.unweighted_geometric_median,
    )
    yield of("centered clipping", "CenteredClipping", centered(1.0))
    yield drawn("CAF", "CAF")
    yield of(
        "adaptive clipping, trimmed mean",
        "ARC, TrMean",
        after(byzfl.ARC(f), trim),
        copy=copy,
    )
    yield of(
        "bucketing, centered clipping",
        "Bucketing, CenteredClipping",
        after(byzfl.Bucketing(4), centered(1e9)),
    )
    if matrix.shape[0] * matrix.shape[1] > _SMALL:
        return
    yield of(
        "nearest neighbors, trimmed mean", "NNM, TrMean", after(byzfl.NNM(f), trim)
    )
    yield of("minimum diameter", "MDA", byzfl.MDA(f))
    yield drawn("SMEA", "SMEA")


def _dominant(like: Callable) -> Callable:
    """A draw that is the eigenvector of its caller's differences."""

    def draw(dimension: int, **device: Any) -> Any:
        there = sys._getframe(1).f_locals
        away = np.asarray(there["diffs"], np.float64)
        root = np.sqrt(np.asarray(there.get("c", np.ones(len(away))), np.float64))
        scaled = root[:, None] * away
        vector = np.linalg.eigh(scaled @ scaled.T)[1][:, -1] @ scaled
        return like(vector)

    return draw
