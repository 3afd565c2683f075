"""Rounds over a million clients, in the memory of a few: `-m benchmarks.population`."""

import argparse
import hashlib
import resource
import statistics
import sys
import tempfile
import time
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import fedagg
from benchmarks import options
from benchmarks.report import Report, markdown, markdown_row
from fedagg import algorithms

EXAMPLES, FEATURES, CLASSES, BATCH = 20, 64, 10, 10
WIDE = 100  # features where clients remember, so that each keeps 1,000 numbers

_HEADER = ["rounds", "clients in each", "s a round", "clients a second", "peak MB"]
_LEGEND = f"""
A client is a number. What it trains on, {EXAMPLES} examples of {FEATURES} features, is
made from the number inside its work, so that nothing is held for who is not at work: a
logistic regression of {CLASSES} classes, one epoch in batches of {BATCH}. *peak MB* is
the most memory that the process has had at any time until then, less what it had when
it began. A round is compared with the same clients trained at once.

The last row is SCAFFOLD of {WIDE} features: each client keeps {WIDE * CLASSES:,}
numbers between its rounds, in files of the host, of which a round reads and writes a
cohort's, those of the next one meanwhile. Pages of these files are in *peak MB*. A run
that is stopped half way and goes on from its last commit has the model, control variate
and memories of this one, to the bit.
"""


def examples_of(
    number: jax.Array, width: int = FEATURES
) -> tuple[jax.Array, jax.Array]:
    """The examples of a client: of its own kind, with the labels of one rule."""
    centre, noise = jax.random.split(jax.random.fold_in(jax.random.key(7), number))
    middle = jax.random.normal(centre, (1, width))
    features = middle + jax.random.normal(noise, (EXAMPLES, width))
    rule = jax.random.normal(jax.random.key(8), (width, CLASSES))
    return features, jnp.argmax(features @ rule, axis=1)


def loss(parameters: jax.Array, examples: Any, key: Any) -> tuple[jax.Array, dict]:
    del key
    features, labels = examples
    logits = features @ parameters
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels), {}


def training(sum_over: Any = None) -> fedagg.Aggregator:
    on_examples = fedagg.local_training(
        loss, optax.sgd(0.1), batch_size=BATCH, shuffle=False
    )

    def work(parameters: jax.Array, number: jax.Array, key: Any) -> Any:
        everyone = jnp.ones(EXAMPLES, jnp.bool_)
        return on_examples(parameters, (examples_of(number), everyone), key)

    mean = fedagg.aggregator(fedagg.mean(weighted=False), sum_over=sum_over)
    return fedagg.federated_averaging(work, optax.sgd(1.0), mean)


def remembering_training(clients: int) -> fedagg.Aggregator:
    """SCAFFOLD whose memories are given to each round."""
    return algorithms.scaffold(
        loss,
        0.1,
        fedagg.aggregator(fedagg.mean()),
        clients=clients,
        on_host=True,
        batch_size=BATCH,
        shuffle=False,
    )


def remembering(clients: int, cohorts: list[np.ndarray], stop: int) -> tuple[Any, Any]:
    """The state and a digest of the memories of all who came; seconds of rounds.

    After `stop` rounds everything is thrown away but the files and the saved state.
    """
    averaging = remembering_training(clients)
    first = averaging.init(jnp.zeros((WIDE, CLASSES)))
    own = jnp.zeros((WIDE, CLASSES))
    make = jax.jit(jax.vmap(lambda number: examples_of(number, WIDE)))
    everyone = jnp.ones((len(cohorts[0]), EXAMPLES), jnp.bool_)
    run = jax.jit(
        lambda state, rows, memory: averaging.next(state, rows, memory=memory)
    )
    rows = make(jnp.asarray(cohorts[0])), everyone
    compiled = run.lower(first, rows, jax.vmap(lambda _: own)(everyone)).compile()
    saved, seconds = flax.serialization.to_bytes(first), []
    with tempfile.TemporaryDirectory() as folder:
        step = None
        for part in (cohorts[:stop], cohorts[stop:]):
            memories = fedagg.ClientMemories(own, clients, folder, step=step)
            state = jax.tree.map(
                jnp.asarray, flax.serialization.from_bytes(first, saved)
            )
            start = time.perf_counter()
            for numbers, memory in memories.rounds(part):
                rows = make(jnp.asarray(numbers)), everyone
                output, kept = compiled(state, rows, memory)
                state, memories[numbers] = output.state, kept
                seconds.append(time.perf_counter() - start)
                start = time.perf_counter()
            step = len(seconds)
            memories.commit(step)
            saved = flax.serialization.to_bytes(state)
            if stop >= len(cohorts):
                break
        kept = hashlib.sha256()
        for numbers in cohorts:
            kept.update(memories[numbers].tobytes())
        return (saved, kept.digest()), seconds


