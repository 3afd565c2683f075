"""What a round costs beside a plain read of the updates: `-m benchmarks.throughput`."""

import argparse
import functools
import itertools
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.contenders import CASES, Skipped, rows
from benchmarks.inputs import TREES, Size, as_tree, make_stack, make_weights
from benchmarks.measuring import compile_read, measure, seconds
from benchmarks.picture import draw
from benchmarks.report import Cell, Line, Report, describe_device

SIZES = [Size(64, 1_000_000), Size(256, 100_000), Size(1000, 10_000)]


def main() -> None:
    options = _options()
    logging.getLogger("absl").setLevel(logging.ERROR)  # DrJAX warns of a missing mesh
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / jax.default_backend()
    start = time.perf_counter()
    end = start + 60.0 * options.minutes
    cells = []
    with Report(stem.with_suffix(".md")) as report:
        for leaves, size in itertools.product(options.leaves, options.sizes):
            workload = _prepare(size)
            cell = Cell(size, leaves, _median_milliseconds(workload.read))
            report.begin(cell)
            lines = _lines(workload, size, leaves, end)
            cells.append((cell, [report.line(line) for line in lines]))
        report.end(time.perf_counter() - start)
    try:
        draw(cells, f"fedagg on {describe_device()}", stem.with_suffix(".png"))
    except ImportError:
        print("No picture: install fedagg[bench].")


class _Workload(NamedTuple):
    """What the rows of one size share."""

    stack: jax.Array  # [n, d]
    weights: jax.Array  # [n]
    read: Callable[[], Any]
    expected: dict[str, np.ndarray]  # per aggregator [d]


@functools.cache
def _prepare(size: Size) -> _Workload:
    stack, weights = make_stack(size), make_weights(size)
    arrays = np.asarray(stack), np.asarray(weights, np.float64)
    expected = {
        name: case.expected(*arrays)
        for name, case in CASES.items()
        if size.clients * size.parameters <= case.most
    }
    return _Workload(stack, weights, compile_read(weights, stack), expected)


def _median_milliseconds(run: Callable[[], Any]) -> float:
    return 1e3 * statistics.median(seconds(run) for _ in range(20))


def _lines(workload: _Workload, size: Size, leaves: int, end: float) -> Iterator[Line]:
    stack, weights, read, expected = workload
    tree = as_tree(stack, leaves)
    for row in rows(size):
        if isinstance(row, Skipped):
            yield Line(*row)
        elif time.perf_counter() > end:
            yield Line("the rest", "all", "out of time, see --minutes")
            return
        else:
            want = expected[row.aggregator]
            measured = measure(row, tree, weights, want, read)
            yield Line(row.aggregator, row.way, measured)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput")
    parser.add_argument(
        "--quick", action="store_true", help="the middle size alone, 6 leaves"
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=_size,
        help="clients x parameters, such as 64x1000000; at least 3000 parameters",
    )
    parser.add_argument("--leaves", nargs="+", type=int, choices=list(TREES))
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="a folder"
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="start no row after so long"
    )
    options = parser.parse_args()
    options.sizes = options.sizes or (SIZES[1:2] if options.quick else SIZES)
    options.leaves = options.leaves or ([6] if options.quick else list(TREES))
    return options


def _size(text: str) -> Size:
    clients, parameters = (int(part.replace("_", "")) for part in text.split("x"))
    if clients < 1 or parameters < 3000:
        raise argparse.ArgumentTypeError(f"too small: {text}")
    return Size(clients, parameters)


if __name__ == "__main__":
    main()
