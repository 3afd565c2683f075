"""No lie, by clients or by the server, makes a wrong sum or opens two secrets."""

import collections

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from fedagg import secagg
from tests.secagg import lies


# The deep half plays for about a minute.
@pytest.mark.parametrize("rounds", [100, pytest.param(1200, marks=pytest.mark.deep)])
def test_a_round_with_lies_in_it_is_right_or_over(rounds):
    @hypothesis.settings(
        max_examples=rounds,
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    @hypothesis.given(st.integers(0, 2**32 - 1))
    def played(seed):
        random = np.random.default_rng(seed)
        lies.play(lambda n: int(random.integers(n)))

    played()


NAMED = [f"{i}-{x.degree}" + "-signed" * x.signed for i, x in enumerate(lies.PLANS)]


@pytest.mark.deep
@pytest.mark.parametrize("plan", lies.PLANS, ids=NAMED)
def test_a_lie_of_the_server_reaches_what_is_behind_the_parsers_of_clients(plan):
    """Each step refuses some lies, by what it knows and not by their form."""
    random, refused = np.random.default_rng(0), collections.Counter()
    behind = (
        secagg.ContradictionError,
        secagg.NotAuthenticError,
        secagg.TooFewClientsError,
    )
    for _ in range(30):
        round = lies.Round(lies.fixed(plan))
        while round.server.step != "nothing":
            step = round.server.step
            inbox = {i: x for i, x in round.inbox.items() if x is not None}
            if inbox:
                wrong = lies.lie(
                    round.plan,
                    inbox[1],
                    lambda n: int(random.integers(n)),
                    list(inbox.values()),
                )
                other = lies.Round(round.plan).run_until(step, {2: "vectors"})
                try:
                    other.clients[1].respond(wrong)
                except behind:
                    refused[step] += 1
                except secagg.ProtocolError:
                    pass
            round.deliver(round.answers([2] * (step == "vectors")))

    steps = {"shares", "vectors", "openings"} | (
        {"signatures"} if plan.signed else set()
    )
    assert set(refused) == steps


def test_a_lie_reaches_what_is_behind_the_parsers():
    """Of lies by a client alone, some are taken, some refused, in every step."""
    random = np.random.default_rng(0)
    taken = collections.Counter()
    for _ in range(60):
        plan = lies.PLANS[2]
        round = lies.Round(plan)
        while round.server.step != "nothing":
            step, answers = round.server.step, round.answers()
            wrong = lies.lie(
                plan,
                answers[1],
                lambda n: int(random.integers(n)),
                list(answers.values()),
            )
            try:
                round.server.receive(1, wrong)
                taken[step, True] += 1
                if wrong != answers[1]:
                    break
            except lies.secagg.ProtocolError:
                taken[step, False] += 1
                round.server.receive(1, answers[1])
            answers.pop(1)
            round.deliver(answers)

    steps = {"keys", "shares", "vectors", "signatures", "openings"}
    assert {step for step, _ in taken} == steps
    assert taken["shares", True] and taken["shares", False]
    assert taken["openings", False] and not taken["keys", True]
