"""What a round costs as clients or parameters grow: `-m benchmarks.scaling`."""

import argparse
import statistics
import time
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import options
from benchmarks.contenders import default_row
from benchmarks.inputs import TREES, Size, as_tree
from benchmarks.measuring import Measured, measure, prepare
from benchmarks.picture import draw_curves
from benchmarks.report import Report, count_leaves, describe_device, markdown

AGGREGATORS = ("mean", "robust")
BASE = Size(64, 100_000)
CLIENTS = [10, 20, 50, 100, 200, 500, 1000]
PARAMETERS = [10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000]

_LEGEND = """
Milliseconds of a round by the default way to sum; in brackets the ratio to a plain read
of the same bytes. Below each column are two fits. *Exponent* is the slope of log time
over log bytes: 1 where cost is linear. *Overhead* and *speed* are those of time =
overhead + bytes / speed, by relative errors, with the bytes of the updates."""


class Sweep(NamedTuple):
    """What one panel is about."""

    grows: str
    fixed: str
    steps: list[int]
    sizes: list[Size]


class Point(NamedTuple):
    milliseconds: float
    ratio: float  # to the plain read


Curves = dict[str, list[Point]]  # a point a size; the plain read comes first


def main() -> None:
    chosen = _options()
    start = time.perf_counter()
    stem = chosen.out / f"scaling-{jax.default_backend()}"
    panels = []
    with Report("Cost over clients and parameters, float32", f"{stem}.md") as report:
        report.say(_LEGEND)
        for sweep in _sweeps(chosen):
            curves = _measure(sweep.sizes, chosen.leaves)
            report.say(_table(sweep, curves))
            for name, curve in curves.items():
                for size, point in zip(sweep.sizes, curve, strict=True):
                    where = {"grows": sweep.grows, **size._asdict(), "curve": name}
                    ms, ratio = point
                    report.keep(**where, milliseconds=ms, x_read=ratio)
            milliseconds = {
                name: [point.milliseconds for point in curve]
                for name, curve in curves.items()
            }
            panels.append((sweep.grows, sweep.fixed, sweep.steps, milliseconds))
        report.say(f"\nThis took {time.perf_counter() - start:.0f} seconds.")
        report.compare("scaling", chosen.compare)
    try:
        draw_curves(panels, f"fedagg on {describe_device()}", f"{stem}.png")
    except ImportError:
        print("No picture: install fedagg[bench].")


def _sweeps(chosen: argparse.Namespace) -> list[Sweep]:
    n, d = chosen.base
    clients = [Size(step, d) for step in chosen.clients]
    parameters = [Size(n, step) for step in chosen.parameters]
    return [
        Sweep("clients", f"{d:,} parameters", chosen.clients, clients),
        Sweep("parameters", f"{n} clients", chosen.parameters, parameters),
    ]


def _measure(sizes: list[Size], trees: list[int]) -> Curves:
    curves: Curves = {"plain read": []}
    for size in sizes:
        workload = prepare(size, AGGREGATORS)
        reads = []
        for leaves in trees:
            tree = as_tree(workload.stack, leaves)
            for name in AGGREGATORS:
                measured = measure(default_row(name), tree, workload)
                assert isinstance(measured, Measured), measured
                curve = curves.setdefault(f"{name}, {count_leaves(leaves)}", [])
                curve.append(Point(measured.milliseconds, measured.ratio))
                reads.append(measured.milliseconds / measured.ratio)
        curves["plain read"].append(Point(statistics.median(reads), 1.0))
    return curves


def _table(sweep: Sweep, curves: Curves) -> str:
    gigabytes = [4e-9 * n * d for n, d in sweep.sizes]
    fits = [_fit(gigabytes, curve) for curve in curves.values()]
    points = zip(sweep.steps, zip(*curves.values(), strict=True), strict=True)
    rows = [
        [sweep.grows, *curves],
        *(
            [f"{step:,}", *(f"{ms:.3g} ({ratio:.1f})" for ms, ratio in row)]
            for step, row in points
        ),
        ["exponent", *(f"{exponent:.2f}" for exponent, _, _ in fits)],
        ["overhead, ms", *(f"{overhead:.2f}" for _, overhead, _ in fits)],
        ["speed, GB/s", *(f"{speed:.1f}" for _, _, speed in fits)],
    ]
    return f"\n## {sweep.grows.capitalize()}, at {sweep.fixed}\n\n{markdown(rows)}"


def _fit(gigabytes: list[float], curve: list[Point]) -> tuple[float, float, float]:
    """Exponent, overhead in milliseconds and speed in GB/s."""
    x, y = np.array(gigabytes), np.array([point.milliseconds for point in curve])
    exponent, _ = np.polyfit(np.log(x), np.log(y), 1)
    per_gigabyte, overhead = np.polyfit(x, y, 1, w=1.0 / y)
    return exponent, overhead, 1e3 / per_gigabyte


def _options() -> argparse.Namespace:
    parser = options.parser("scaling")
    parser.add_argument("--clients", nargs="+", type=int, default=CLIENTS)
    parser.add_argument("--parameters", nargs="+", type=int, default=PARAMETERS)
    parser.add_argument(
        "--base", type=options.size, default=BASE, help="what stays, such as 64x100000"
    )
    chosen = parser.parse_args()
    chosen.leaves = chosen.leaves or list(TREES)
    chosen.out = chosen.out or options.RESULTS
    return chosen


if __name__ == "__main__":
    main()
