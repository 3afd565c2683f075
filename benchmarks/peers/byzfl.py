"""ByzFL: clients as one matrix, a row each. It has no sum, weights or zeroing.

Its functions take NumPy arrays and torch tensors, so there is a row for each. It knows
no trees, so there are rows for one leaf only. `Clipping` and `ARC` write to what they
are given.

Beside a JAX on a GPU tensors are there too, and nothing is of NumPy.

Rules that take all subsets of clients, and one that copies all values for each client,
are there for small inputs only. CAF and SMEA start from a random direction, of which
they make one step; what is compared is what they give where that is the dominant one,
from which a step is exact.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

from benchmarks import reference_of_rules as rules
from benchmarks.peers.rounds import Clients, Round

_SMALL = 5e6  # entries, of all clients
_STEPS = 5  # of the geometric median from zero, enough for all digits compared


class _Form(NamedTuple):
    """NumPy's or PyTorch's arrays."""

    name: str
    random: Any  # draws by `random.randn`
    array: Callable[[np.ndarray], Any]
    copy: Callable[[Any], Any]
    numpy: Callable[[Any], np.ndarray]
    wait: Callable[[], None]  # until what was called is done


def rounds(clients: Clients) -> Iterator[Round]:
    torch = importlib.import_module("torch")
    if len(clients.updates[0]) > 1:
        return
    on_gpu = jax.default_backend() == "gpu"
    device = "cuda" if on_gpu else "cpu"
    array = functools.partial(torch.tensor, dtype=torch.float32, device=device)
    wait = torch.cuda.synchronize if on_gpu else _go_on
    back = torch.Tensor.cpu
    yield from _rounds(
        _Form("torch", torch, array, torch.clone, back, wait), clients.stack
    )
    if not on_gpu:
        form = _Form("NumPy", np.random, np.asarray, np.copy, np.asarray, _go_on)
        yield from _rounds(form, clients.stack)


def _go_on() -> None:
    """Of what is done when a call returns."""


def _rounds(form: _Form, stack: np.ndarray) -> Iterator[Round]:
    byzfl = importlib.import_module("byzfl")
    matrix, f = form.array(stack), rules.liars(len(stack))
    clip, average, trim = byzfl.Clipping(c=1.0), byzfl.Average(), byzfl.TrMean(f)

    def after(mixing: Callable, rule: Callable) -> Callable:
        return lambda matrix: rule(mixing(matrix))

    def done(run: Callable) -> Callable:
        def timed(matrix: Any) -> Any:
            result = run(matrix)
            form.wait()
            return result

        return timed

    def of(
        aggregator: str,
        calls: str,
        run: Callable,
        compared: Callable | None = None,
        **others: Any,
    ) -> Round:
        exact = compared or run
        return Round(
            aggregator,
            f"{calls} ({form.name})",
            done(run),
            matrix,
            compared=lambda matrix: form.numpy(exact(matrix)),
            **others,
        )

    def centered(radius: float) -> Callable:
        # It keeps its momentum, so that each round has one of its own.
        return lambda matrix: byzfl.CenteredClipping(tau=radius)(matrix)

    def drawn(aggregator: str, name: str) -> Round:
        rule = getattr(byzfl, name)(f)

        def exact(matrix: Any) -> Any:
            with mock.patch.object(form.random, "randn", _dominant(form)):
                return rule(matrix)

        return of(aggregator, name, rule, compared=exact)

    yield of(
        "clipped mean", "Clipping, Average", after(clip, average), copy=done(form.copy)
    )
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
        copy=done(form.copy),
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


def _dominant(form: _Form) -> Callable:
    """A draw that is the eigenvector of its caller's differences."""

    def draw(dimension: int, **device: Any) -> Any:
        there = sys._getframe(1).f_locals
        away = np.asarray(form.numpy(there["diffs"]), np.float64)
        parts = form.numpy(there["c"]) if "c" in there else np.ones(len(away))
        scaled = np.sqrt(np.asarray(parts, np.float64))[:, None] * away
        vector = np.linalg.eigh(scaled @ scaled.T)[1][:, -1] @ scaled
        return form.array(vector)

    return draw
