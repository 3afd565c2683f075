"""Runs the worker in a peer's environment, and reads its rows."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.inputs import Size
from benchmarks.peers.environments import CannotRun, Peer, last_error

ROOT = Path(__file__).parents[2]
_GRACE_SECONDS = 180.0  # for the row that is running when time is up
SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "FLWR_TELEMETRY_ENABLED": "0",
}


class Measured(NamedTuple):
    """The columns of a row. Times are medians."""

    ratio: float  # to the plain read, median of the ratios turn by turn
    milliseconds: float
    read_milliseconds: float


class Line(NamedTuple):
    """A line of the table."""

    size: Size
    leaves: int
    peer: str
    aggregator: str
    calls: str
    measured: Measured | str  # or the reason why nothing was


def measure(
    peer: Peer,
    python: Path,
    sizes: list[Size],
    leaves: list[int],
    aggregators: list[str],
    end: float,
    log: Path,
    settings: dict[str, str] = SETTINGS,
    sampled: bool = False,
) -> Iterator[Line]:
    """The peer's lines as they come, until the clock is at `end`.

    Of rules it is enough to compare a sample of the columns.

    Raises:
        CannotRun: if the worker fails; what it said is in `log`.
    """
    seconds = max(0.0, end - time.perf_counter())
    texts = [f"{size.clients}x{size.parameters}" for size in sizes]
    command = [
        *(python, "-m", "benchmarks.peers.worker", peer.module),
        *("--sizes", *texts, "--leaves", *map(str, leaves), "--seconds", str(seconds)),
        *("--aggregators", *aggregators),
        *(["--sampled"] if sampled else []),
    ]
    for row in rows_of(command, log, seconds + _GRACE_SECONDS, settings):
        yield _line(peer, row)


def rows_of(
    command: list, log: Path, seconds: float, settings: dict[str, str]
) -> Iterator[dict]:
    """What a command prints as lines of JSON, as they come, for so long at most.

    Raises:
        CannotRun: if it fails; what it said is in `log`.
    """
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            process_group=0,  # of the same session, and ended together
        ) as worker,
    ):
        timer = threading.Timer(seconds, _stop, [worker])
        timer.start()
        try:
            for text in worker.stdout or ():
                yield json.loads(text)
            code = worker.wait()
        finally:
            timer.cancel()
            _stop(worker)
    if code:
        reason = last_error(log.read_text()) if code > 0 else f"signal {-code}"
        raise CannotRun(reason)


def _line(peer: Peer, row: dict) -> Line:
    skipped = row.get("skipped")
    measured = skipped or Measured(*(row[name] for name in Measured._fields))
    where = Size(*row["size"]), row["leaves"], peer.name
    return Line(*where, row["aggregator"], row["calls"], measured)


def _stop(worker: subprocess.Popen) -> None:
    """Ends the worker and the servers that it started, as TFF's outlives it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
