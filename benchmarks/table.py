"""The table of throughput, as text: a line a row, and what the lines add up to."""

from typing import NamedTuple

from benchmarks.contenders import is_picked
from benchmarks.inputs import Size
from benchmarks.measuring import Measured
from benchmarks.report import count_leaves, markdown

_HEADER = (
    f"| {'aggregator':21} | {'way to sum':19} | {'x read':>7} | {'ms':>8} "
    f"| {'compile s':>9} | {'temporary MB':>12} |\n"
    f"| {'-' * 21} | {'-' * 19} | {'-' * 6}: | {'-' * 7}: | {'-' * 8}: | {'-' * 11}: |"
)
_NEAR = 1.2  # times the best way's time; beyond, a default stands out


class Cell(NamedTuple):
    """What a part of the table is about."""

    size: Size
    leaves: int
    read_milliseconds: float

    def __str__(self) -> str:
        return f"{self.size} parameters, {count_leaves(self.leaves)}"


class Line(NamedTuple):
    """A line of the table."""

    aggregator: str
    way: str
    measured: Measured | str  # or the reason why nothing was


def heading(cell: Cell) -> str:
    gigabytes = 4e-9 * cell.size.clients * cell.size.parameters
    speed = 1e3 * gigabytes / cell.read_milliseconds
    return (
        f"\n## {cell}\n\nA plain read of the {gigabytes:.3g} GB takes "
        f"{cell.read_milliseconds:.2f} ms, {speed:.0f} GB/s.\n\n{_HEADER}"
    )


def row(line: Line) -> str:
    start = f"| {line.aggregator:21} | {line.way:19} |"
    if isinstance(line.measured, str):
        return f"{start} skipped: {line.measured} | | | |"
    ratio, ms, compiling, temporary = line.measured
    return (
        f"{start} {ratio:7.2f} | {ms:8.2f} | {compiling:9.2f} "
        f"| {temporary / 1e6:12,.2f} |"
    )


def record(cell: Cell, line: Line) -> dict[str, object]:
    """The line as it is kept."""
    kept: dict[str, object] = {
        **cell.size._asdict(),
        "leaves": cell.leaves,
        "read_milliseconds": cell.read_milliseconds,
        "aggregator": line.aggregator,
        "way": line.way,
    }
    if isinstance(line.measured, str):
        return kept | {"skipped": line.measured}
    ratio, milliseconds, compiling, temporary = line.measured
    return kept | {
        "x_read": ratio,
        "milliseconds": milliseconds,
        "compile_seconds": compiling,
        "temporary_megabytes": temporary / 1e6,
    }


def defaults(cells: list[tuple[Cell, list[Line]]]) -> str:
    """A table of how the default compares with the best way picked by hand."""
    compared = {str(cell): _compare(lines) for cell, lines in cells}
    names = list(dict.fromkeys(name for part in compared.values() for name in part))
    rows = [
        [cell, *(part.get(name, "-") for name in names)]
        for cell, part in compared.items()
    ]
    return (
        "\n## The default over the best way to sum picked by hand\n\n"
        f"Time over time, and the best way; bold above {_NEAR}.\n\n"
        + markdown([["clients x parameters", *names], *rows])
    )


def _compare(lines: list[Line]) -> dict[str, str]:
    """Per aggregator, the default's time over that of the best way, and which it is."""
    ratios: dict[str, dict[str, float]] = {}
    for name, way, measured in lines:
        if isinstance(measured, Measured) and (way == "default" or is_picked(way)):
            ratios.setdefault(name, {})[way] = measured.ratio
    compared = {}
    for name, ways in ratios.items():
        default = ways.pop("default", None)
        if default is not None and ways:
            best = min(ways, key=ways.__getitem__)
            quotient = default / ways[best]
            shown = f"**{quotient:.2f}**" if quotient > _NEAR else f"{quotient:.2f}"
            compared[name] = f"{shown} {best}"
    return compared
