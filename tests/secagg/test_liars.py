"""Clients that lie in a complete graph do not hold the server."""

import pytest

from benchmarks import liars
from fedagg import secagg
from tests.secagg.rounds import CONTEXT


@pytest.mark.parametrize(
    ("clients", "dropped"), [(12, 1), pytest.param(1000, 10, marks=pytest.mark.deep)]
)
def test_two_liars_in_a_complete_graph_are_refused_and_the_round_ends(clients, dropped):
    plan = secagg.Plan.complete(clients, 10, 32, CONTEXT)

    outcome = liars.measure(plan, (1, 3), dropped)

    assert outcome["refused"] == [1, 3]
    assert outcome["is_right"]
