"""What a benchmark has to say, printed and kept as it grows."""

import datetime
import json
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import jax

from benchmarks import records

_PACKAGES = ("fedagg", "jax", "jaxlib", "numpy", "optax", "drjax", "jax-privacy")


class Report:
    """Prints, and writes the same to a file, if there is one, and rows beside it.

    Rows are lines of JSON, after one with the machine and the versions, in a file of
    the same name that ends in `.jsonl`.
    """

    def __init__(self, title: str, path: Path | str | None):
        self._title = title
        self._path = None if path is None else Path(path)
        self._file: TextIO | None = None
        self._kept: TextIO | None = None
        self.told: list[str] = []
        self.rows: list[records.Row] = []

    def __enter__(self) -> "Report":
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w")
        self.say(f"# {self._title}\n\n{_describe_run()}")
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._file, self._kept):
            if file is not None:
                file.close()

    def keep(self, **row: Any) -> None:
        """Keeps a row as a line of JSON, after what was said of the run before."""
        self.rows.append(records.without_nan(row))
        if self._path is None:
            return
        if self._kept is None:
            self._kept = self._path.with_suffix(".jsonl").open("w")
            print(json.dumps(records.run_of(self.told)), file=self._kept)
        print(json.dumps(self.rows[-1]), file=self._kept, flush=True)

    def compare(self, name: str, earlier: records.Records | None) -> None:
        """Prints the rows of a benchmark over those of an earlier run, if given."""
        if earlier is not None:
            kind = records.KINDS[name]
            try:
                text = records.compare(kind, earlier.rows, self.rows)
            except ValueError as reason:
                text = f"nothing to compare: {reason}"
            print(f"\n{text}", flush=True)

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.told.append(text)
        if self._file is not None:
            print(text, file=self._file, flush=True)


def describe_device() -> str:
    devices = jax.devices()
    kind = f"{len(devices)} x {devices[0].device_kind}"
    return f"{kind} ({_processor()}, {os.cpu_count()} cores)"


def is_on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def stem_of_device() -> str:
    """What files of results are named after: `cpu`, or the accelerator's name."""
    return re.sub("[^a-z0-9]+", "-", jax.devices()[0].device_kind.lower())


def markdown(rows: list[list[str]]) -> str:
    """A table whose first row is the header."""
    header, *others = rows
    rule = ["---", *(len(header) - 1) * ["---:"]]
    return "\n".join(map(markdown_row, (header, rule, *others)))


def markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def count_leaves(leaves: int) -> str:
    return "1 leaf" if leaves == 1 else f"{leaves} leaves"


def _describe_run() -> str:
    versions = ", ".join(map(_version, _PACKAGES))
    return (
        f"- Device: {describe_device()}\n"
        f"- Versions: Python {platform.python_version()}, {versions}\n"
        f"- Date: {datetime.date.today()}"
    )


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} missing"


def _processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()
