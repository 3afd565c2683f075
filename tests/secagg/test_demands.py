"""What a client takes part in, and what it does not."""

import contextlib
import dataclasses
import multiprocessing.pool
import sqlite3
import tracemalloc
from typing import Any

import numpy as np
import pytest

from fedagg import secagg
from tests.secagg.rounds import CONTEXT

DEMANDS = secagg.Demands(CONTEXT, 20, smallest_cohort=50, largest_cohort=200)


def plan_for(mode: Any = "semi-malicious", **options) -> secagg.Plan:
    return secagg.Plan.for_cohort(100, 3, 20, CONTEXT, mode=mode, **options)


def test_a_context_is_of_the_cohort_in_order_and_of_all_that_is_told():
    contexts = [
        secagg.context_of([b"a", b"b"], b"model"),
        secagg.context_of([b"b", b"a"], b"model"),
        secagg.context_of([b"a"], b"b", b"model"),
        secagg.context_of([b"ab"], b"model"),
        secagg.context_of([b"a", b"b"], b"mode", b"l"),
        secagg.context_of([b"a", b"b"], b"model", b""),
        secagg.context_of([b"a", b"b"]),
    ]

    assert len(set(contexts)) == 7 and {len(x) for x in contexts} == {32}
    assert contexts[0] == secagg.context_of([b"a", b"b"], b"model")


@pytest.mark.parametrize("part", ["text", np.zeros(2), bytearray(2), [1, 2]])
def test_a_context_is_of_bytes_alone(part):
    """Of an array it would not have the shape, nor the dtype."""
    with pytest.raises(TypeError, match="Expected bytes"):
        secagg.context_of([b"a"], part)
    with pytest.raises(TypeError, match="Expected bytes"):
        secagg.context_of([part])


@pytest.mark.parametrize("mode", ["semi-honest", "semi-malicious", "signed"])
def test_a_plan_meets_the_demands_it_was_made_for(mode):
    dataclasses.replace(DEMANDS, mode=mode).check(plan_for(mode))
    complete = secagg.Plan.complete(100, 3, 20, CONTEXT, signed=mode == "signed")

    dataclasses.replace(DEMANDS, mode=mode, adversary=0.3).check(complete)


@pytest.mark.parametrize(
    ("change", "demanded", "named"),
    [
        ({}, {"context": bytes(32)}, "told"),
        ({"context": bytes(32)}, {}, "told"),
        ({"bits": 32}, {}, "bits"),
        ({}, {"smallest_cohort": 91}, "smallest cohort"),
        ({"quorum": 2}, {}, "smallest cohort"),
        ({}, {"largest_cohort": 99}, "largest cohort"),
        ({}, {"adversary": 0.2}, "corrupt"),
        ({}, {"mode": "signed"}, "sign"),
        ({"threshold": 21}, {}, "corrupt"),  # 2 of it are not enough of 32
        ({"degree": 2, "threshold": 2}, {}, "corrupt"),
        ({"quorum": 50}, {}, "corrupt"),  # 60 gone may cut the ring
    ],
)
def test_a_plan_that_is_not_as_demanded_is_refused_by_name(change, demanded, named):
    offered = dataclasses.replace(plan_for(), **change)
    demands = dataclasses.replace(DEMANDS, **demanded)

    with pytest.raises(secagg.ContradictionError, match=f"Expected .*{named}"):
        secagg.Client(offered, 0, np.zeros(3, np.uint32), demands)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mode": "Signed"}, "signed"),  # which no plan would have to be
        ({"adversary": -0.1}, "adversary"),
        ({"adversary": float("nan")}, "adversary"),
        ({"security": float("nan")}, "security"),
        ({"security": -1.0}, "security"),
        ({"security": 2000.0}, "security"),  # a probability that rounds to zero
        ({"bits": 33}, "bits"),
        ({"bits": 20.0}, "bits"),
        ({"smallest_cohort": 0}, "smallest_cohort"),
        ({"largest_cohort": 49}, "largest_cohort"),
        ({"context": b"told"}, "context"),
    ],
)
def test_demands_that_would_demand_nothing_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(DEMANDS, **change)


def test_more_bits_of_security_than_a_plan_has_are_refused():
    offered = secagg.Plan.for_cohort(1000, 3, 20, CONTEXT)
    demands = secagg.Demands(CONTEXT, 20, 50, 1000)

    demands.check(offered)
    with pytest.raises(secagg.ContradictionError, match="corrupt"):
        dataclasses.replace(demands, security=60.0).check(offered)


