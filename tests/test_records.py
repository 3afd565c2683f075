"""Benchmarks keep what they measured as lines of JSON."""

import json
import pathlib
import re

import pytest

from benchmarks import page, records
from benchmarks.report import Report

RESULTS = pathlib.Path(__file__).parents[1] / "benchmarks" / "results"
KINDS = {"cpu": "throughput", "peers": "peers", "scaling-cpu": "scaling"}
KINDS |= {"population-cpu": "population", "secagg-cpu": "secagg", "bits": "bits"}
KINDS |= {"wires-cpu": "wires", "asynchronous-cpu": "asynchronous"}
KINDS |= {"nvidia-h200-accelerator": "accelerator", "training-cpu": "training"}
KINDS |= {"training-nvidia-h200": "training", "robustness-cpu": "robustness"}
KINDS |= {"rules/cpu": "rules", "rules/peers": "peers"}
KINDS |= {"rules/nvidia-h200": "rules", "rules/nvidia-h200-peers": "peers"}


def test_a_report_keeps_rows_after_the_machine_and_versions(tmp_path):
    path = tmp_path / "some.md"

    with Report("A title", path) as report:
        report.say("- Peer: Python 3.11, peer 1.2")
        report.keep(who="us", seconds=0.5, bytes=float("nan"))

    kept = records.read(tmp_path / "some.jsonl")
    assert kept.run["title"] == "A title" and "cpu" in kept.run["device"]
    assert kept.run["versions"]["jax"] and re.match(r"\d{4}-", kept.run["date"])
    assert kept.run["said"] == {"Peer": "Python 3.11, peer 1.2"}
    assert kept.rows == [{"who": "us", "seconds": 0.5, "bytes": None}]


def test_a_file_without_a_run_is_refused(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps({"seconds": 1.0}) + "\n")

    with pytest.raises(ValueError, match="device and versions"):
        records.read(path)


def test_a_comparison_is_of_rows_that_are_in_both_runs():
    kind = records.Kind(("who",), "seconds")
    earlier = [{"who": "a", "seconds": 1.0}, {"who": "b", "seconds": 2.0}]
    later = [{"who": "a", "seconds": 2.0}, {"who": "b", "seconds": 1.0}]
    later += [{"who": "c", "seconds": 1.0}, {"who": "d", "skipped": "why"}]

    lines = records.compare(kind, earlier, later).splitlines()

    assert lines[1:] == [
        "a: 2 / 1 = 2.00",
        "b: 1 / 2 = 0.50",
        "all 2: 1.00; 1 rows are in one run alone",
    ]
    with pytest.raises(ValueError, match="no row is in both"):
        records.compare(kind, earlier, later[2:])


@pytest.mark.parametrize("name", KINDS)
def test_recorded_rows_are_told_apart_and_have_what_is_compared(name):
    kind = records.KINDS[KINDS[name]]

    run, rows = records.read(RESULTS / f"{name}.jsonl")

    assert run["device"] and run["versions"]["jax"] and run["date"]
    measured = [row for row in rows if kind.of in row]
    apart = {tuple(row.get(x) for x in kind.by) for row in measured}
    assert len(apart) == len(measured) > 0


@pytest.mark.parametrize("name", ["cpu", "peers", "scaling-cpu", "secagg-cpu"])
def test_records_have_the_numbers_of_the_tables_beside_them(name):
    table = (RESULTS / f"{name}.md").read_text()
    kind = records.KINDS[KINDS[name]]

    _, rows = records.read(RESULTS / f"{name}.jsonl")

    shown = {float(x) for x in re.findall(r"\d+\.?\d*", table.replace(",", ""))}
    digits = [f"{row[kind.of]:.{n}g}" for row in rows if kind.of in row for n in (3,)]
    written = {float(f"{x:.3g}") for x in shown}
    assert {float(x) for x in digits} <= written


def test_every_table_of_the_page_is_there_and_says_where_it_was_recorded():
    shown = (RESULTS.parents[1] / "docs" / "benchmarks.md").read_text()
    asked = re.findall(r"```{records} (\w+)", shown)

    tables = page.tables(RESULTS)

    assert set(asked) == set(tables)
    assert all("cores); Python" in x and x.count("\n|") > 1 for x in tables.values())
