"""Results as lines of JSON: first the machine and versions, then a row a line."""

import json
import math
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]


class Kind(NamedTuple):
    """What rows of a benchmark are told apart by, and what is compared."""

    by: tuple[str, ...]
    of: str


class Records(NamedTuple):
    """What a file holds."""

    run: Row  # title, device, versions, date, and what else was said of the run
    rows: list[Row]


_SIZE = ("clients", "parameters")
KINDS = {
    "throughput": Kind((*_SIZE, "leaves", "aggregator", "way"), "x_read"),
    "peers": Kind((*_SIZE, "leaves", "aggregator", "peer", "calls"), "x_read"),
    "rules": Kind(("part", *_SIZE, "leaves", "aggregator"), "x_read"),
    "scaling": Kind(("grows", *_SIZE, "curve"), "milliseconds"),
    "accelerator": Kind((*_SIZE, "dtype", "leaves"), "milliseconds"),
    "population": Kind(("rounds", "clients"), "seconds"),
    "bits": Kind(("vector", "compressor"), "error"),
    "asynchronous": Kind(("clients", "buffer", "away"), "x_plain"),
    "wires": Kind(("message", "parameters"), "x_copy"),
    "secagg": Kind(
        ("mode", "clients", "entries", "bits", "degree", "threshold", "dropped"),
        "server_milliseconds",
    ),
    "robustness": Kind(
        ("who", "rule", "mixer", "similarity", "liars", "attack"), "accuracy"
    ),
    "training": Kind(("workload", "who", "way", "calls"), "seconds"),
}


def run_of(told: Iterable[str]) -> Row:
    """The run, from the lines of a report's head: `# title` and `- What: it is`."""
    text = "\n".join(told)
    title = re.search(r"^# (.*)$", text, re.M)
    said = dict(re.findall(r"^- ([^:\n]+): (.*)$", text, re.M))
    versions = said.pop("Versions", "")
    return {
        "title": title[1] if title else "",
        "device": said.pop("Device", ""),
        "versions": dict(re.findall(r"([\w-]+) ([^\s,]+)(?:,|$)", versions)),
        "date": said.pop("Date", ""),
        "said": said,
    }


def read(path: Path | str) -> Records:
    """Reads a file of records.

    Raises:
        ValueError: if it does not begin with a run.
    """
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    if not lines or "versions" not in lines[0]:
        raise ValueError(f"{path}: expected a first line with device and versions.")
    return Records(lines[0], lines[1:])


def write(path: Path | str, run: Row, rows: Iterable[Row]) -> None:
    lines = [json.dumps(x, allow_nan=False) for x in (run, *rows)]
    Path(path).write_text("".join(f"{x}\n" for x in lines))


def without_nan(row: Row) -> Row:
    """The row with None where a number is not finite, which JSON has no word for."""

    def known(x: Any) -> Any:
        return None if isinstance(x, float) and not math.isfinite(x) else x

    return {name: known(x) for name, x in row.items()}


def compare(kind: Kind, earlier: Iterable[Row], later: Iterable[Row]) -> str:
    """A line for each row of both, the last their geometric mean: later over earlier.

    Raises:
        ValueError: if no row is in both.
    """

    def numbers(rows: Iterable[Row]) -> dict[tuple, float]:
        return {
            tuple(row.get(x) for x in kind.by): row[kind.of]
            for row in rows
            if row.get(kind.of)
        }

    before, now = numbers(earlier), numbers(later)
    both = [x for x in now if x in before]
    if not both:
        raise ValueError("no row is in both runs.")
    ratios = [now[x] / before[x] for x in both]
    lines = [f"{kind.of}: later / earlier = ratio"]
    for row, ratio in zip(both, ratios, strict=True):
        what = ", ".join(str(x) for x in row if x not in (None, ""))
        lines.append(f"{what}: {now[row]:.4g} / {before[row]:.4g} = {ratio:.2f}")
    alone = len(before) + len(now) - 2 * len(both)
    middle = statistics.geometric_mean(ratios)
    lines.append(f"all {len(both)}: {middle:.2f}; {alone} rows are in one run alone")
    return "\n".join(lines)
