"""The table of a workload's rows."""

from benchmarks.peers.environments import TRAINERS
from benchmarks.report import markdown

_HEADER = ["who", "s a round", "x arithmetic", "x own steps", "first call s"]
_HEADER += ["held MB", "peak MB"]


def table(rows: list[dict], peers: list[str]) -> str:
    """A row each; a column for each of the peers that has been timed."""
    seconds = {row["who"]: row["seconds"] for row in rows if "seconds" in row}
    timed = [peer for peer in peers if peer in seconds]
    header = [*_HEADER, *(f"x {TRAINERS[peer].name}" for peer in timed)]
    cells = [_cells(row, [seconds[peer] for peer in timed]) for row in rows]
    return markdown([header, *(x + [""] * (len(header) - len(x)) for x in cells)])


def _cells(row: dict, peers: list[float]) -> list[str]:
    if "skipped" in row:
        return [_who(row), f"not run: {row['skipped']}"]
    return [
        _who(row),
        _number(row["seconds"]),
        _number(row["x_arithmetic"]),
        _number(row.get("x_own_steps")),
        _number(row["first_call_seconds"]),
        _number(row["held_megabytes"]),
        _number(row["peak_megabytes"]),
        *(_number(row["seconds"] / peer) for peer in peers),
    ]


def _who(row: dict) -> str:
    if row["who"] != "fedagg":
        return f"{TRAINERS[row['who']].name} {row.get('calls', '')}".strip()
    return f"fedagg {row.get('way', '')}".strip()


def _number(x: float | None) -> str:
    """Three digits that count, or all before the point."""
    if x is None:
        return "-"
    return f"{x:,.0f}" if x >= 100.0 else f"{float(f'{x:.3g}'):g}"
