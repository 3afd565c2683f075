"""What is trained in a round: examples, batches, the rate and the model's name.

Everybody imports this in an environment of their own, so it needs NumPy alone.
Parameters go from one to the other as flat dicts of arrays in Flax's layout, such as
`{"conv1/kernel": [3, 3, 3, 32], ...}`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Examples = tuple[np.ndarray, np.ndarray]  # inputs [m, ...] and targets [m, ...]
Parameters = dict[str, np.ndarray]

TOKENS = 80  # of an example, in characters
SYMBOLS = 67  # of the plays, as notebooks.plays counts them
RANK = 4  # of LoRA
CLIENTS = 50  # of the first row; others keep their number in proportion to it


class Workload(NamedTuple):
    """Clients with examples, the model that they train, and how.

    All train in the order of their examples, the last batch short, and count alike.
    """

    name: str
    title: str
    model: str
    clients: Sequence[Examples]
    batch_size: int
    rate: float = 0.1
    epochs: int = 1

    @property
    def sizes(self) -> np.ndarray:
        return np.asarray([len(inputs) for inputs, _ in self.clients])

    @property
    def steps(self) -> int:
        """That clients take together."""
        return self.epochs * int(np.sum(-(-self.sizes // self.batch_size)))

    @property
    def is_ragged(self) -> bool:
        return len(set(self.sizes)) > 1

    def batches(self, client: int) -> Iterator[Examples]:
        """A client's batches in one epoch."""
        inputs, targets = self.clients[client]
        for start in range(0, len(inputs), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield inputs[part], targets[part]


def cifar(share: float = 1.0) -> Workload:
    """pfl-research's setting: 50 clients with 50 images each, here of random noise."""
    sizes = np.full(_part(50, share), 50)
    clients = _random(0, sizes, (32, 32, 3))
    return Workload("cifar", "CNN, 50 images", "cnn", clients, 10)


def logistic(share: float = 1.0) -> Workload:
    """Many small clients: 20 examples of 64 features."""
    clients = _random(1, np.full(_part(1000, share), 20), (64,))
    title = f"logistic regression, {len(clients):,} clients"
    return Workload("logistic", title, "logistic", clients, 10)


def mlp(share: float = 1.0) -> Workload:
    """The same, with a hidden layer of 128."""
    clients = _random(2, np.full(_part(1000, share), 20), (64,))
    return Workload("mlp", f"MLP, {len(clients):,} clients", "mlp", clients, 10)


def pareto(share: float = 1.0) -> Workload:
    """A CNN on 28 x 28 images, a few clients with most of them."""
    draws = np.random.default_rng(90).pareto(1.1, 200)
    sizes = np.floor(11.0 * (1.0 + draws)).astype(int)[: _part(200, share)]
    clients = _random(3, sizes, (28, 28, 1))
    return Workload("pareto", "CNN, Pareto sizes", "cnn", clients, 20)


def shakespeare(share: float = 1.0) -> Workload:
    """A language model on what 20 roles of Shakespeare's plays say, drawn at random.

    Raises:
        ImportError: if a package that reads the plays is missing.
    """
    from benchmarks.training.roles import read_roles

    clients = read_roles(_part(20, share), TOKENS, seed=4)
    title = f"transformer, {len(clients)} roles"
    return Workload("shakespeare", title, "transformer", clients, 10)


def lora(share: float = 1.0) -> Workload:
    """LoRA on a transformer that stays as it is; random characters."""
    draw = np.random.default_rng(5)
    shape = (_part(100, share), 20, TOKENS + 1)
    text = draw.integers(0, SYMBOLS, shape, dtype=np.int32)
    clients = [(x[:, :-1], x[:, 1:]) for x in text]
    title = f"LoRA, {len(clients)} clients"
    return Workload("lora", title, "lora", clients, 10)


WORKLOADS: dict[str, Callable[[float], Workload]] = {
    make.__name__: make for make in (cifar, logistic, mlp, pareto, shakespeare, lora)
}


def save(workload: Workload, path: Path) -> None:
    """Writes a workload for those who run elsewhere."""
    inputs, targets = (np.concatenate(x) for x in zip(*workload.clients, strict=True))
    told = workload._replace(clients=[])._asdict()
    sizes = workload.sizes
    np.savez(path, inputs=inputs, targets=targets, sizes=sizes, told=json.dumps(told))


def load(path: Path) -> Workload:
    with np.load(path) as kept:
        ends = np.cumsum(kept["sizes"])[:-1]
        parts = (np.split(kept[name], ends) for name in ("inputs", "targets"))
        told = json.loads(str(kept["told"]))
        return Workload(**told)._replace(clients=[*zip(*parts, strict=True)])


def save_parameters(parameters: Parameters, path: Path) -> None:
    named: dict[str, Any] = {**parameters}
    np.savez(path, **named)


def load_parameters(path: Path) -> Parameters:
    with np.load(path) as kept:
        return dict(kept)


def change_off(got: Parameters, expected: Parameters, start: Parameters) -> float:
    """How far a round's change of the model is from another, over its norm.

    Over all leaves: where rounding turns a ReLU over, one client's end is off by more
    than rounding.
    """
    names = sorted(expected)
    if sorted(got) != names:
        raise ValueError(f"expected parameters {names}, got {sorted(got)}")
    off = [np.linalg.norm(np.asarray(got[x], np.float64) - expected[x]) for x in names]
    size = [np.linalg.norm(expected[x] - start[x].astype(np.float64)) for x in names]
    return float(np.linalg.norm(off) / np.linalg.norm(size))


def _part(clients: int, share: float) -> int:
    return max(2, round(share * clients))


def _random(seed: int, sizes: np.ndarray, shape: tuple[int, ...]) -> list[Examples]:
    """Noise of ten classes."""
    draw = np.random.default_rng(seed)
    total = int(sizes.sum())
    inputs = draw.standard_normal((total, *shape), dtype=np.float32)
    targets = draw.integers(0, 10, total, dtype=np.int32)
    ends = np.cumsum(sizes)[:-1]
    return [*zip(np.split(inputs, ends), np.split(targets, ends), strict=True)]
