"""The benchmark of rules: its references, what it measures, and what it says of it."""

import argparse
import re

import numpy as np
import pytest

from benchmarks import reference_of_rules, rules
from benchmarks.contenders import CASES, RULES
from benchmarks.inputs import Size, make_stack
from benchmarks.measuring import check
from benchmarks.peers.worker import EXPECTED
from benchmarks.sampling import sample
from tests.rules import references

N, F = 11, 1
STACK = np.random.default_rng(3).normal(size=(N, 6))
WEIGHTS = 1.0 + np.arange(N) % 4
PAPERS = {
    "median": references.median(STACK),
    "trimmed mean": references.trimmed_mean(STACK, F),
    "mean around median": references.mean_around_median(STACK, F),
    "Krum": references.krum(STACK, F),
    "multi-Krum": references.multi_krum(STACK, F),
    "Bulyan": references.bulyan(STACK, F),
    "geometric median": references.geometric_median(STACK, WEIGHTS),
    "centered clipping": references.centered_clipping(STACK, np.zeros(6), 1.0, 1),
    "CAF": references.caf(STACK, F),
    "nearest neighbors, trimmed mean": references.trimmed_mean(
        references.nearest_neighbor_mixing(STACK, F), F
    ),
    "adaptive clipping, trimmed mean": references.trimmed_mean(
        references.adaptive_robust_clipping(STACK, F), F
    ),
    "bucketing, centered clipping": STACK.mean(axis=0),
    "minimum diameter": references.minimum_diameter(STACK, F),
    "SMEA": references.smea(STACK, F),
}


def row(part: str, clients: int, parameters: int, ms: float, **others) -> dict:
    where = {"part": part, "clients": clients, "parameters": parameters}
    found = {"x_read": ms / 2.0, "milliseconds": ms, "compile_seconds": ms / 10.0}
    return where | {"leaves": 1, "aggregator": "median"} | found | others


ROWS = [
    row("trees", 64, 1000, 8.0),
    row("trees", 64, 1000, 12.0, leaves=6),
    row("clients", 8, 500, 1.0),
    row("clients", 128, 500, 32.0),
    row("clients", 512, 500, 256.0),
    row("parameters", 64, 10, 1.0),
    row("parameters", 64, 1000, 100.0),
]


@pytest.mark.parametrize("name", PAPERS)
def test_what_rows_are_checked_against_is_what_papers_say(name):
    expected = RULES[name].expected

    assert reference_of_rules.liars(N) == F
    np.testing.assert_allclose(expected(STACK, WEIGHTS), PAPERS[name], rtol=1e-9)


def test_weighted_references_are_those_of_clients_repeated_as_often_as_they_weigh():
    repeated = np.repeat(STACK, WEIGHTS.astype(int), axis=0)
    middle = reference_of_rules.weighted_median(STACK, WEIGHTS)
    trimmed = reference_of_rules.weighted_trimmed_mean(STACK, WEIGHTS)

    np.testing.assert_allclose(middle, np.median(repeated, axis=0))
    for column, mean in zip(STACK.T, trimmed, strict=True):
        kept = (column > column.min()) & (column < column.max())
        assert mean == pytest.approx(np.average(column[kept], weights=WEIGHTS[kept]))


def test_every_rule_has_a_reference_and_peers_are_held_to_the_same():
    assert RULES.keys() - PAPERS.keys() == {"weighted median", "weighted trimmed mean"}
    assert all(RULES[name].expected is EXPECTED[name] for name in PAPERS)


def test_as_many_lie_as_hold_a_huge_entry():
    for clients in (8, 16, 17, 64):
        largest = np.abs(make_stack(Size(clients, 3000))).max(axis=1)

        assert reference_of_rules.liars(clients) == np.sum(largest == 100.0)


