"""What messages cost as bytes, and a server that adds them: `-m benchmarks.wires`."""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import fedagg
from benchmarks import options
from benchmarks.report import Report, markdown, markdown_row

PARAMETERS, TURNS = 1_000_000, 7
HEADER = ["message", "bits", "KB", "encode ms", "decode ms", "add ms", "x copy"]

_LEGEND = f"""
Messages of {PARAMETERS:,} parameters in two leaves, the median of {TURNS} turns, on the
CPU. *Bits* are those sent for a parameter, header and all. *Encode* and *decode* are of
`Wire`, *add* is `RunningTotal.add` of bytes, in NumPy, with a compiled `add`. *x copy*
is that beside copying the parameters as float32, in the same turn.
"""


def messages() -> dict[str, fedagg.Aggregator]:
    """A round of each kind of message."""
    hidden = fedagg.secure_sum(fedagg.mean(weighted=False), 1.0, largest_cohort=1000)
    return {
        "mean()": fedagg.aggregator(fedagg.mean()),
        "quantization(8)": fedagg.aggregator(fedagg.mean(), fedagg.quantization(8)),
        "eden(4)": fedagg.aggregator(fedagg.mean(), fedagg.eden(4)),
        "top_k(0.01)": fedagg.aggregator(fedagg.mean(), fedagg.top_k(0.01)),
        "secure_sum, 32 bits": fedagg.aggregator(hidden),
        "distributed_dp_aggregator, 20 bits": fedagg.distributed_dp_aggregator(
            1.0, 1000, 20
        ),
    }


def row_of(name: str, aggregator: fedagg.Aggregator, parameters: int) -> dict:
    """What one kind of message costs."""
    draw = np.random.default_rng(0)
    value = {
        "bias": jnp.float32(draw.normal(size=parameters // 100)),
        "kernel": jnp.float32(draw.normal(size=parameters - parameters // 100)),
    }
    wire = fedagg.Wire(aggregator, value)
    shared = aggregator.steps.broadcast(aggregator.init(value))
    client = jax.jit(aggregator.steps.client)
    message = jax.device_get(client(shared, value, 1.0, jax.random.key(0)))
    data, plain = wire.encode(message, 1), np.zeros(parameters, np.float32)
    add = jax.jit(aggregator.steps.add)
    running = fedagg.RunningTotal(wire, 1, add=add)
    for number in range(2):  # the first ones compile
        running.add(number, data)
    turns = []
    for turn in range(TURNS):
        turns.append(
            [
                _seconds(plain.copy),
                _seconds(lambda: wire.encode(message, 1)),
                _seconds(lambda: wire.decode(data, 1)),
                _seconds(lambda turn=turn: running.add(2 + turn, data)),
            ]
        )
    _, encoding, decoding, adding = (
        1e3 * statistics.median(x) for x in zip(*turns, strict=True)
    )
    return {
        "message": name,
        "parameters": parameters,
        "bytes": len(data),
        "encode_milliseconds": encoding,
        "decode_milliseconds": decoding,
        "add_milliseconds": adding,
        "x_copy": statistics.median(x[3] / x[0] for x in turns),
    }


def cells(row: dict) -> list[str]:
    times = (row[f"{x}_milliseconds"] for x in ("encode", "decode", "add"))
    return [
        f"`{row['message']}`",
        f"{8 * row['bytes'] / row['parameters']:.2f}",
        f"{row['bytes'] / 1e3:,.1f}",
        *(f"{x:.2f}" for x in times),
        f"{row['x_copy']:.1f}",
    ]


def _seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    chosen = _options()
    path = None if chosen.out is None else chosen.out / "wires-cpu.md"
    with Report("Messages as bytes", path) as report:
        report.say(f"{_LEGEND}\n{markdown([HEADER])}")
        for name, aggregator in messages().items():
            row = row_of(name, aggregator, chosen.parameters)
            report.say(markdown_row(cells(row)))
            report.keep(**row)
        report.compare("wires", chosen.compare)


def _options() -> argparse.Namespace:
    parser = options.parser("wires")
    parser.add_argument("--parameters", type=int, default=PARAMETERS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