def main() -> None:
    chosen, before = _options(), _peak()
    path = None if chosen.out is None else chosen.out / "population-cpu.md"
    with Report("Rounds over many clients", path) as report:
        report.say(f"{_LEGEND}\n{markdown([_HEADER])}")
        _check()
        averaging = training()
        run = jax.jit(averaging.next, donate_argnums=0)
        for rounds, cohort in ((1, chosen.clients), (chosen.rounds, chosen.cohort)):
            state = averaging.init(jnp.zeros((FEATURES, CLASSES)))
            compiled = run.lower(state, jnp.arange(cohort)).compile()
            draw, seconds = np.random.default_rng(0), []
            for _ in tqdm(range(rounds), unit="round", file=sys.stderr):
                numbers = draw.choice(chosen.clients, cohort, replace=False)
                start = time.perf_counter()
                output = compiled(state, jnp.asarray(numbers))
                state = jax.block_until_ready(output.state)
                seconds.append(time.perf_counter() - start)
            middle = statistics.median(seconds)
            held = f"{_peak() - before:,.0f}"
            counts = f"{rounds:,}", f"{cohort:,}"
            speed = f"{cohort / middle:,.0f}"
            report.say(markdown_row([*counts, f"{middle:.3g}", speed, held]))
            report.keep(
                rounds=rounds,
                clients=cohort,
                seconds=middle,
                clients_a_second=cohort / middle,
                peak_megabytes=_peak() - before,
            )
        _remembering(report, chosen, before)
        report.compare("population", chosen.compare)


def _remembering(report: Report, chosen: argparse.Namespace, before: float) -> None:
    draw = np.random.default_rng(1)
    cohort = chosen.cohort // 10
    rounds = max(2, chosen.rounds // 2)
    cohorts = [
        draw.choice(chosen.clients, cohort, replace=False) for _ in range(rounds)
    ]
    whole, seconds = remembering(chosen.clients, cohorts, rounds)
    held = _peak() - before
    resumed, _ = remembering(chosen.clients, cohorts, rounds // 2)
    if resumed != whole:
        raise AssertionError("the resumed run is not the uninterrupted one")
    middle = statistics.median(seconds)
    speed = f"{cohort / middle:,.0f}"
    counts = f"{rounds:,}, remembering", f"{cohort:,}"
    report.say(markdown_row([*counts, f"{middle:.3g}", speed, f"{held:,.0f}"]))
    report.keep(
        rounds=rounds,
        clients=cohort,
        seconds=middle,
        clients_a_second=cohort / middle,
        peak_megabytes=held,
        kept=WIDE * CLASSES,
        rounds_a_minute=60.0 / middle,
        is_resumed=True,
    )


def _check() -> None:
    """Raises an AssertionError if a round is another than with all at once."""
    numbers = jnp.arange(1000) * 997
    start = jnp.zeros((FEATURES, CLASSES))
    values = [
        jax.jit(x.next)(x.init(start), numbers).value
        for x in (training(), training(fedagg.at_once()))
    ]
    np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-6)


def _peak() -> float:
    """Megabytes."""
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _options() -> argparse.Namespace:
    parser = options.parser("population")
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--cohort", type=int, default=10_000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
