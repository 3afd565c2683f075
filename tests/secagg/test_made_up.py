"""Made-up clients: a server cannot tell them from others, and liars do not hold it."""

import dataclasses

import pytest

from benchmarks import made_up
from fedagg import secagg
from tests.secagg.rounds import CONTEXT


@pytest.mark.parametrize(
    ("clients", "dropped"), [(12, 1), pytest.param(1000, 10, marks=pytest.mark.deep)]
)
def test_two_liars_in_a_complete_graph_are_refused_and_the_round_ends(clients, dropped):
    plan = secagg.Plan.complete(clients, 10, 32, CONTEXT)

    outcome = made_up.measure(plan, dropped, (1, 3))

    assert outcome["refused"] == [1, 3]
    assert outcome["is_right"]


def test_a_server_cannot_tell_made_up_clients_of_a_sparse_graph_from_others():
    plan = secagg.Plan.complete(20, 10, 19, CONTEXT, threshold=3)
    plan = dataclasses.replace(plan, degree=6, quorum=18)

    outcome = made_up.measure(plan, 2)

    assert outcome["refused"] == []
    assert outcome["is_right"]
