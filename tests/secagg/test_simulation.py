"""Whole rounds equal NumPy bit for bit, over cohorts, graphs, weights and dropouts."""

import dataclasses
import itertools
from collections.abc import Iterable

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from fedagg import secagg
from tests.helpers import first_now
from tests.secagg.rounds import CONTEXT, make_vectors, sum_of

STEPS = ["keys", "shares", "vectors", "signatures", "openings"]


def least_threshold(degree: int, signed: bool) -> int:
    return max(min(2, degree), degree // 2 + 1 if signed else 1)


@st.composite
def rounds(draw):
    clients = draw(st.integers(2, 12))
    signed = draw(st.booleans())
    plan = secagg.Plan.complete(
        clients,
        draw(st.integers(0, 33)),
        draw(st.integers(1, 32)),
        CONTEXT,
        threshold=draw(st.integers(least_threshold(clients - 1, signed), clients - 1)),
        signed=signed,
    )
    if not signed:
        plan = dataclasses.replace(plan, quorum=2)
    if clients > 4 and draw(st.booleans()):
        degree = 2 * draw(st.integers(1, (clients - 1) // 2))
        threshold = draw(st.integers(least_threshold(degree, signed), degree))
        plan = dataclasses.replace(plan, degree=degree, threshold=threshold)
    who = st.sets(st.integers(0, clients - 1), max_size=clients // 2)
    drop = {i: draw(st.sampled_from(STEPS)) for i in sorted(draw(who))}
    return plan, drop, draw(st.integers(0, 2**32 - 1))


@hypothesis.settings(max_examples=150)
@hypothesis.given(rounds())
@pytest.mark.deep
def test_a_round_equals_numpy_or_too_few_are_left(drawn):
    plan, drop, seed = drawn
    random = np.random.default_rng(seed)
    # As a weighted sum is made: integers times weights, modulo 2**bits.
    weights = random.integers(0, 5, (plan.clients, 1), dtype=np.uint32)
    vectors = make_vectors(plan, seed) * weights & np.uint32(2**plan.bits - 1)

    try:
        total, survivors = secagg.simulate(plan, vectors, drop=drop)
    except secagg.TooFewClientsError:
        assert drop
        return

    assert total.dtype == np.uint32
    assert np.array_equal(total, sum_of(plan, vectors, survivors))
    early = {i for i, step in drop.items() if step in STEPS[:3]}
    assert not early.intersection(survivors)


def least_plan(kind: str, clients: int) -> secagg.Plan:
    """A plan that takes as few clients as may be."""
    signed = kind.startswith("signed")
    plan = secagg.Plan.complete(
        clients, 2, 7, CONTEXT, signed=signed, hybrid=kind == "hybrid"
    )
    quorum = clients // 2 + 1 if signed else 2
    degree = 2 if "sparse" in kind else clients - 1
    threshold = least_threshold(degree, signed)
    return dataclasses.replace(plan, quorum=quorum, degree=degree, threshold=threshold)


def has_a_sum(plan: secagg.Plan, fates) -> bool:
    """Whether enough are left in each step, where all are neighbours of all."""
    left = [sum(x is None or STEPS.index(x) > i for x in fates) for i in range(5)]
    return (
        min(left[:3]) >= max(plan.quorum, plan.threshold + 1)
        and left[3] >= plan.quorum
        and left[4] >= plan.threshold + 1  # each secret has an owner beside them
    )


# Up to five clients in the deep half, a few of the same in the quick one.
EXHAUSTED = [
    pytest.param(kind, n, marks=() if n == 2 else pytest.mark.deep)
    for kind in ("complete", "sparse", "signed", "signed sparse", "hybrid")
    for n in range(4 if "sparse" in kind else 2, 6)
]


def all_fates(one: list[str | None], kind: str, clients: int) -> Iterable[tuple]:
    """In every order, or, of five clients whose rounds take long, each in one order.

    These are neighbours of all others, so that only its place tells a client from them.
    """
    if clients < 5 or kind not in ("signed", "hybrid"):
        return itertools.product(one, repeat=clients)
    order = np.random.default_rng(clients)
    return (
        tuple(fates[i] for i in order.permutation(clients))
        for fates in itertools.combinations_with_replacement(one, clients)
    )


@pytest.mark.parametrize("kind, clients", EXHAUSTED)
def test_every_fate_of_every_client_gives_the_sum_or_an_error(kind, clients):
    plan = least_plan(kind, clients)
    vectors, summed = make_vectors(plan), 0
    fates_of_one = [None, *(x for x in STEPS if plan.signed or x != "signatures")]

    for fates in all_fates(fates_of_one, kind, clients):
        drop = {i: step for i, step in enumerate(fates) if step is not None}
        try:
            total, survivors = secagg.simulate(plan, vectors, drop=drop)
        except secagg.TooFewClientsError:
            assert drop and ("sparse" in kind or not has_a_sum(plan, fates))
            continue
        early = {i for i, step in drop.items() if step in STEPS[:3]}
        assert set(survivors) <= set(range(clients)) - early
        if "sparse" not in kind:  # there, whoever lost its neighbours is left out too
            assert set(survivors) == set(range(clients)) - early
            assert has_a_sum(plan, fates)
        assert np.array_equal(total, sum_of(plan, vectors, survivors))
        summed += 1

    assert summed > 0


@first_now("mode", ["semi-honest", "semi-malicious", "signed"])
def test_a_cohort_survives_the_dropouts_of_its_plan_in_every_step(mode):
    plan = secagg.Plan.for_cohort(60, 10, 20, CONTEXT, mode=mode)
    drop = {7 * i: STEPS[i % 5] for i in range(6)}

    total, survivors = secagg.simulate(plan, make_vectors(plan), drop=drop)

    assert len(survivors) == 60 - sum(x in STEPS[:3] for x in drop.values())
    assert np.array_equal(total, sum_of(plan, make_vectors(plan), survivors))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("signed", [False, True])
def test_a_round_survives_dropouts_down_to_the_threshold_in_each_step(step, signed):
    plan = secagg.Plan.complete(9, 5, 32, CONTEXT, threshold=5, signed=signed)
    plan = dataclasses.replace(plan, quorum=6)
    gone = range(6, 9)

    total, survivors = secagg.simulate(
        plan, make_vectors(plan), drop=dict.fromkeys(gone, step)
    )

    assert np.array_equal(total, sum_of(plan, make_vectors(plan), survivors))
    with pytest.raises(secagg.TooFewClientsError):
        secagg.simulate(plan, make_vectors(plan), drop=dict.fromkeys([5, *gone], step))


@pytest.mark.parametrize("length", [0, 1, 70000])
def test_vectors_of_zeros_ones_and_no_entries_have_a_sum(length):
    plan = secagg.Plan.complete(3, length, 32, CONTEXT)
    zeros = np.zeros((3, length), np.uint32)

    total, _ = secagg.simulate(plan, zeros)
    wrapped, _ = secagg.simulate(plan, ~zeros)

    assert np.array_equal(total, np.zeros(length, np.uint32))
    assert np.array_equal(wrapped, np.full(length, 2**32 - 3, np.uint32))


def test_what_does_not_fit_the_plan_is_refused():
    plan = secagg.Plan.complete(3, 1, 32, CONTEXT)
    vectors = make_vectors(plan)

    with pytest.raises(ValueError, match="Expected 3 vectors"):
        secagg.simulate(plan, vectors[:2])
    for drop in ({3: "keys"}, {0: "sum"}):
        with pytest.raises(ValueError, match="drop"):
            secagg.simulate(plan, vectors, drop=drop)
