"""The picture on the front page: `python -m docs.site.picture` draws it anew.

Left, twenty clients of whom four lie: a mean, and rules. Right, what compressors lose
for their bits, of `benchmarks/results/bits.jsonl`.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from sklearn.datasets import load_digits

import fedagg
from benchmarks.records import read
from fedagg import attacks

matplotlib.use("Agg")
from matplotlib import pyplot

DOCS = pathlib.Path(__file__).parents[1]
RECORDS = DOCS.parent / "benchmarks" / "results" / "bits.jsonl"
CLIENTS, LIARS, ROUNDS = 20, 4, 30


def accuracies(aggregator: fedagg.Aggregator, lying: bool) -> list[float]:
    """After each round, of a linear model on digits."""
    images, labels = (jnp.asarray(x) for x in load_digits(return_X_y=True))
    images = images / 16.0
    data = jnp.stack([images[i : 80 * CLIENTS : CLIENTS] for i in range(CLIENTS)])
    targets = jnp.stack([labels[i : 80 * CLIENTS : CLIENTS] for i in range(CLIENTS)])
    attack = attacks.inner_product_manipulation(5.0)

    def change(model, inputs, outputs):
        def loss(model):
            logits = inputs @ model
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, outputs)
            return jnp.mean(losses)

        return -2.0 * jax.grad(loss)(model)

    @jax.jit
    def one_round(state, model):
        rows = jax.vmap(change, (None, 0, 0))(model, data, targets)
        if lying:
            honest = rows[LIARS:]
            rows = jnp.concatenate([attack(honest, LIARS, None), honest])
        output = aggregator.next(state, rows)
        model = model + output.value
        hits = jnp.argmax(images @ model, axis=1) == labels
        return output.state, model, jnp.mean(hits.astype(jnp.float32))

    model = jnp.zeros((64, 10))
    state, shown = aggregator.init(model), []
    for _ in range(ROUNDS):
        state, model, accuracy = one_round(state, model)
        shown.append(float(accuracy))
    return shown


def main() -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8.4, 2.9), dpi=100)
    mean = fedagg.aggregator(fedagg.mean())
    mixed = fedagg.nearest_neighbor_mixing(LIARS, fedagg.trimmed_mean(LIARS))
    for name, aggregator, lying, style in (
        ("nobody lies, mean()", mean, False, "k--"),
        ("trimmed_mean, with mixing", fedagg.combining(mixed), True, "tab:blue"),
        ("krum", fedagg.combining(fedagg.krum(LIARS)), True, "tab:orange"),
        ("mean()", mean, True, "tab:red"),
    ):
        rounds = np.arange(1, ROUNDS + 1)
        left.plot(rounds, accuracies(aggregator, lying), style, label=name)
    left.set(title="4 of 20 clients lie", xlabel="round", ylabel="accuracy")
    left.legend(frameon=False, fontsize=8, loc="center right")
    _draw_bits(right)
    figure.tight_layout()
    figure.savefig(DOCS / "front.png", metadata={"Software": None})


def _draw_bits(axes) -> None:
    rows = [x for x in read(RECORDS).rows if x["vector"] == "lognormal"]
    for start, name, style in (
        ("eden", "eden", "o-"),
        ("quantization", "quantization", "s-"),
        ("rotation", "quantization, rotated", "^-"),
        ("drive", "drive", "P"),
        ("terngrad", "terngrad", "v"),
        ("top_k", "top_k(0.1)", "D"),
    ):
        points = [(x["bits"], x["error"]) for x in rows if _is(x, start)]
        axes.loglog(*zip(*points, strict=True), style, label=name, markersize=5)
    axes.set(
        title="Few large entries, one client", xlabel="bits an entry", ylabel="error"
    )
    axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize=7, loc="lower left")


def _is(row: dict, start: str) -> bool:
    return row["compressor"].startswith(start)


if __name__ == "__main__":
    main()
