"""Times peers in environments of their own: `python -m benchmarks.peers`."""

import argparse
import itertools
import time
from pathlib import Path

from benchmarks import options, rules
from benchmarks.contenders import CASES, RULES
from benchmarks.inputs import TREES, Size
from benchmarks.peers.environments import PEERS, CannotRun
from benchmarks.peers.preparing import add_options, prepare
from benchmarks.peers.running import SETTINGS, Line, measure
from benchmarks.peers.worker import EXPECTED
from benchmarks.report import Report, count_leaves, stem_of_device
from benchmarks.throughput import SIZES

_HEADER = (
    f"| {'aggregator':12} | {'peer':7} | {'what it calls':41} "
    f"| {'x read':>7} | {'ms':>8} | {'read ms':>7} |\n"
    f"| {'-' * 12} | {'-' * 7} | {'-' * 41} | {'-' * 6}: | {'-' * 7}: | {'-' * 6}: |"
)


def main() -> None:
    chosen = _options()
    title, name = "Peers in environments of their own, float32", "peers"
    if chosen.here:
        title, name = "Peers on the same devices, float32", f"{stem_of_device()}-peers"
    path = chosen.out / f"{name}.md"
    with Report(title, path) as report:
        ready = prepare(PEERS, chosen, report, chosen.here)
        start = time.perf_counter()
        lines = _measure(ready, chosen, report)
        for where in dict.fromkeys(line[:2] for line in lines):
            part = [line for line in lines if line[:2] == where]
            report.say(f"\n## {_cell(*where)}\n\n{_table(part)}")
            for line in part:
                report.keep(**_record(line))
        report.say(f"\nThis took {time.perf_counter() - start:.0f} seconds.")
        report.compare("peers", chosen.compare)


def _measure(
    ready: dict[str, Path], chosen: argparse.Namespace, report: Report
) -> list[Line]:
    end = time.perf_counter() + 60.0 * chosen.minutes
    settings = {} if chosen.here else SETTINGS
    chosen.environments.mkdir(parents=True, exist_ok=True)
    lines = []
    for (key, python), (sizes, leaves, named) in itertools.product(
        ready.items(), chosen.inputs
    ):
        peer, log = PEERS[key], chosen.environments / f"{key}.log"
        try:
            found = measure(
                *(peer, python, sizes, leaves, named, end, log, settings, chosen.rules)
            )
            for line in found:
                print(_progress(line), flush=True)
                lines.append(line)
        except CannotRun as reason:
            report.say(f"\n{peer.name} stopped: {reason}")
    return lines


def _progress(line: Line) -> str:
    skipped = isinstance(line.measured, str)
    result = line.measured if skipped else f"{line.measured[0]:.1f} reads"
    cell = _cell(line.size, line.leaves)
    return f"{cell}, {line.peer}, {line.aggregator}, {line.calls}: {result}"


def _cell(size: Size, leaves: int) -> str:
    return f"{size} parameters, {count_leaves(leaves)}"


def _table(lines: list[Line]) -> str:
    order = list(CASES)
    lines = sorted(lines, key=lambda line: order.index(line.aggregator))
    return "\n".join([_HEADER, *map(_row, lines)])


def _row(line: Line) -> str:
    start = f"| {line.aggregator:12} | {line.peer:7} | {line.calls:41} |"
    if isinstance(line.measured, str):
        return f"{start} skipped: {line.measured} | | |"
    ratio, ms, read = line.measured
    return f"{start} {ratio:7.1f} | {ms:8.1f} | {read:7.2f} |"


def _record(line: Line) -> dict[str, object]:
    """The line as it is kept."""
    kept: dict[str, object] = {
        **line.size._asdict(),
        "leaves": line.leaves,
        "aggregator": line.aggregator,
        "peer": line.peer,
        "calls": line.calls,
    }
    if isinstance(line.measured, str):
        return kept | {"skipped": line.measured}
    ratio, milliseconds, read = line.measured
    numbers = {"x_read": ratio, "milliseconds": milliseconds}
    return kept | numbers | {"read_milliseconds": read}


def _options() -> argparse.Namespace:
    parser = options.parser("peers")
    parser.add_argument(
        "--quick", action="store_true", help="the middle size alone, 1 leaf"
    )
    parser.add_argument(
        "--rules",
        action="store_true",
        help="rules alone, on inputs of benchmarks.rules with 1 leaf",
    )
    options.add_sizes(parser)
    parser.add_argument(
        "--aggregators", nargs="+", choices=list(EXPECTED), default=list(EXPECTED)
    )
    add_options(parser, PEERS, default=list(PEERS))
    parser.add_argument(
        "--here",
        action="store_true",
        help="run peers that are installed beside fedagg, on its devices",
    )
    parser.add_argument(
        "--minutes", type=float, default=15.0, help="start no row after so long"
    )
    chosen = parser.parse_args()
    chosen.sizes = chosen.sizes or (SIZES[1:2] if chosen.quick else SIZES)
    chosen.leaves = chosen.leaves or ([1] if chosen.quick else list(TREES))
    chosen.inputs = [(chosen.sizes, chosen.leaves, chosen.aggregators)]
    if chosen.rules:
        named = [x for x in RULES if x in EXPECTED]
        few = [x for x in named if x in rules.BESIDE]
        most = [x for x in named if x not in rules.BESIDE]
        chosen.inputs = [([rules.BASE], [1], most), ([rules.SMALL], [1], few)]
    chosen.out = chosen.out or options.RESULTS / ("rules" if chosen.rules else "")
    return chosen


if __name__ == "__main__":
    main()
