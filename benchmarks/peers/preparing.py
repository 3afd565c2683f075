"""Options that say which peers run, and the environments in which they do."""

import argparse
import sys
from pathlib import Path

from benchmarks.peers.environments import (
    CannotRun,
    Peer,
    find_python,
    make_environment,
    versions,
)
from benchmarks.peers.running import ROOT
from benchmarks.report import Report


def add_options(
    parser: argparse.ArgumentParser, peers: dict[str, Peer], default: list[str]
) -> None:
    parser.add_argument("--peers", nargs="*", choices=list(peers), default=default)
    parser.add_argument(
        "--environments",
        type=lambda x: Path(x).absolute(),
        default=ROOT / "build" / "peers",
        help="a folder to install the peers in, and to find them in later",
    )
    parser.add_argument("--python", help="an interpreter to make environments with")


def prepare(
    peers: dict[str, Peer],
    chosen: argparse.Namespace,
    report: Report,
    here: bool = False,
) -> dict[str, Path]:
    """Per peer that can run, the interpreter of its environment, or this one `here`."""
    ready = {}
    for key in chosen.peers:
        peer = peers[key]
        try:
            if here:
                ready[key] = Path(sys.executable)
            else:
                python = find_python(peer, chosen.python)
                ready[key] = make_environment(peer, python, chosen.environments / key)
            report.say(f"- {peer.name}: {versions(peer, ready[key])}")
        except CannotRun as reason:
            report.say(f"- {peer.name}: skipped, {reason}")
    return ready
