"""The tables of the site's page on benchmarks, made from recorded lines of JSON."""

from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import asynchronous, bits, rules, secagg, wires
from benchmarks.peers.environments import TRAINERS
from benchmarks.records import Records, Row, read
from benchmarks.report import markdown
from benchmarks.robustness.table import agreement, times, worst_cases

# Of peers in environments of their own, which of their rows stands for each.
_BEST = min
_GPU = "nvidia-h200"  # on which rules were recorded
_SIZES = [(64, 1_000_000), (256, 100_000), (1000, 10_000)]


def tables(folder: Path) -> dict[str, str]:
    """Per table its Markdown, with the machine that it was recorded on."""
    found = {
        "training": _training(folder),
        "reads": _of(folder, "cpu", _reads),
        "beside": _beside(folder),
        "rules": _rules(folder, "cpu", "peers"),
        "rules_accelerator": _rules(folder, _GPU, f"{_GPU}-peers"),
        "rules_on_trees": _of(folder, "rules/cpu", rules.on_trees),
        "rules_growth": _of(folder, "rules/cpu", rules.growth),
        "robustness": _robustness(folder),
        "bits": _of(folder, "bits", _bits),
        "masks": _of(folder, "secagg-cpu", lambda rows: _secagg("masks", rows)),
        "protocol": _of(folder, "secagg-cpu", lambda rows: _secagg("rounds", rows)),
        "bytes": _of(folder, "secagg-cpu", lambda rows: _secagg("bytes", rows)),
        "transport": _of(folder, "secagg-cpu", lambda rows: _secagg("transport", rows)),
        "liars": _of(folder, "secagg-cpu", lambda rows: _secagg("liars", rows)),
        "wires": _of(folder, "wires-cpu", _wires),
        "asynchronous": _of(folder, "asynchronous-cpu", _asynchronous),
        "population": _of(folder, "population-cpu", _population),
        "scaling": _of(folder, "scaling-cpu", _scaling),
        "accelerator": _of(folder, "nvidia-h200-accelerator", _accelerator),
        "training_accelerator": _of(folder, "training-nvidia-h200", _training_there),
    }
    return {name: f"{text}\n" for name, text in found.items()}


def machine(records: Records) -> str:
    """A sentence on where and when records were made."""
    run = records.run
    shown = ("Python", "jax", "jaxlib", "numpy")
    versions = (f"{x} {run['versions'][x]}" for x in shown if x in run["versions"])
    return f"*{run['device']}; {', '.join(versions)}; {run['date']}.*"


def _of(folder: Path, name: str, make: Callable[[list[Row]], str]) -> str:
    records = read(folder / f"{name}.jsonl")
    return f"{make(records.rows)}\n\n{machine(records)}"


def _number(x: float | None) -> str:
    """Three digits that count, or all before the point."""
    if x is None:
        return "-"
    return f"{x:,.0f}" if x >= 100.0 else f"{float(f'{x:.3g}'):g}"


