"""No lie, by clients or by the server, makes a wrong sum or opens two secrets."""

import collections

import hypothesis
import hypothesis.strategies as st
import numpy as np

from tests.secagg import lies


@hypothesis.settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
@hypothesis.given(st.integers(0, 2**32 - 1))
def test_a_round_with_lies_in_it_is_right_or_over(seed):
    random = np.random.default_rng(seed)

    lies.play(lambda n: int(random.integers(n)))


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
