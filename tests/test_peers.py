"""The benchmark of peers, with a peer made up here and without a network."""

import argparse
import importlib
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.contenders import CASES
from benchmarks.inputs import Size
from benchmarks.peers import __main__ as command
from benchmarks.peers import preparing
from benchmarks.peers.environments import (
    PEERS,
    CannotRun,
    Peer,
    find_python,
    versions,
)
from benchmarks.peers.rounds import Clients, Round, Update
from benchmarks.peers.running import measure
from benchmarks.peers.worker import EXPECTED
from benchmarks.report import Report

THIS_PYTHON = "{}.{}".format(*sys.version_info)
SIZE = Size(8, 3000)


def rounds(clients: Clients) -> Iterator[Round]:
    """What the made-up peer offers, in a process of its own."""
    print("A peer may print.")

    def spoiling_sum(updates: list[Update]) -> list:
        first, *others = updates
        for update in others:
            for name, leaf in update.items():
                first[name] += leaf
        return list(first.values())

    def copy(updates: list[Update]) -> list[Update]:
        return [{name: x.copy() for name, x in u.items()} for u in updates]

    yield Round("sum", "spoiling_sum", spoiling_sum, clients.updates, copy)
    yield Round("mean", "first", lambda updates: updates[0], clients.updates)
    yield Round("median", "broken", lambda updates: 1 / 0, clients.updates)


def made_up(requirements: Path, **others) -> Peer:
    return Peer("Made up", __name__, requirements, ("numpy",), (THIS_PYTHON,), **others)


def lines_of(peer: Peer, folder: Path) -> list:
    end = time.perf_counter() + 60.0
    log = folder / "log"
    return list(
        measure(peer, Path(sys.executable), [SIZE], [6], list(EXPECTED), end, log)
    )


@pytest.mark.deep
def test_a_right_row_is_timed_and_another_says_why_not(tmp_path):
    peer = made_up(tmp_path / "none.txt")

    lines = {line.aggregator: line for line in lines_of(peer, tmp_path)}

    assert list(lines) == ["sum", "mean", "median"]
    assert all(line[:3] == (SIZE, 6, "Made up") for line in lines.values())
    assert min(lines["sum"].measured) > 0.0
    assert lines["mean"].measured.startswith("ValueError: wrong, an entry is off by")
    assert lines["median"].measured == "ZeroDivisionError: division by zero"


def test_a_worker_that_fails_says_why(tmp_path):
    peer = made_up(tmp_path / "none.txt")._replace(module="benchmarks.nowhere")

    with pytest.raises(CannotRun, match="No module named 'benchmarks.nowhere'"):
        lines_of(peer, tmp_path)


@pytest.mark.deep
def test_the_table_has_the_rows_and_a_line_for_who_is_missing(
    tmp_path, monkeypatch, capsys
):
    present, absent = tmp_path / "present.txt", tmp_path / "absent.txt"
    present.write_text("")
    absent.write_text("not-there @ file:///not/there-1.0-py3-none-any.whl\n")
    peers = {"here": made_up(present), "away": made_up(absent)}
    monkeypatch.setattr(command, "PEERS", peers)
    make = preparing.make_environment
    monkeypatch.setattr(
        preparing,
        "make_environment",
        lambda peer, *where: (
            Path(sys.executable) if peer is peers["here"] else make(peer, *where)
        ),
    )
    options = ["--sizes", "8x3000", "--leaves", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(
        sys, "argv", ["peers", *options, "--environments", str(tmp_path / "envs")]
    )
    (tmp_path / "envs").mkdir()

    command.main()

    kept = (tmp_path / "peers.md").read_text()
    assert "- Made up: skipped, ERROR: " in kept and "there-1.0" in kept
    assert f"- Made up: Python {THIS_PYTHON}" in kept
    assert re.search(r"^\| sum +\| Made up \| spoiling_sum +\| +[\d.]+ \|", kept, re.M)
    assert "| skipped: ValueError: wrong" in kept
    assert set(kept.splitlines()) <= set(capsys.readouterr().out.splitlines())


def test_peers_that_are_here_run_in_this_environment():
    peers = {"made up": made_up(Path("none.txt"))}
    chosen, report = argparse.Namespace(peers=[*peers]), Report("Peers", None)

    ready = preparing.prepare(peers, chosen, report, here=True)

    assert ready == {"made up": Path(sys.executable)}
    assert report.told == [
        f"- Made up: {versions(peers['made up'], Path(sys.executable))}"
    ]


def test_a_python_that_is_not_there_is_said():
    peer = made_up(Path("none.txt"))._replace(pythons=("2.0",))

    with pytest.raises(CannotRun, match="needs Python 2.0"):
        find_python(peer)


def test_the_worker_checks_against_the_same_references():
    assert all(CASES[name].expected is fn for name, fn in EXPECTED.items())


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS.keys())
def test_a_peer_has_rounds_and_pinned_requirements(peer):
    lines = peer.requirements.read_text().splitlines()

    assert callable(importlib.import_module(peer.module).rounds)
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines)
    assert {re.split("==", line)[0] for line in lines} >= set(peer.packages)