@pytest.mark.parametrize("name", [x for x in PAPERS if x not in rules.SUBSETS])
def test_a_sample_has_what_all_columns_have(name):
    stack = np.random.default_rng(1).normal(size=(16, 10_000))
    stack[:2, 5000] = 100.0
    weights, expected = 1.0 + np.arange(16) % 4, RULES[name].expected

    some = sample(stack)

    assert 3000 <= len(some.columns) < 4000 and 5000 in some.columns
    np.testing.assert_allclose(
        some.expected(expected, weights),
        expected(stack, weights)[some.columns],
        rtol=1e-7,
        atol=1e-9,
    )


@pytest.mark.deep
def test_a_row_that_is_wrong_says_so_and_one_too_late_is_not_there(monkeypatch):
    wrong = CASES["median"]._replace(expected=lambda stack, weights: stack[0] + 1.0)
    monkeypatch.setitem(CASES, "median", wrong)
    rules._prepare.cache_clear()
    cell = rules.Cell("clients", Size(16, 3001), 1, ("median", "trimmed mean"))

    found = list(rules.rows(cell))

    assert "off by" in found[0]["skipped"] and found[1]["milliseconds"] > 0.0
    assert rules._progress(found[0]).startswith("16 x 3,001, 1, median: median, ")
    assert rules._curves(found)["clients"].keys() == {"trimmed mean"}
    assert list(rules.rows(cell, end=0.0)) == []


def test_an_entry_that_float32_cannot_tell_may_be_anything_and_no_other():
    want = np.array([1.0, np.nan, 2.0])

    check("some", np.array([1.0, 7.0, 2.0]), want)
    with pytest.raises(AssertionError, match="off by"):
        check("some", np.array([1.0, 7.0, 2.1]), want)
    tie = np.array([[0.0], [-1.0], [1.0], [0.0]])
    assert np.isnan(reference_of_rules.mean_around_median(tie, np.ones(4)))


def test_tables_have_reads_on_trees_and_how_time_grows():
    trees = rules.on_trees(ROWS).splitlines()
    sentences = rules.growth(ROWS).splitlines()

    assert trees[2:] == ["| median | 64 x 1,000 | 4 | 6 | 8 | 0.8 | 1.2 | 3.2 |"]
    assert sentences[2:] == [
        "| median | From 8 to 512 clients, 64 times as many, it takes 256 times as "
        "long; from 128 on as the power 1.5. | From 10 to 1,000 parameters, 100 times "
        "as many, it takes 100 times as long; from 10 on as the power 1.0. |"
    ]


def test_the_picture_has_a_line_a_rule_over_clients_and_parameters(tmp_path):
    rules.draw(ROWS, tmp_path / "rules.png")

    assert (tmp_path / "rules.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_measured_are_trees_then_clients_then_parameters():
    chosen = argparse.Namespace(
        base=Size(64, 1000),
        rules=["median", "SMEA"],
        leaves=[1, 6, 150],
        more=[Size(64, 9000)],
        growing=["median", "SMEA"],
        few=rules.FEW,
        clients=[8, 1000],
        parameters=[100],
    )

    found = [(x.part, x.size, x.leaves, x.rules) for x in rules.cells(chosen)]

    assert found == [
        ("trees", (64, 1000), 1, ("median",)),
        ("trees", (64, 1000), 6, ("median",)),
        ("trees", (64, 9000), 1, ("median",)),
        ("trees", rules.SMALL, 1, ("SMEA",)),
        ("clients", (8, rules.FEW), 1, ("median",)),
        ("clients", (1000, rules.FEW), 1, ("median",)),
        ("parameters", (64, 100), 1, ("median",)),
        ("parameters", (64, 1000), 1, ("median",)),
        ("trees", (64, 1000), 150, ("median",)),
    ]


@pytest.mark.deep
@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_right_and_timed(name):
    [found] = rules.rows(rules.Cell("trees", Size(16, 3000), 6, (name,)))

    assert re.match(f"16 x 3,000, 6, {name}: ", rules._progress(found))
    assert min(found["x_read"], found["milliseconds"], found["compile_seconds"]) > 0.0