def test_two_signed_quorums_share_an_honest_client():
    demands = dataclasses.replace(DEMANDS, mode="signed")
    offered = dataclasses.replace(plan_for("signed"), quorum=55)

    with pytest.raises(secagg.ContradictionError, match="share an honest client"):
        demands.check(offered)


def test_who_was_told_something_else_takes_no_part():
    """A server that tells one client a bound of 1 and all others 0 reads its vector."""
    cohort = [b"a", b"b", b"c"]
    context = secagg.context_of(cohort, b"bound 0")
    plan = secagg.Plan.complete(3, 2, 20, context)

    for told, refused in ((b"bound 0", False), (b"bound 1", True)):
        own = secagg.context_of(cohort, told)
        demands = secagg.Demands(own, 20, 2, 3, adversary=0.0)
        if refused:
            with pytest.raises(secagg.ContradictionError, match="told"):
                secagg.Client(plan, 0, np.ones(2, np.uint32), demands)
        else:
            secagg.Client(plan, 0, np.ones(2, np.uint32), demands).respond()


def test_a_small_plan_makes_a_client_take_little_memory():
    huge = dataclasses.replace(
        plan_for(), clients=2**20, quorum=2**20, graph_seed=bytes(32)
    )
    tracemalloc.start()

    with pytest.raises(secagg.ContradictionError, match="largest cohort"):
        secagg.Client(huge, 0, np.zeros(3, np.uint32), DEMANDS)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_round_is_entered_once_and_in_order_also_after_a_restart(tmp_path):
    first = secagg.Plan.complete(3, 1, 20, CONTEXT, number=5)
    second = first.renewed(CONTEXT)
    path = tmp_path / "ledger"
    secagg.Ledger(path).enter(first)

    for before in (
        first,
        dataclasses.replace(second, session=first.session),
        dataclasses.replace(second, number=5),
        dataclasses.replace(second, number=4),
    ):
        with pytest.raises(secagg.ContradictionError, match="before|after 5"):
            secagg.Ledger(path).enter(before)
    secagg.Ledger(path).enter(second)
    with pytest.raises(secagg.ContradictionError):
        secagg.Ledger(path).enter(second)


def foreign(path):
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE rounds (model TEXT)")


@pytest.mark.parametrize(
    "damage",
    [
        foreign,
        lambda path: path.write_bytes(b"what is no database" * 99),
        lambda path: path.write_bytes(path.read_bytes()[:4096]),
    ],
    ids=["another database", "no database", "cut off"],
)
def test_a_ledger_that_is_damaged_is_refused_by_name(tmp_path, damage):
    plan, path = secagg.Plan.complete(3, 1, 20, CONTEXT), tmp_path / "book"
    if damage is not foreign:
        secagg.Ledger(path).enter(plan)
    damage(path)

    with pytest.raises(ValueError, match="book: expected the file of a Ledger"):
        secagg.Ledger(path).enter(plan.renewed(CONTEXT))


def test_a_ledger_in_no_folder_is_another_error(tmp_path):
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        secagg.Ledger(tmp_path / "nowhere" / "book")


def test_a_vector_is_not_masked_for_two_cohorts(tmp_path):
    plan = secagg.Plan.complete(3, 1, 20, CONTEXT)
    other = secagg.Plan.complete(4, 1, 20, CONTEXT)  # of the same number
    demands = secagg.Demands(CONTEXT, 20, 2, 4, adversary=0.0)

    def client(plan):
        ledger = secagg.Ledger(tmp_path / "ledger")
        return secagg.Client(plan, 0, np.ones(1, np.uint32), demands, ledger=ledger)

    one, two = client(plan), client(other)
    one.respond()
    with pytest.raises(secagg.ContradictionError, match="after 0"):
        two.respond()
    with pytest.raises(secagg.WrongStepError):
        two.respond()


def enter(path, plan) -> bool:
    try:
        secagg.Ledger(path).enter(plan)
    except secagg.ContradictionError:
        return False
    return True


def test_of_many_threads_one_enters_a_round(tmp_path):
    plan = secagg.Plan.complete(3, 1, 20, CONTEXT)
    tries = [(tmp_path / "ledger", plan)] * 8

    with multiprocessing.pool.ThreadPool(8) as pool:
        assert sum(pool.starmap(enter, tries)) == 1