def _grouped(rows: Iterable[Row], name: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return groups


def _training(folder: Path) -> str:
    """Seconds a round of each workload, by fedagg and by whoever ran it too."""
    records = read(folder / "training-cpu.jsonl")
    timed = [x for x in records.rows if "seconds" in x]
    peers = [x for x in TRAINERS if any(row["who"] == x for row in timed)]
    header = [
        "workload",
        "fedagg",
        "a core a client",
        *(TRAINERS[x].name for x in peers),
    ]
    lines = [header]
    for title, rows in _grouped(records.rows, "title").items():
        ours = {
            row["way"]: row["seconds"]
            for row in rows
            if row["who"] == "fedagg" and "seconds" in row
        }
        theirs = {row["who"]: row["seconds"] for row in rows if "seconds" in row}
        lines.append(
            [
                title,
                _number(ours.get("default")),
                _number(ours.get("across(cpu_mesh())")),
                *(_number(theirs.get(x)) for x in peers),
            ]
        )
    return f"{markdown(lines)}\n\n{machine(records)} *{_said(records)}.*"


def _cells(rows: list[Row]) -> dict[tuple, float]:
    return {
        (x["clients"], x["parameters"], x["leaves"], x["aggregator"], x["way"]): x[
            "x_read"
        ]
        for x in rows
        if "x_read" in x
    }


def _reads(rows: list[Row]) -> str:
    """The default way to sum: an aggregator a row, a size and tree a column."""
    measured = _cells(rows)
    names = list(dict.fromkeys(row["aggregator"] for row in rows))
    columns = [(*size, leaves) for size in _SIZES for leaves in (1, 6, 150)]
    header = [f"{n} x {d:,}, {leaves}" for n, d, leaves in columns]
    lines = [
        [name, *(_number(measured.get((*x, name, "default"))) for x in columns)]
        for name in names
    ]
    return markdown([["x read", *header], *lines])


def _beside(folder: Path) -> str:
    """Who does the same, at 64 x 1,000,000 with one leaf and with six."""
    ours, others = read(folder / "cpu.jsonl"), read(folder / "peers.jsonl")
    alike = {"default": "fedagg", "JAX-Privacy (8)": ""}
    best: dict[tuple[str, int], dict[str, float]] = {}
    for row in [*ours.rows, *others.rows]:
        if (row["clients"], row["parameters"]) != _SIZES[0] or "x_read" not in row:
            continue
        if row.get("way", "").startswith(("at_once", "in_chunks", "across")):
            continue
        who = row.get("peer") or alike.get(row["way"], row["way"])
        cell = best.setdefault((row["aggregator"], row["leaves"]), {})
        cell[who] = _BEST(row["x_read"], cell.get(who, row["x_read"]))
    kept = {
        cell: times for cell, times in best.items() if len(times) > 1 and cell[1] != 150
    }
    names = list(dict.fromkeys(who for x in kept.values() for who in x if who))
    lines = [
        [f"{name}, {leaves}", *(_number(times.get(who)) for who in names)]
        for (name, leaves), times in kept.items()
    ]
    table = markdown([["aggregator, leaves", *names], *lines])
    return f"{table}\n\n{machine(ours)} *{_said(others)}.*"


def _rules(folder: Path, name: str, peers: str) -> str:
    """What rules cost, and what they cost others over that."""
    ours, others = (read(folder / "rules" / f"{x}.jsonl") for x in (name, peers))
    columns = {"ByzFL, torch": "(torch)", "ByzFL, NumPy": "(NumPy)", "Flower": ""}
    found: dict[tuple, dict[str, float]] = {}
    for row in others.rows:
        if "x_read" in row:
            [column] = [
                name
                for name, form in columns.items()
                if name.startswith(row["peer"]) and row["calls"].endswith(form)
            ]
            found.setdefault(_where(row), {})[column] = row["x_read"]
    ran = [x for x in columns if any(x in times for times in found.values())]
    header = ["rule", "clients x parameters", "reads", "ms"]
    lines = [[*header, *(f"x {column}" for column in ran)]]
    for row in ours.rows:
        if row["part"] == "trees" and row["leaves"] == 1 and "x_read" in row:
            times = [found.get(_where(row), {}).get(x) for x in ran]
            over = [x and x / row["x_read"] for x in times]
            cells = [row["x_read"], row["milliseconds"], *over]
            size = f"{row['clients']} x {row['parameters']:,}"
            lines.append([row["aggregator"], size, *map(_number, cells)])
    return f"{markdown(lines)}\n\n{machine(ours)} *{_said(others)}.*"


def _where(row: Row) -> tuple:
    return row["clients"], row["parameters"], row["aggregator"]


def _robustness(folder: Path) -> str:
    records = read(folder / "robustness-cpu.jsonl")
    parts = (make(records.rows) for make in (worst_cases, agreement, times))
    return "\n\n".join([*parts, f"{machine(records)} *{_said(records)}.*"])


def _said(records: Records) -> str:
    return "; ".join(f"{name}: {told}" for name, told in records.run["said"].items())


def _wires(rows: list[Row]) -> str:
    """Bytes and times of messages, each with its kind."""
    return markdown([wires.HEADER, *(wires.cells(row) for row in rows)])


def _asynchronous(rows: list[Row]) -> str:
    """Steps of buffers beside rounds of cohorts."""
    return markdown([asynchronous.HEADER, *(asynchronous.cells(row) for row in rows)])


def _bits(rows: list[Row]) -> str:
    """Bits and errors, normal and lognormal entries side by side."""
    normal, lognormal = (
        {row["compressor"]: row for row in group}
        for group in _grouped(rows, "vector").values()
    )
    header = ["compressor", "bits", "normal", "of a mean", "lognormal", "of a mean"]
    lines = []
    for name, row in normal.items():
        code, sent, *errors, published = bits.cells(row)
        lines.append(
            [code, sent, *errors, *bits.cells(lognormal[name])[2:4], published]
        )
    return markdown([[*header, "published"], *lines])


def _secagg(name: str, rows: list[Row]) -> str:
    return secagg.table(name, [row for row in rows if row["table"] == name])


def _population(rows: list[Row]) -> str:
    header = ["rounds", "clients in each", "s a round", "clients a second", "peak MB"]
    names = ["rounds", "clients", "seconds", "clients_a_second", "peak_megabytes"]
    header, names = [*header, "numbers that each keeps"], [*names, "kept"]
    cells = [[_whole(({"kept": 0} | row)[x]) for x in names] for row in rows]
    return markdown([header, *cells])


def _whole(x: float) -> str:
    return f"{x:,}" if isinstance(x, int) else _number(x)


def _scaling(rows: list[Row]) -> str:
    """Milliseconds of a robust round beside a plain read, as one of two grows."""
    curves = ["plain read", "mean, 6 leaves", "robust, 6 leaves"]
    lines = []
    for group in _grouped(rows, "grows").values():
        for (n, d), cell in _by_size(group).items():
            shown = [cell.get(curve) for curve in curves]
            lines.append([f"{n:,} x {d:,}", *map(_number, shown)])
    return markdown([["clients x parameters, ms", *curves], *lines])


def _by_size(rows: list[Row]) -> dict[tuple[int, int], dict[str, float]]:
    cells: dict[tuple[int, int], dict[str, float]] = {}
    for row in rows:
        cell = cells.setdefault((row["clients"], row["parameters"]), {})
        cell[row["curve"]] = row["milliseconds"]
    return cells


def _accelerator(rows: list[Row]) -> str:
    header = ["clients x parameters", "dtype", "leaves", "ms", "GB/s", "of a copy"]
    names = ["milliseconds", "gigabytes_a_second", "of_a_copy"]
    lines = [
        [
            f"{row['clients']} x {row['parameters']:,}",
            row["dtype"],
            str(row["leaves"]),
            *(_number(row.get(name)) for name in names),
        ]
        for row in rows
    ]
    return markdown([header, *lines])


def _training_there(rows: list[Row]) -> str:
    lines = [
        [
            row["title"],
            f"`{row['way']}`" if row["who"] == "fedagg" else TRAINERS[row["who"]].name,
            *(_number(row[x]) for x in ("seconds", "x_arithmetic", "x_own_steps")),
            _number(row["held_megabytes"]),
        ]
        for row in rows
        if "seconds" in row
    ]
    header = ["workload", "way to sum", "s a round", "x arithmetic", "x own steps"]
    return markdown([[*header, "held MB"], *lines])
