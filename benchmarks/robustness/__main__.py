"""Rules against attacks on real digits: `python -m benchmarks.robustness`."""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks import options
from benchmarks.peers.environments import PEERS, CannotRun
from benchmarks.peers.preparing import add_options, prepare
from benchmarks.peers.running import SETTINGS, rows_of
from benchmarks.report import Report, stem_of_device
from benchmarks.robustness import ours
from benchmarks.robustness.choosing import Row, ends
from benchmarks.robustness.settings import (
    FULL,
    HONEST,
    SMALL,
    Digits,
    Grid,
    Run,
    read_digits,
    save_digits,
)
from benchmarks.robustness.table import draw, worst_cases

OTHERS = {
    "byzfl": PEERS["byzfl"]._replace(
        module="benchmarks.robustness.byzfl", packages=("byzfl", "torch", "numpy")
    )
}
_LEGEND = f"""
Accuracy on 1,000 of MNIST's digits of a network of two layers, by SGD of {HONEST}
honest clients and of liars beside them, under the attack that leaves the least: a mean
over seeds ± its deviation from seed to seed. Rate and momentum are the best ones under
their own worst attack, on digits for validation. A part of the digits is dealt to
honest clients by chance, alike, and the rest by label.
"""


def main() -> None:
    chosen = _options()
    path = chosen.out and chosen.out / f"robustness-{stem_of_device()}.md"
    with Report("Rules against attacks", path) as report:
        ready = prepare(OTHERS, chosen, report)
        rows = measure(chosen.grid, ready, chosen, report)
        for row in rows:
            report.keep(**row)
        report.say(f"{_LEGEND}\n{worst_cases(rows)}")
        if path is not None:
            draw(rows, path.with_suffix(".png"))
        report.compare("robustness", chosen.compare)


def measure(
    grid: Grid, ready: dict[str, Path], chosen: argparse.Namespace, report: Report
) -> list[Row]:
    """The rows of fedagg, then those of others, who are given the most liars only."""
    digits = read_digits()
    start = time.perf_counter()
    runs = [*ours.runs(grid, digits)]
    report.say(_took("fedagg", len(runs), time.perf_counter() - start))
    rows = ends("fedagg", runs, grid.every)
    few = grid._replace(liars=grid.liars[-1:])
    for key, python in ready.items():
        peer, log = OTHERS[key], chosen.environments / f"{key}-robustness.log"
        try:
            seconds, runs = _through(peer.module, python, few, digits, log)
        except CannotRun as reason:
            report.say(f"\n{peer.name} stopped: {reason}")
            continue
        report.say(_took(peer.name, len(runs), seconds))
        rows += ends(peer.name, runs, grid.every)
    return rows


def _through(
    module: str, python: Path, grid: Grid, digits: Digits, log: Path
) -> tuple[float, list[Run]]:
    """Seconds and runs of a peer, which says the former first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_digits(folder / "digits.npz", digits)
        (folder / "grid.json").write_text(json.dumps(grid))
        settings = {**SETTINGS, "OMP_NUM_THREADS": "1"}
        command = [python, "-m", module, folder]
        told: Iterable = rows_of(command, log, 24 * 3600.0, settings)
        first, *runs = told
    return first["seconds"], [Run(*run) for run in runs]


def _took(who: str, trainings: int, seconds: float) -> str:
    each = seconds / trainings
    return (
        f"- Time of {who}: {trainings} trainings in {seconds:.0f} s, {each:.2f} s each"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness")
    parser.add_argument("--out", type=Path, help="a folder for what is written")
    options.add_compare(parser)
    parser.add_argument(
        "--full", dest="grid", action="store_const", const=FULL, default=SMALL
    )
    add_options(parser, OTHERS, default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
