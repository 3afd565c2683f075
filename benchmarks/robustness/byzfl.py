"""The grid through ByzFL's own benchmark, inside ByzFL's environment.

Its benchmark reads a configuration from the folder where it runs, and digits from files
as MNIST's own. It runs as many trainings at a time as there are cores: PyTorch is given
one thread for each. What it has written of a training is not trained again.
"""

import argparse
import importlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.robustness.settings import (
    BATCH,
    HONEST,
    MIXED,
    PLAIN,
    Digits,
    Grid,
    Run,
    load_digits,
)

RULES = {
    "mean": "Average",
    "median": "Median",
    "trimmed mean": "TrMean",
    "geometric median": "GeometricMedian",
    "multi-Krum": "MultiKrum",
    "mean around median": "Meamed",
    "Krum": "Krum",
    "minimum diameter": "MDA",
}
MIXERS = {PLAIN: (), MIXED: ("NNM",)}
ATTACKS = {
    "sign flipping": ("SignFlipping", {}),
    "inner product": ("InnerProductManipulation", {"tau": 10.0}),
    "a little": ("ALittleIsEnough", {"tau": 1.5}),
    "label flipping": ("LabelFlipping", {}),
    "mimic": ("Mimic", {"epsilon": 0}),
    "optimized a little": ("Optimal_ALittleIsEnough", {}),
}
_SPLIT = "gamma_similarity_niid"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="where digits and the grid are")
    folder = parser.parse_args().folder
    # What ByzFL prints must not get in between.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    grid = Grid(*json.loads((folder / "grid.json").read_text()))
    write_digits(folder / "data", load_digits(folder / "digits.npz"))
    os.chdir(folder)
    Path("config.json").write_text(json.dumps(configuration(grid)))
    benchmark = importlib.import_module("byzfl.benchmark")
    start = time.perf_counter()
    benchmark.run_benchmark(nb_jobs=os.cpu_count())
    print(json.dumps({"seconds": time.perf_counter() - start}), file=out, flush=True)


def configuration(grid: Grid) -> dict[str, Any]:
    """The grid in ByzFL's words."""
    return {
        "benchmark_config": {
            "device": "cpu",
            "training_seed": 0,
            "nb_training_seeds": 1,
            "nb_honest_clients": HONEST,
            "f": list(grid.liars),
            "data_distribution_seed": 0,
            "nb_data_distribution_seeds": grid.seeds,
            "data_distribution": [
                {
                    "name": _SPLIT,
                    "distribution_parameter": list(grid.similarities),
                }
            ],
            "size_train_set": 0.8,
            "nb_steps": grid.steps,
        },
        "model": {
            "name": "fc_mnist",
            "dataset_name": "mnist",
            "nb_labels": 10,
            "loss": "NLLLoss",
            "learning_rate": list(grid.rates),
            "learning_rate_decay": 1.0,
            "milestones": [],
        },
        "aggregator": [{"name": RULES[x], "parameters": {}} for x in grid.rules],
        "pre_aggregators": [
            [{"name": name, "parameters": {}} for name in MIXERS[x]]
            for x in grid.mixers
        ],
        "honest_clients": {
            "momentum": list(grid.momenta),
            "weight_decay": 0.0,
            "batch_size": BATCH,
        },
        "attack": [
            {"name": name, "parameters": parameters}
            for name, parameters in (ATTACKS[x] for x in grid.attacks)
        ],
        "evaluation_and_results": {
            "evaluation_delta": grid.every,
            "batch_size_evaluation": 1000,
            "evaluate_on_test": True,
            "store_per_client_metrics": False,
            "store_models": False,
            "data_folder": "./data",
            "results_directory": "./results",
        },
    }


def trainings(results: Path) -> Iterator[tuple[float, Run]]:
    """Of each training that ByzFL has finished its seconds, and what came of it."""
    rules = {name: rule for rule, name in RULES.items()}
    mixers = {names: mixer for mixer, names in MIXERS.items()}
    attacks = {name: attack for attack, (name, _) in ATTACKS.items()}
    for path in sorted(results.glob("*/train_time_*.txt")):
        told = json.loads((path.parent / "config.json").read_text())
        before = tuple(x["name"] for x in told["pre_aggregators"])
        spread = told["benchmark_config"]["data_distribution"]
        looks = [
            np.loadtxt(
                path.with_name(path.name.replace("train_time", f"{digits}_accuracy")),
                delimiter=",",
            ).tolist()
            for digits in ("val", "test")
        ]
        run = Run(
            rules[told["aggregator"]["name"]],
            mixers[before],
            attacks[told["attack"]["name"]],
            spread["distribution_parameter"],
            told["benchmark_config"]["f"],
            told["model"]["learning_rate"],
            told["honest_clients"]["momentum"],
            int(path.stem.split("_")[-1]),
            *looks,
        )
        yield float(path.read_text()), run


def write_digits(folder: Path, digits: Digits) -> None:
    """In files as MNIST's, where PyTorch's reader looks for them."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for start, images, labels in (
        ("train", digits.images, digits.labels),
        ("t10k", digits.test_images, digits.test_labels),
    ):
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            sizes = np.array([0x0800 + array.ndim, *array.shape], ">i4")
            path = raw / f"{start}-{name}-ubyte"
            path.write_bytes(sizes.tobytes() + array.tobytes())


if __name__ == "__main__":
    main()
