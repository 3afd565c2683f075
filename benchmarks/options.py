"""Options that the commands have in common."""

import argparse
from pathlib import Path

from benchmarks import records
from benchmarks.inputs import TREES, Size

RESULTS = Path(__file__).parent / "results"


def parser(command: str) -> argparse.ArgumentParser:
    """A parser with `--leaves`, `--out` and `--compare`, None if it is not given."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{command}")
    parser.add_argument("--leaves", nargs="+", type=int, choices=list(TREES))
    parser.add_argument("--out", type=Path, help="a folder for what is written")
    add_compare(parser)
    return parser


def add_compare(parser: argparse.ArgumentParser) -> None:
    """`--compare`, whose file is read before a run may write it anew."""
    parser.add_argument(
        "--compare",
        type=records.read,
        metavar="EARLIER.jsonl",
        help="print the ratios to an earlier run's rows",
    )


def add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=size,
        help="clients x parameters, such as 64x1000000; at least 3000 parameters",
    )


def size(text: str) -> Size:
    """Reads clients x parameters, such as `64x1_000_000`."""
    clients, parameters = (int(part.replace("_", "")) for part in text.split("x"))
    if clients < 1 or parameters < 3000:
        raise argparse.ArgumentTypeError(f"too small: {text}")
    return Size(clients, parameters)
