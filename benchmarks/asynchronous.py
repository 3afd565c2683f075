"""Asynchronous rounds beside synchronous ones: `-m benchmarks.asynchronous`."""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedagg
from benchmarks import options
from benchmarks.population import BATCH, CLASSES, EXAMPLES, FEATURES, examples_of, loss
from benchmarks.report import Report, markdown, markdown_row

SETTINGS = [(1000, 10, 30), (1000, 100, 300), (10_000, 100, 300)]
TURNS, MAX_STALENESS = 15, 20
HEADER = ["clients", "buffer", "away", "plain ms", "ms", "x plain", "clients a second"]
HEADER += ["x simulated seconds"]

_LEGEND = f"""
A step of `buffered_averaging` beside a round of `federated_averaging` with a cohort as
large as the buffer, the median of {TURNS} turns: logistic regressions of {FEATURES}
features and {CLASSES} classes, {EXAMPLES} examples a client in batches of {BATCH},
`robust_aggregator`, {MAX_STALENESS + 1} models in the state. *Clients a second* are
trained and aggregated, by the clock of the machine. *x simulated seconds* is how much
longer, by the simulated clock, as many rounds take with a cohort of all that are
*away*: durations are Pareto's, of shape 1.5 and from a second on, and a round waits for
its last.
"""


def duration(client: jax.Array, key: jax.Array) -> jax.Array:
    del client
    return jax.random.pareto(key, 1.5)


def row_of(clients: int, buffer: int, away: int, turns: int = TURNS) -> dict[str, Any]:
    """What a step costs, for so many clients in all, in it and at work."""
    work = fedagg.local_training(loss, optax.sgd(0.1), batch_size=BATCH, shuffle=False)
    robust, server = fedagg.robust_aggregator(), optax.sgd(1.0)
    buffered = fedagg.buffered_averaging(
        work,
        server,
        robust,
        clients=clients,
        buffer=buffer,
        concurrency=away,
        duration=duration,
        max_staleness=MAX_STALENESS,
    )
    plain = fedagg.federated_averaging(work, server, robust)
    examples = jax.jit(jax.vmap(examples_of))(jnp.arange(clients))
    data = examples, jnp.ones((clients, EXAMPLES), jnp.bool_)
    start = jnp.zeros((FEATURES, CLASSES))
    state, other = buffered.init(start), plain.init(start)
    step, draw = jax.jit(buffered.next), np.random.default_rng(0)

    @jax.jit
    def round_of(state: Any, numbers: jax.Array, key: jax.Array) -> fedagg.Output:
        rows = jax.tree.map(lambda x: x[numbers], data)
        return plain.next(state, rows, None, key)

    last_of = jax.jit(
        lambda keys: jnp.max(jax.vmap(lambda x: duration(jnp.int32(0), x))(keys))
    )
    times, simulated, waited = [], 0.0, 0.0
    for turn in range(turns + 1):  # the first one compiles
        key = jax.random.key(turn)
        numbers = jnp.asarray(draw.choice(clients, buffer, replace=False))
        begin = time.perf_counter()
        other = jax.block_until_ready(round_of(other, numbers, key)).state
        between = time.perf_counter()
        output = jax.block_until_ready(step(state, data, None, key))
        end = time.perf_counter()
        state = output.state
        simulated += float(output.metrics["buffered/seconds"])
        waited += float(last_of(jax.random.split(key, away)))
        if turn:
            times.append((between - begin, end - between))
    alone, seconds = (statistics.median(x) for x in zip(*times, strict=True))
    return {
        "clients": clients,
        "buffer": buffer,
        "away": away,
        "plain_milliseconds": 1e3 * alone,
        "milliseconds": 1e3 * seconds,
        "x_plain": statistics.median(y / x for x, y in times),
        "clients_a_second": buffer / seconds,
        "x_simulated": waited / simulated,
    }


def cells(row: dict[str, Any]) -> list[str]:
    counts = (f"{row[x]:,}" for x in ("clients", "buffer", "away"))
    costs = ("plain_milliseconds", "milliseconds", "x_plain")
    last = f"{row['clients_a_second']:,.0f}", f"{row['x_simulated']:.1f}"
    return [*counts, *(f"{row[x]:.2f}" for x in costs), *last]


def main() -> None:
    chosen = _options()
    path = None if chosen.out is None else chosen.out / "asynchronous-cpu.md"
    with Report("Asynchronous rounds", path) as report:
        report.say(f"{_LEGEND}\n{markdown([HEADER])}")
        for setting in SETTINGS[: 1 if chosen.quick else None]:
            row = row_of(*setting)
            report.say(markdown_row(cells(row)))
            report.keep(**row)
        report.compare("asynchronous", chosen.compare)


def _options() -> argparse.Namespace:
    parser = options.parser("asynchronous")
    parser.add_argument("--quick", action="store_true", help="one setting")
    return parser.parse_args()


if __name__ == "__main__":
    main()
