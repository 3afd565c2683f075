"""Does federated training survive broken clients? Ask on real data: `make demo`.

A hundred clients hold handwritten digits, each mostly of a few of the ten classes, and
train a small Flax CNN. Some of them are broken: they send NaN, or their change a
million times too large, or reversed and tenfold. The same rounds run twice, once with a
plain mean and once with `fedagg.robust_aggregator()`.
"""

import argparse
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits
from tqdm import tqdm

import fedagg

CLIENTS, SAMPLED, CONCENTRATION = 100, 30, 0.5
FAULTS = {3: np.nan, 33: 1e6, 11: -10.0, 41: -10.0, 71: -10.0, 91: -10.0}


class CNN(nn.Module):
    """Two convolutions and a linear layer, for images of 8 x 8."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(16, (3, 3))(images))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


def federated_digits(rng: np.random.Generator):
    """Each client's digits, of the fewer classes the smaller CONCENTRATION is."""
    images, labels = (np.asarray(x) for x in load_digits(return_X_y=True))
    images = (images / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    order = rng.permutation(len(labels))
    test, train = order[:297], order[297:]
    owners = np.empty(len(train), int)
    for label in range(10):
        share = rng.dirichlet(np.full(CLIENTS, CONCENTRATION))
        ours = labels[train] == label
        owners[ours] = rng.choice(CLIENTS, ours.sum(), p=share)
    clients = [train[owners == i] for i in range(CLIENTS)]
    return [(images[c], labels[c]) for c in clients], (images[test], labels[test])


def break_some(work: Callable) -> Callable:
    """Client work whose rows have, beside the data, a factor on what is sent."""

    def broken(variables, row, key):
        data, factor = row
        change, metrics = work(variables, data, key)
        return jax.tree.map(lambda x: factor * x, change), metrics

    return broken


def train(aggregator: fedagg.Aggregator, title: str, rounds: int) -> list[dict]:
    """Runs the rounds and returns what each of them reported."""
    rng = np.random.default_rng(0)
    clients, (images, labels) = federated_digits(rng)
    table = fedagg.ClientTable.of(clients)
    factors = np.array([FAULTS.get(i, 1.0) for i in range(CLIENTS)], np.float32)

    model = CNN()
    loss = optax.softmax_cross_entropy_with_integer_labels
    work = fedagg.local_training(
        fedagg.linen_loss(model, loss), optax.sgd(0.1), batch_size=8, epochs=2
    )
    training = fedagg.federated_averaging(break_some(work), optax.sgd(1.0), aggregator)
    state = training.init(model.init(jax.random.key(0), images[:1]))
    next_round = jax.jit(training.next)
    predict = jax.jit(lambda v, x: jnp.asarray(model.apply(v, x)).argmax(axis=-1))

    reports = []
    progress = tqdm(range(rounds), desc=f"{title:<18}", unit="round")
    for number in progress:
        chosen = rng.choice(CLIENTS, SAMPLED, replace=False)
        cohort = table[chosen], factors[chosen]
        weights, key = table.sizes[chosen], jax.random.key(number)
        state, variables, metrics = next_round(state, cohort, weights, key)
        accuracy = float(np.mean(predict(variables, images) == labels))
        reports.append({"accuracy": accuracy, **jax.tree.map(float, metrics)})
        progress.set_postfix(accuracy=f"{accuracy:.3f}")
    return reports


def table(runs: dict[str, list[dict]]) -> str:
    """What each run came to."""
    lines = [f"{'':<18}  accuracy  clients zeroed  clipped  zeroing, clipping bound"]
    for title, reports in runs.items():
        zeroed = sum(r.get("zeroing/count", 0.0) for r in reports)
        clipped = sum(r.get("clipping/count", 0.0) for r in reports)
        bounds = [reports[-1].get(f"{x}/bound") for x in ("zeroing", "clipping")]
        shown = ", ".join("none" if b is None else f"{b:.2f}" for b in bounds)
        accuracy = reports[-1]["accuracy"]
        lines.append(
            f"{title:<18}  {accuracy:8.3f}  {zeroed:14.0f}  {clipped:7.0f}  {shown}"
        )
    return "\n".join(lines)


def draw(runs: dict[str, list[dict]], path: pathlib.Path) -> None:
    """Accuracy of all runs, and the bounds that the robust one learnt."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for title, reports in runs.items():
        left.plot([r["accuracy"] for r in reports], label=title)
    left.set(xlabel="round", ylabel="accuracy on held-out digits", ylim=(0, 1))
    left.axhline(0.1, color="grey", lw=0.8, ls=":", label="guessing")
    left.legend(loc="center right")
    for name in ("zeroing", "clipping"):
        right.plot([r[f"{name}/bound"] for r in runs["robust_aggregator"]], label=name)
    right.set(xlabel="round", ylabel="bound in use", yscale="log")
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=pathlib.Path, default="build/demo.png")
    options = parser.parse_args()
    runs = {
        "plain mean": fedagg.aggregator(fedagg.mean()),
        "robust_aggregator": fedagg.robust_aggregator(),
    }
    runs = {title: train(a, title, options.rounds) for title, a in runs.items()}
    print(table(runs))
    draw(runs, options.out)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
