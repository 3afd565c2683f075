"""What rules cost, on trees, and as clients or parameters grow: `-m benchmarks.rules`.

As many lie as inputs have: one client in sixteen holds an entry of 100.
"""

import argparse
import functools
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from benchmarks import options
from benchmarks.contenders import RULES, default_row
from benchmarks.inputs import TREES, Size, as_tree
from benchmarks.measuring import Measured, measure, prepare_sampled
from benchmarks.picture import draw_curves
from benchmarks.records import Row
from benchmarks.report import Report, describe_device, markdown, stem_of_device

BASE = Size(64, 1_000_000)
CLIENTS = [8, 32, 128, 500, 1000]
PARAMETERS = [10_000, 100_000]  # beside those of the base
FEW = 30_000  # parameters, as clients grow
SMALL = Size(20, FEW)  # of whom two lie
# Rules that are measured on small inputs: here, or only there beside others.
SUBSETS = "minimum diameter", "SMEA"
BESIDE = "nearest neighbors, trimmed mean", *SUBSETS
SLOW = 150  # leaves, which take longest to compile and come last
MANY = 128  # clients, of whom the time to compile is shown
# Of more, liars make many variances that are nearly equal, and which of them is taken
# first is a matter of the last digits, on which all further steps depend.
MOST = {"CAF": 128}


class Cell(NamedTuple):
    """Rules that are measured on the same input."""

    part: str  # of the records
    size: Size
    leaves: int
    rules: tuple[str, ...]


def main() -> None:
    chosen = _options()
    start = time.perf_counter()
    path = chosen.out / f"{stem_of_device()}.md"
    end = start + 60.0 * chosen.minutes
    with Report("Rules, float32", path) as report:
        for cell in cells(chosen):
            for row in rows(cell, end):
                print(_progress(row), flush=True)
                report.keep(**row)
        if wrong := [row for row in report.rows if "skipped" in row]:
            report.say("\n" + "\n".join(f"- {_progress(row)}" for row in wrong))
        report.say(f"\n## On trees\n\n{on_trees(report.rows)}")
        report.say(f"\n## As clients and parameters grow\n\n{growth(report.rows)}")
        report.say(f"\nThis took {time.perf_counter() - start:.0f} seconds.")
        report.compare("rules", chosen.compare)
    try:
        draw(report.rows, path.with_suffix(".png"))
    except ImportError:
        print("No picture: install fedagg[bench].")


def cells(chosen: argparse.Namespace) -> Iterator[Cell]:
    n, d = chosen.base
    most = tuple(x for x in chosen.rules if x not in SUBSETS)
    trees = [Cell("trees", Size(n, d), leaves, most) for leaves in chosen.leaves]
    yield from (x for x in trees if x.leaves < SLOW)
    for size in chosen.more:
        yield Cell("trees", size, 1, most)
    yield Cell("trees", SMALL, 1, tuple(x for x in chosen.rules if x in BESIDE))
    growing = tuple(x for x in most if x in chosen.growing)
    for clients in chosen.clients:
        rules = tuple(x for x in growing if clients <= MOST.get(x, clients))
        yield Cell("clients", Size(clients, chosen.few), 1, rules)
    for parameters in sorted({*chosen.parameters, d} if chosen.parameters else ()):
        yield Cell("parameters", Size(n, parameters), 1, growing)
    yield from (x for x in trees if x.leaves >= SLOW)


def rows(cell: Cell, end: float = math.inf) -> Iterator[Row]:
    """A row a rule, checked and timed by the default way to sum, until it is `end`.

    What is wrong, or takes more memory than there is, is a row that says so.
    """
    if time.perf_counter() > end:
        return
    workload = _prepare(cell.size, cell.rules)
    tree = as_tree(workload.stack, cell.leaves)
    for name in cell.rules:
        if time.perf_counter() > end:
            return
        where = {"part": cell.part, **cell.size._asdict(), "leaves": cell.leaves}
        try:
            measured = measure(default_row(name), tree, workload)
        except (AssertionError, jax.errors.JaxRuntimeError) as error:
            measured = str(error).splitlines()[0]
        yield where | {"aggregator": name} | _columns(measured)


def _columns(measured: Measured | str) -> Row:
    if isinstance(measured, str):
        return {"skipped": measured}
    return {
        "x_read": measured.ratio,
        "milliseconds": measured.milliseconds,
        "compile_seconds": measured.compile_seconds,
        "temporary_megabytes": measured.temporary_bytes / 1e6,
    }


_prepare = functools.lru_cache(1)(prepare_sampled)


