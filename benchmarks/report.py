"""The table, printed and kept as it grows, and the picture."""

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax

from benchmarks.inputs import Size
from benchmarks.measuring import Measured

_HEADER = (
    f"| {'aggregator':21} | {'way to sum':19} | {'x read':>7} | {'ms':>8} "
    f"| {'compile s':>9} | {'temporary MB':>12} |"
)
_RULE = (
    f"| {'-' * 21} | {'-' * 19} | {'-' * 6}: | {'-' * 7}: | {'-' * 8}: | {'-' * 11}: |"
)


class Cell(NamedTuple):
    """What a part of the table is about."""

    size: Size
    leaves: int
    read_milliseconds: float

    def __str__(self) -> str:
        leaves = "1 leaf" if self.leaves == 1 else f"{self.leaves} leaves"
        return f"{self.size} parameters, {leaves}"


class Line(NamedTuple):
    """A line of the table."""

    aggregator: str
    way: str
    measured: Measured | str  # or the reason why nothing was


class Report:
    """Prints, and writes the same to a file."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> "Report":
        self._file = self._path.open("w")
        self._say(_describe_run())
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def begin(self, cell: Cell) -> None:
        gigabytes = 4e-9 * cell.size.clients * cell.size.parameters
        speed = 1e3 * gigabytes / cell.read_milliseconds
        self._say(
            f"\n## {cell}\n\nA plain read of the {gigabytes:.3g} GB takes "
            f"{cell.read_milliseconds:.2f} ms, "
            f"{speed:.0f} GB/s.\n\n{_HEADER}\n{_RULE}"
        )

    def line(self, line: Line) -> Line:
        start = f"| {line.aggregator:21} | {line.way:19} |"
        if isinstance(line.measured, str):
            self._say(f"{start} skipped: {line.measured} | | | |")
        else:
            ratio, ms, compiling, temporary = line.measured
            self._say(
                f"{start} {ratio:7.2f} | {ms:8.2f} | {compiling:9.2f} "
                f"| {temporary / 1e6:12,.2f} |"
            )
        return line

    def end(self, seconds: float) -> None:
        self._say(f"\nThis took {seconds:.0f} seconds.")

    def _say(self, text: str) -> None:
        print(text, flush=True)
        print(text, file=self._file, flush=True)


def describe_device() -> str:
    devices = jax.devices()
    kind = f"{len(devices)} x {devices[0].device_kind}"
    return f"{kind} ({_processor()}, {os.cpu_count()} cores)"


def _describe_run() -> str:
    versions = ", ".join(map(_version, _PACKAGES))
    return (
        "# Throughput, float32\n\n"
        f"- Device: {describe_device()}\n"
        f"- Versions: Python {platform.python_version()}, {versions}\n"
        f"- Date: {datetime.date.today()}"
    )


_PACKAGES = ("fedagg", "jax", "jaxlib", "numpy", "optax", "drjax", "jax-privacy")


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
