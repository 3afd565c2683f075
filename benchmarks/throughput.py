"""What a round costs beside a plain read of the updates: `-m benchmarks.throughput`."""

import argparse
import functools
import itertools
import logging
import time
from collections.abc import Iterator

import jax

from benchmarks import options, table
from benchmarks.contenders import CASES, Skipped, rows
from benchmarks.inputs import TREES, Size, as_tree
from benchmarks.measuring import Workload, measure, median_seconds, prepare
from benchmarks.picture import draw
from benchmarks.report import Report, describe_device
from benchmarks.table import Cell, Line

SIZES = [Size(64, 1_000_000), Size(256, 100_000), Size(1000, 10_000)]


def main() -> None:
    chosen = _options()
    logging.getLogger("absl").setLevel(logging.ERROR)  # DrJAX warns of a missing mesh
    stem = chosen.out / jax.default_backend()
    start = time.perf_counter()
    end = start + 60.0 * chosen.minutes
    cells = []
    with Report("Throughput, float32", stem.with_suffix(".md")) as report:
        for leaves, size in itertools.product(chosen.leaves, chosen.sizes):
            workload = _prepare(size, tuple(chosen.aggregators))
            cell = Cell(size, leaves, 1e3 * median_seconds(workload.read))
            report.say(table.heading(cell))
            lines = []
            for line in _lines(workload, size, leaves, chosen.aggregators, end):
                report.say(table.row(line))
                report.keep(**table.record(cell, line))
                lines.append(line)
            cells.append((cell, lines))
        report.say(table.defaults(cells))
        report.say(f"\nThis took {time.perf_counter() - start:.0f} seconds.")
        report.compare("throughput", chosen.compare)
    try:
        draw(cells, f"fedagg on {describe_device()}", stem.with_suffix(".png"))
    except ImportError:
        print("No picture: install fedagg[bench].")


@functools.cache
def _prepare(size: Size, names: tuple[str, ...]) -> Workload:
    entries = size.clients * size.parameters
    return prepare(size, [name for name in names if entries <= CASES[name].most])


def _lines(
    workload: Workload, size: Size, leaves: int, names: list[str], end: float
) -> Iterator[Line]:
    @functools.cache
    def tree(spoil):
        return as_tree(spoil(workload.stack), leaves)

    for row in (x for x in rows(size) if x.aggregator in names):
        if isinstance(row, Skipped):
            yield Line(*row)
        elif time.perf_counter() > end:
            yield Line("the rest", "all", "out of time, see --minutes")
            return
        else:
            updates = tree(CASES[row.aggregator].spoil)
            yield Line(row.aggregator, row.way, measure(row, updates, workload))


def _options() -> argparse.Namespace:
    parser = options.parser("throughput")
    parser.add_argument(
        "--quick", action="store_true", help="the middle size alone, 6 leaves"
    )
    options.add_sizes(parser)
    parser.add_argument(
        "--aggregators", nargs="+", choices=list(CASES), default=list(CASES)
    )
    parser.add_argument(
        "--minutes", type=float, default=15.0, help="start no row after so long"
    )
    chosen = parser.parse_args()
    chosen.sizes = chosen.sizes or (SIZES[1:2] if chosen.quick else SIZES)
    chosen.leaves = chosen.leaves or ([6] if chosen.quick else list(TREES))
    chosen.out = chosen.out or options.RESULTS
    return chosen


if __name__ == "__main__":
    main()
