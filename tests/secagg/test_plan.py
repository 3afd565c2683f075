"""Plans: degree and threshold, and what is no plan."""

import dataclasses
import fractions
import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from fedagg import secagg
from fedagg.secagg import _degree
from tests.secagg.rounds import CONTEXT, fixed


def test_degree_and_threshold_are_those_of_bell_et_al():
    rows: list[tuple[Any, float, dict[int, tuple[int, int]]]] = [
        ("semi-honest", 0.1, {100: (22, 11), 1000: (48, 27), 10000: (54, 31)}),
        ("semi-malicious", 0.1, {100: (32, 22), 1000: (96, 67), 10000: (122, 85)}),
        ("semi-honest", 0.33, {100: (68, 34), 1000: (286, 150), 10000: (422, 221)}),
    ]

    for mode, rate, cohorts in rows:
        for clients, expected in cohorts.items():
            plan = secagg.Plan.for_cohort(
                clients, 1, 32, CONTEXT, dropout=rate, adversary=rate, mode=mode
            )
            assert (plan.degree, plan.threshold) == expected


@pytest.mark.parametrize(("total", "marked", "draws"), [(99, 10, 22), (50, 40, 30)])
def test_tails_are_those_of_the_hypergeometric_distribution(total, marked, draws):
    logs = [math.lgamma(i + 1) for i in range(total + 1)]
    tail = _degree._tail(_degree.np.array(logs), total, marked, draws)

    for x in range(draws + 1):
        ways = sum(
            math.comb(marked, i) * math.comb(total - marked, draws - i)
            for i in range(x, draws + 1)
        )
        exact = float(fractions.Fraction(ways, math.comb(total, draws)))
        assert tail[x] == pytest.approx(exact, rel=1e-9, abs=1e-300)


def test_every_bound_holds_at_the_plan_and_one_fails_at_a_smaller_degree():
    plan = secagg.Plan.for_cohort(1000, 1, 32, CONTEXT, mode="semi-honest")

    def privacy(k: int, t: int) -> fractions.Fraction:
        ways = (math.comb(100, i) * math.comb(899, k - i) for i in range(t, k + 1))
        return fractions.Fraction(1000 * sum(ways), math.comb(999, k))

    def failure(k: int, t: int) -> fractions.Fraction:
        return privacy(k, k - t + 1)  # as many drop out as are corrupt

    assert privacy(plan.degree, plan.threshold) < 2.0**-41
    assert failure(plan.degree, plan.threshold) < 2.0**-20
    k = plan.degree - 2
    assert not any(
        privacy(k, t) < 2.0**-41 and failure(k, t) < 2.0**-20 for t in range(1, k + 1)
    )


def test_small_cohorts_are_complete_graphs_or_refused():
    plan = secagg.Plan.for_cohort(4, 1, 32, CONTEXT, mode="semi-honest")

    assert (plan.degree, plan.threshold) == (3, 2)
    assert secagg.Plan.for_cohort(5, 1, 32, CONTEXT).degree == 4
    for clients in (2, 3):
        with pytest.raises(ValueError, match="take more clients"):
            secagg.Plan.for_cohort(clients, 1, 32, CONTEXT)
        assert secagg.Plan.complete(clients, 1, 32, CONTEXT).degree == clients - 1
    with pytest.raises(ValueError, match="take more clients"):
        secagg.Plan.for_cohort(100, 1, 32, CONTEXT, dropout=0.5, adversary=0.5)


def test_the_complete_graph_takes_the_threshold_of_2017():
    assert secagg.Plan.complete(31, 1, 32, CONTEXT).threshold == 21
    assert secagg.Plan.complete(31, 1, 32, CONTEXT, threshold=16).threshold == 16


@pytest.mark.parametrize("clients", [2, 3, 4, 7, 31, 100])
def test_two_quorums_have_an_honest_client_in_common(clients):
    plan = secagg.Plan.complete(clients, 1, 32, CONTEXT, signed=True)

    assert 2 * plan.quorum - clients > (clients - 1) // 3


