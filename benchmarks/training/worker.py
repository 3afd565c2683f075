"""Runs a round in an environment of its own, and prints what it took as JSON.

What this module imports has to run without JAX and without fedagg.
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.training.rounds import Job, NotRun
from benchmarks.training.workloads import change_off, load, load_parameters

# Of a round's change. Rounding alone moves some clients' ends: it turns a ReLU over.
TOLERANCE = 5e-3
_FEW, _MANY = 3, 20  # turns
_SHORT, _LONG = 2.0, 45.0  # seconds of turns that are enough for many, and for one


def main() -> None:
    chosen = _options()
    # What a peer prints, and those whom it starts, must not get in between.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        row = measure(chosen.module, chosen.folder, chosen.way, chosen.tolerance)
    except NotRun as reason:
        row = {"skipped": str(reason)}
    except Exception as error:  # whatever somebody raises is their answer
        said = str(error).splitlines() or [""]
        row = {"skipped": f"{type(error).__name__}: {said[0]}"[:200]}
        import traceback

        traceback.print_exc()
    print(json.dumps(row), file=out)
    out.flush()
    os._exit(0)  # else threads of peers, such as Flower's server, would be waited for


def measure(module: str, folder: Path, way: str, tolerance: float) -> dict:
    """What a round takes, if it is right."""
    start, frozen = (load_parameters(folder / f"{x}.npz") for x in ("start", "frozen"))
    job = Job(load(folder / "workload.npz"), start, frozen, way)
    round_ = importlib.import_module(module).prepare(job)
    first, output = timed(round_.run)
    turns = timed_turns(round_.run)
    row = {
        "calls": round_.calls,
        "seconds": statistics.median(turns),
        "turns": len(turns),
        "first_call_seconds": first,
        "held_megabytes": round_.held(),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }
    expected = folder / "expected.npz"
    if expected.exists():
        got = round_.parameters(output)
        row["off"] = change_off(got, load_parameters(expected), start)
        if not row["off"] <= tolerance:
            raise ValueError(f"wrong, the change is off by {row['off']:.2g} of it")
    return row


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    output = run()
    return time.perf_counter() - start, output


def timed_turns(run: Callable[[], Any]) -> list[float]:
    """Seconds of each of some turns, fewer where they are long."""
    turns: list[float] = []
    while not _enough(len(turns), sum(turns)):
        turns.append(timed(run)[0])
    return turns


def _enough(turns: int, spent: float) -> bool:
    return (
        turns >= _MANY
        or (turns >= _FEW and spent > _SHORT)
        or (turns >= 1 and spent > _LONG)
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("module", help="what prepares the round")
    parser.add_argument("folder", type=Path, help="where the workload is")
    parser.add_argument("--way", default="")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    return parser.parse_args()


if __name__ == "__main__":
    main()
