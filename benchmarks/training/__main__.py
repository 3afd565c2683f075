"""Times rounds of training beside those of peers: `python -m benchmarks.training`."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# Each round runs in a process of its own, and all have to fit on an accelerator.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from benchmarks import options
from benchmarks.peers.environments import TRAINERS, CannotRun
from benchmarks.peers.preparing import add_options, prepare
from benchmarks.peers.running import SETTINGS, rows_of
from benchmarks.report import Report, is_on_cpu, stem_of_device
from benchmarks.training.table import table
from benchmarks.training.worker import TOLERANCE
from benchmarks.training.workloads import CLIENTS, WORKLOADS

OURS = "benchmarks.training.ours"
SMALL = ("logistic", "mlp")  # for which all clients fit into memory at once
CHUNKS = {"logistic": [1, 25], "mlp": [1, 25]}
_SECONDS = 420.0  # after which a worker is stopped
# An accelerator rounds factors of convolutions to 10 bits, unless told otherwise.
_LOOSE = 0.05
_LEGEND = """
Each round runs in a process of its own, one after the other, from the same parameters
and examples, in the same order and batches. Its model was compared with that of a plain
Python loop. *x arithmetic* is the time over that of the floating-point operations of
the clients' steps at the speed of a large matrix product in float32, measured in the
same run; *x own steps* over the seconds of the clients' steps alone, jitted by
themselves. *held MB* is what the compiled program allocates beside inputs and outputs,
*peak MB* the most that the process had, its data and libraries with it (of Flower and
TFF without those that they start). The last columns are the time over that of a peer.
"""


def main() -> None:
    chosen = _options()
    start = time.perf_counter()
    path = chosen.out and chosen.out / f"training-{stem_of_device()}.md"
    with Report("A round of training", path) as report:
        ready = prepare(TRAINERS, chosen, report)
        report.say(_LEGEND)
        for name in chosen.workloads:
            rows: list[dict] = []
            with tempfile.TemporaryDirectory() as folder:
                for row in measure(name, Path(folder), ready, chosen):
                    rows.append(row)
                    report.keep(**row)
                    print(_progress(row), flush=True)
            report.say(f"\n## {rows[0]['title']}\n\n{table(rows, list(ready))}")
        report.say(f"\nThis took {time.perf_counter() - start:.0f} seconds.")
        report.compare("training", chosen.compare)


def measure(
    name: str, folder: Path, ready: dict[str, Path], chosen: argparse.Namespace
) -> Iterator[dict]:
    """The rows of a workload: those of fedagg, then those of the peers."""
    check = "--check" if chosen.check else "--no-check"
    share = str(chosen.clients / CLIENTS)
    made = _run(
        *(sys.executable, "-m", "benchmarks.training.reference", name, folder),
        *("--share", share, check),
        log=folder / "reference.log",
        settings={},
    )
    known = {"workload": name, "title": made.get("title", name)}
    if "skipped" in made:
        yield {**known, "who": "fedagg", **made}
        return
    known |= {"steps": made["steps"], "product_gflops": made["speed"] / 1e9}
    for who, way, python in _contenders(name, ready, chosen):
        module = OURS if who == "fedagg" else TRAINERS[who].module
        tolerance = str(TOLERANCE if is_on_cpu() else _LOOSE)
        row = _run(
            *(python, "-m", "benchmarks.training.worker", module, folder),
            *("--way", way, "--tolerance", tolerance),
            log=chosen.logs / f"{name}-{who}.log",
            settings={} if who == "fedagg" else SETTINGS,
        )
        if "seconds" in row:
            row["x_arithmetic"] = row["seconds"] / made["arithmetic_seconds"]
            if made["own_seconds"]:
                row["x_own_steps"] = row["seconds"] / made["own_seconds"]
        yield {**known, "who": who, "way": way, **row}


def _contenders(
    name: str, ready: dict[str, Path], chosen: argparse.Namespace
) -> Iterator[tuple[str, str, Path]]:
    """Who runs a workload, by which way, with which interpreter."""
    here = Path(sys.executable)
    chunks = CHUNKS.get(name, [1, 5]) if chosen.chunks is None else chosen.chunks
    ways = ["default", *(f"in_chunks({x})" for x in chunks)]
    if name in SMALL or not is_on_cpu():
        ways.append("at_once()")
    if is_on_cpu():
        ways.append("across(cpu_mesh())")
    yield from (("fedagg", way, here) for way in ways)
    yield from ((who, "", python) for who, python in ready.items())


def _run(*command: str | Path, log: Path, settings: dict[str, str]) -> dict:
    """The line of JSON that a command prints, or why there is none."""
    try:
        rows = [*rows_of([*command], log, _SECONDS, settings)]
    except CannotRun as reason:
        return {"skipped": str(reason)}
    return rows[-1] if rows else {"skipped": "it printed nothing"}


def _progress(row: dict) -> str:
    said = row.get("skipped") or f"{row['seconds']:.3f} s, off by {row.get('off', -1)}"
    return f"{row['workload']}, {row['who']} {row.get('way', '')}: {said}"


def _options() -> argparse.Namespace:
    parser = options.parser("training")
    names = list(WORKLOADS)
    parser.add_argument("--workloads", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--clients", type=int, help="of the first row (50), others in proportion"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the clients")
    parser.add_argument("--chunks", nargs="*", type=int, help="1 and 5, or 1 and 25")
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare models with those of a plain loop",
    )
    add_options(parser, TRAINERS, default=[])
    chosen = parser.parse_args()
    chosen.clients = chosen.clients or (CLIENTS // 10 if chosen.quick else CLIENTS)
    chosen.logs = chosen.environments / "logs"
    chosen.logs.mkdir(parents=True, exist_ok=True)
    return chosen


if __name__ == "__main__":
    main()