@pytest.mark.parametrize("mode", ["semi-honest", "semi-malicious", "signed"])
def test_a_round_ends_where_more_drop_out_than_were_planned_for(mode):
    def quorum(**options) -> int:
        arguments = 100, 1, 32, CONTEXT
        return secagg.Plan.for_cohort(*arguments, mode=mode, **options).quorum

    assert quorum() == 90
    assert quorum(dropout=0.25, adversary=0.05) == 75
    assert quorum(dropout=0.05) == 95
    assert quorum(smallest_cohort=93) == 93 and quorum(smallest_cohort=50) == 90
    with pytest.raises(ValueError, match="quorum"):
        quorum(smallest_cohort=101)
    complete = secagg.Plan.complete(100, 1, 32, CONTEXT, smallest_cohort=93)
    assert complete.quorum == 93


def test_one_neighbour_alone_never_opens_a_secret():
    options: dict[str, Any] = {"adversary": 0.0, "dropout": 0.0, "mode": "semi-honest"}

    plan = secagg.Plan.for_cohort(100, 1, 32, CONTEXT, **options)

    assert plan.threshold == 2
    with pytest.raises(ValueError, match="threshold"):
        dataclasses.replace(plan, threshold=1)


def test_a_plan_comes_back_from_its_bytes_and_every_field_is_in_its_identifier():
    plan = fixed(secagg.Plan.for_cohort(100, 17, 9, CONTEXT))

    changes: dict[str, Any] = {
        "clients": 101,
        "length": 18,
        "bits": 10,
        "degree": 34,
        "threshold": 21,
        "quorum": 60,
        "number": 1,
        "context": bytes(32),
        "session": bytes(32),
        "graph_seed": bytes(31) + b"\1",
    }
    others = [dataclasses.replace(plan, **{x: y}) for x, y in changes.items()]
    others.append(dataclasses.replace(plan, signed=True, quorum=60))

    assert secagg.Plan.decode(plan.encode()) == plan
    assert len({x.identifier for x in [plan, *others]}) == 12


def test_rounds_have_sessions_and_seeds_of_their_own():
    plan = secagg.Plan.complete(3, 1, 32, CONTEXT)
    again = plan.renewed(bytes(32))

    assert plan.session != again.session and plan.graph_seed != again.graph_seed
    assert (again.number, again.context) == (plan.number + 1, bytes(32))
    copied = ("session", "graph_seed", "number", "context")
    assert dataclasses.replace(again, **{x: getattr(plan, x) for x in copied}) == plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients": 1}, "clients"),
        ({"length": -1}, "length"),
        ({"bits": 0}, "bits"),
        ({"bits": 33}, "bits"),
        ({"bits": True}, "bits"),
        ({"degree": 3}, "even degree"),
        ({"degree": 9}, "degree"),
        ({"threshold": 5}, "threshold"),
        ({"threshold": 1}, "threshold"),
        ({"threshold": 2, "signed": True, "quorum": 5}, "more than half of 4"),
        ({"signed": 2, "quorum": 5}, "signed"),  # in bytes it would be hybrid
        ({"hybrid": 1}, "hybrid"),
        ({"number": -1}, "number"),
        ({"number": 2**63}, "number"),
        ({"context": b""}, "context"),
        ({"quorum": 10}, "quorum"),
        ({"signed": True, "quorum": 4}, "more than half"),
        ({"session": b""}, "session"),
        ({"graph_seed": "0" * 32}, "graph_seed"),
    ],
)
def test_a_field_out_of_range_is_refused(change, message):
    plan = dataclasses.replace(
        secagg.Plan.complete(9, 1, 32, CONTEXT, threshold=3), degree=4
    )

    with pytest.raises(ValueError, match=message):
        dataclasses.replace(plan, **change)


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 1.0},
        {"adversary": -0.1},
        {"failure": 0.0},
        {"security": -1},
        {"mode": "honest"},
    ],
)
def test_a_cohort_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match="Expected"):
        secagg.Plan.for_cohort(100, 1, 32, CONTEXT, **options)


@hypothesis.settings(max_examples=200)
@hypothesis.given(st.data())
def test_any_bytes_are_refused_or_the_only_ones_of_their_plan(draw):
    data = bytearray(fixed(secagg.Plan.complete(5, 3, 32, CONTEXT)).encode())
    for _ in range(draw.draw(st.integers(0, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    data = bytes(data[: draw.draw(st.sampled_from([len(data), 0, 5, 50]))])

    try:
        plan = secagg.Plan.decode(data)
    except secagg.MalformedMessageError:
        return

    assert plan.encode() == data