def on_trees(rows: list[Row]) -> str:
    """Reads of each rule on trees of 1, 6 and 150 leaves, and seconds to compile it."""
    found = {
        (x["aggregator"], x["clients"], x["parameters"], x["leaves"]): x
        for x in rows
        if x["part"] == "trees"
    }
    many = {
        x["aggregator"]: x.get("compile_seconds")
        for x in rows
        if x["part"] == "clients" and x["clients"] == MANY
    }
    trees = sorted({leaves for *_, leaves in found})
    header = ["rule", "clients x parameters"]
    header += [f"reads, {x}" for x in trees] + ["ms"]
    header += [f"s to compile, {x}" for x in trees] + [f"s, {MANY} clients"]
    lines = []
    for name, n, d in dict.fromkeys(x[:3] for x in found):
        cells = [found.get((name, n, d, leaves), {}) for leaves in trees]
        numbers = [x.get("x_read") for x in cells] + [cells[0].get("milliseconds")]
        numbers += [x.get("compile_seconds") for x in cells]
        at_many = many.get(name) if (n, d) != SMALL else None
        numbers.append(at_many)
        lines.append([name, f"{n} x {d:,}", *map(_number, numbers)])
    return markdown([header, *lines])


def growth(rows: list[Row]) -> str:
    """A sentence a rule on how its time grows, with both."""
    curves = _curves(rows)
    lines = [
        [name, _sentence("clients", by_clients), _sentence("parameters", by_parameters)]
        for name, by_clients, by_parameters in (
            (name, points, curves["parameters"].get(name, {}))
            for name, points in curves["clients"].items()
        )
    ]
    return markdown([["rule", "as clients grow", "as parameters grow"], *lines])


def draw(rows: list[Row], path: Path) -> None:
    """Milliseconds over clients and over parameters, a line a rule.

    Raises:
        ImportError: without matplotlib, which comes with fedagg[bench].
    """
    panels = []
    for part, curves in _curves(rows).items():
        if not curves:
            continue
        steps = sorted({step for points in curves.values() for step in points})
        [fixed] = {
            x["parameters" if part == "clients" else "clients"]
            for x in rows
            if x["part"] == part
        }
        said = f"{fixed:,} {'parameters' if part == 'clients' else 'clients'}"
        times = {
            x: [points.get(step, math.nan) for step in steps]
            for x, points in curves.items()
        }
        panels.append((part, said, steps, times))
    draw_curves(panels, f"Rules of fedagg on {describe_device()}", str(path))


def _curves(rows: Iterable[Row]) -> dict[str, dict[str, dict[int, float]]]:
    """Per part and rule its milliseconds at each step."""
    curves: dict[str, dict[str, dict[int, float]]] = {"clients": {}, "parameters": {}}
    for x in rows:
        if x["part"] in curves and "milliseconds" in x:
            curve = curves[x["part"]].setdefault(x["aggregator"], {})
            curve[x[x["part"]]] = x["milliseconds"]
    return curves


def _sentence(what: str, points: dict[int, float]) -> str:
    """How much longer it takes at the end, and the power at which it grows there."""
    if len(points) < 2:
        return "-"
    *_, before, last = steps = sorted(points)
    times, longer = last / steps[0], points[last] / points[steps[0]]
    power = math.log(points[last] / points[before]) / math.log(last / before)
    return (
        f"From {steps[0]:,} to {last:,} {what}, {times:,.0f} times as many, it takes "
        f"{longer:,.0f} times as long; from {before:,} on as the power {power:.1f}."
    )


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:,.0f}" if x >= 100.0 else f"{x:.3g}"


def _progress(row: Row) -> str:
    size = f"{row['clients']} x {row['parameters']:,}, {row['leaves']}"
    start = f"{size}, {row['aggregator']}: "
    if "skipped" in row:
        return start + row["skipped"]
    return start + (
        f"{row['x_read']:.1f} reads, {row['milliseconds']:.2f} ms, "
        f"{row['compile_seconds']:.1f} s to compile"
    )


def _options() -> argparse.Namespace:
    parser = options.parser("rules")
    parser.add_argument("--base", type=options.size, default=BASE)
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--more", nargs="*", type=options.size, default=[])
    parser.add_argument(
        "--growing", nargs="+", choices=list(RULES), default=list(RULES)
    )
    parser.add_argument("--few", type=int, default=FEW)
    parser.add_argument("--clients", nargs="*", type=int, default=CLIENTS)
    parser.add_argument("--parameters", nargs="*", type=int, default=PARAMETERS)
    parser.add_argument("--minutes", type=float, default=15.0)
    chosen = parser.parse_args()
    chosen.leaves = sorted(chosen.leaves or TREES)
    chosen.out = chosen.out or options.RESULTS / "rules"
    return chosen


if __name__ == "__main__":
    main()
