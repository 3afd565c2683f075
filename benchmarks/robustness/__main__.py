"""Rules against attacks on real digits: `python -m benchmarks.robustness`."""

import argparse
import json
import os
import tempfile
from pathlib import Path

from benchmarks import options
from benchmarks.peers.environments import PEERS, CannotRun
from benchmarks.peers.preparing import add_options, prepare
from benchmarks.peers.running import ROOT, SETTINGS, rows_of
from benchmarks.report import Report, stem_of_device
from benchmarks.robustness import byzfl, ours
from benchmarks.robustness.choosing import Row, ends
from benchmarks.robustness.keeping import (
    folder_of,
    keeping,
    read,
    told_apart,
    wanted,
    whole,
)
from benchmarks.robustness.settings import (
    FULL,
    HONEST,
    SMALL,
    Digits,
    Grid,
    read_digits,
    sample,
    save_digits,
)
from benchmarks.robustness.table import agreement, draw, times, worst_cases

OTHERS = {
    "byzfl": PEERS["byzfl"]._replace(
        module="benchmarks.robustness.byzfl", packages=("byzfl", "torch", "numpy")
    )
}
_MOST_SECONDS = 1e6  # of a peer, which may be stopped and goes on later
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
        report.say(f"{_LEGEND}\n{worst_cases(rows)}\n\n{agreement(rows)}")
        report.say(f"\n{times(rows)}")
        if path is not None:
            draw(rows, path.with_suffix(".png"))
        report.compare("robustness", chosen.compare)


def measure(
    grid: Grid, ready: dict[str, Path], chosen: argparse.Namespace, report: Report
) -> list[Row]:
    """The rows of fedagg, then those of others; of each one its time."""
    digits = read_digits()
    rows = _ours(grid, digits, chosen)
    for key in chosen.peers:
        peer, folder = OTHERS[key], folder_of(chosen.work, key, grid)
        took = None
        try:
            if key in ready:
                _through(peer.module, ready[key], grid, digits, folder)
                took = chosen.times and _sample(peer.module, ready[key], grid, digits)
        except CannotRun as reason:
            report.say(f"\n{peer.name} stopped: {reason}")
        rows += _theirs(peer.name, grid, folder, took)
    return rows


def _ours(grid: Grid, digits: Digits, chosen: argparse.Namespace) -> list[Row]:
    path = folder_of(chosen.work, "fedagg", grid) / "runs.jsonl"
    if chosen.times:
        path.unlink(missing_ok=True)
    asked = wanted(grid)
    kept = [x for x in read(path) if asked & {*map(told_apart, x.runs)}]
    done = {told_apart(run) for x in kept for run in x.runs}
    cells = {(rule, mixer, f) for rule, mixer, _, _, f, *_ in asked - done}
    others = {(rule, mixer, f) for rule, mixer, _, _, f, *_ in asked} - cells
    for one in keeping(path, ours.runs(grid, digits, others)):
        kept.append(one)
        print(f"fedagg: {sum(len(x.runs) for x in kept)} of {len(asked)}", flush=True)
    runs = [run for x in kept for run in x.runs]
    seconds = sum(x.seconds for x in kept)
    return [
        *ends("fedagg", whole(runs, grid), grid.every),
        _took("fedagg", grid, len(runs), seconds),
    ]


def _theirs(
    who: str, grid: Grid, folder: Path, took: tuple[int, float] | None
) -> list[Row]:
    """What was written until now; times are a peer's own, unless they are given."""
    asked = wanted(grid)
    trained = byzfl.trainings(folder / "results")
    found = [x for x in trained if told_apart(x[1]) in asked]
    if not found:
        return []
    spent = sum(seconds for seconds, _ in found) / (os.cpu_count() or 1)
    rows = ends(who, whole((run for _, run in found), grid), grid.every)
    return [*rows, _took(who, grid, *(took or (len(found), spent)))]


def _took(who: str, grid: Grid, trainings: int, seconds: float) -> Row:
    of = len(wanted(grid))
    return {"who": who, "trainings": trainings, "of": of, "seconds": seconds}


def _through(
    module: str, python: Path, grid: Grid, digits: Digits, folder: Path
) -> float:
    """Has a peer train in a folder what is not there yet, and says for how long."""
    folder.mkdir(parents=True, exist_ok=True)
    save_digits(folder / "digits.npz", digits)
    (folder / "grid.json").write_text(json.dumps(grid))
    settings = {**SETTINGS, "OMP_NUM_THREADS": "1"}
    command = [python, "-m", module, folder]
    [told] = rows_of(command, folder / "log.txt", _MOST_SECONDS, settings)
    return told["seconds"]


def _sample(module: str, python: Path, grid: Grid, digits: Digits) -> tuple[int, float]:
    few = sample(grid)
    with tempfile.TemporaryDirectory() as name:
        return len(wanted(few)), _through(module, python, few, digits, Path(name))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness")
    parser.add_argument("--out", type=Path, help="a folder for what is written")
    parser.add_argument(
        "--work",
        type=lambda x: Path(x).absolute(),
        default=ROOT / "build" / "robustness",
        help="a folder for trainings that are finished, which are not trained again",
    )
    parser.add_argument(
        "--times",
        action="store_true",
        help="train all of fedagg's anew, and a sample of others', to time them",
    )
    options.add_compare(parser)
    parser.add_argument(
        "--full", dest="grid", action="store_const", const=FULL, default=SMALL
    )
    for name in ("rules", "attacks"):
        parser.add_argument(f"--{name}", nargs="+", choices=getattr(FULL, name))
    parser.add_argument("--liars", nargs="+", type=int)
    parser.add_argument("--seeds", type=int, help="two at least")
    add_options(parser, OTHERS, default=[])
    chosen = parser.parse_args()
    given = {x: getattr(chosen, x) for x in ("rules", "attacks", "liars", "seeds")}
    given = {x: tuple(v) if x != "seeds" else v for x, v in given.items() if v}
    chosen.grid = chosen.grid._replace(**given)
    return chosen


if __name__ == "__main__":
    main()
