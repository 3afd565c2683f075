"""Records what ByzFL's aggregators and attacks make of random vectors, for the tests.

It runs in ByzFL's environment: `python -m benchmarks.peers.record_byzfl FILE ATTACKS`,
with a file for either.
"""

import importlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

_SIZES = [(5, 3, 1), (8, 4, 3), (9, 6, 2), (11, 5, 4), (12, 20, 3)]  # clients, d, liars


def main() -> None:
    versions = {x: importlib.metadata.version(x) for x in ("byzfl", "numpy")}
    source = {"python": platform.python_version(), **versions}
    for file, cases in zip(sys.argv[1:], (_cases(), _attacks()), strict=True):
        lines = ",\n ".join(json.dumps(case) for case in cases)
        Path(file).write_text(
            f'{{"source": {json.dumps(source)}, "cases": [\n {lines}\n]}}\n'
        )


def _cases() -> Iterator[dict[str, Any]]:
    byzfl = importlib.import_module("byzfl")
    for seed, (n, d, f) in enumerate(_SIZES):
        draw = np.random.default_rng(seed)
        vectors = draw.normal(size=(n, d)) * draw.uniform(0.3, 3.0, (n, 1))
        vectors[:f] += 2.0
        vectors = vectors.astype(np.float32).astype(np.float64)
        case = {"f": f, "vectors": vectors.tolist()}
        for name, make in {
            "median": byzfl.Median,
            "trimmed_mean": lambda f=f: byzfl.TrMean(f),
            "mean_around_median": lambda f=f: byzfl.Meamed(f),
            "krum": lambda f=f: byzfl.Krum(f),
            "multi_krum": lambda f=f: byzfl.MultiKrum(f),
            "geometric_median": lambda: byzfl.GeometricMedian(nu=1e-9, T=5000),
            "centered_clipping": lambda: byzfl.CenteredClipping(L=3, tau=1.5),
            "minimum_diameter": lambda f=f: byzfl.MDA(f),
            "caf": lambda f=f: byzfl.CAF(f),
            "smea": lambda f=f: byzfl.SMEA(f),
            "nearest_neighbor_mixing": lambda f=f: _after(byzfl.NNM(f), byzfl.Median()),
            "adaptive_robust_clipping": lambda f=f: _after(
                byzfl.ARC(f), byzfl.TrMean(f)
            ),
        }.items():
            result = _from_the_largest(make(), vectors.copy())
            yield {
                "name": f"{name}_{n}",
                "rule": name,
                **case,
                "result": result.tolist(),
            }


def _attacks() -> Iterator[dict[str, Any]]:
    """What liars send by the scale that ByzFL's search finds worst for a rule."""
    byzfl = importlib.import_module("byzfl")
    f, n = 2, 9
    rules = {
        "median": (byzfl.Median(), []),
        "trimmed_mean": (byzfl.TrMean(f), []),
        "mean_around_median": (byzfl.Meamed(f), []),
        "krum": (byzfl.Krum(f), []),
        "multi_krum": (byzfl.MultiKrum(f), []),
        "geometric_median": (byzfl.GeometricMedian(nu=1e-6, T=100), []),
        "nearest_neighbor_mixing": (byzfl.Median(), [byzfl.NNM(f)]),
        "adaptive_robust_clipping": (byzfl.TrMean(f), [byzfl.ARC(f)]),
    }
    attacks = {
        "inner_product_manipulation": byzfl.Optimal_InnerProductManipulation,
        "a_little_is_enough": byzfl.Optimal_ALittleIsEnough,
    }
    for seed, d in enumerate((5, 5, 30)):
        draw = np.random.default_rng(seed)
        honest = 1.0 + draw.normal(size=(n - f, d)) * draw.uniform(0.1, 4.0, (n - f, 1))
        honest = honest.astype(np.float32).astype(np.float64)
        for rule, (aggregator, before) in rules.items():
            for attack, make in attacks.items():
                sent = make(aggregator, pre_agg_list=before, f=f)(honest)
                yield {
                    "name": f"{rule}_{attack}_{seed}",
                    "rule": rule,
                    "attack": attack,
                    "f": f,
                    "honest": honest.round(7).tolist(),
                    "sent": sent.round(7).tolist(),
                }


def _after(mixing: Any, rule: Any) -> Any:
    return lambda vectors: rule(mixing(vectors))


def _from_the_largest(rule: Any, vectors: np.ndarray) -> np.ndarray:
    """The result, if random starts of eigenvectors are the eigenvectors themselves.

    ByzFL makes one step of power iteration from a random vector, in CAF and SMEA. From
    the eigenvector, which its caller's differences have, one step is exact.
    """

    def eigenvector(dimension: int) -> np.ndarray:
        there = sys._getframe(1).f_locals
        c = there.get("c", np.ones(len(there["diffs"])))
        covariance = (c[:, None] * there["diffs"]).T @ there["diffs"]
        return np.linalg.eigh(covariance)[1][:, -1]

    with mock.patch.object(np.random, "randn", eigenvector):
        return rule(vectors)


if __name__ == "__main__":
    main()
