"""Private keys are parsed once a step, and stay no longer than it."""

import numpy as np
import pytest

from fedagg import secagg
from fedagg.secagg import _agreement, _client, _recovery
from fedagg.secagg import _messages as messages
from fedagg.secagg._messages import SERVER
from tests.secagg.rounds import CONTEXT, Round, sum_of


class Watched(_agreement.Key):
    """A key that counts how many were made and how many are gone."""

    made = gone = 0

    def __del__(self):
        Watched.gone += 1


@pytest.fixture
def watched(monkeypatch):
    def key_of(plan, private):
        Watched.made += 1
        return Watched(*_agreement.key_of(plan, private))

    for module in (_client, _recovery):
        monkeypatch.setattr(module, "key_of", key_of)
    monkeypatch.setattr(Watched, "made", 0)
    monkeypatch.setattr(Watched, "gone", 0)
    return Watched


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_private_key_is_parsed_once_a_step_and_gone_with_it(hybrid, watched):
    plan = secagg.Plan.complete(6, 5, 32, CONTEXT, threshold=2, hybrid=hybrid)
    round, made = Round(plan), 0
    for step, (own, servers) in {
        "keys": (2, 0),
        "shares": (1, 0),
        "vectors": (2, 0),
        "openings": (0, 2),  # the server parses those of who dropped out
    }.items():
        assert round.server.step == step
        absent = [1, 4] if step == "vectors" else []

        answers = round.answers(absent)
        round.deliver(answers)

        made += own * len(answers) + servers
        assert watched.made == watched.gone == made

    assert np.array_equal(
        round.server.total, sum_of(plan, round.vectors, round.server.survivors)
    )


def test_a_parsed_key_is_gone_with_a_refusal(watched):
    round = Round(secagg.Plan.complete(4, 5, 32, CONTEXT, threshold=2))
    round.run_until("shares")
    assert watched.gone == 8
    told = messages.decode(
        messages.KeysOfNeighbours, round.inbox[0] or b"", round.plan, SERVER, 0
    )
    keys = list(told.keys)
    keys[1] = (keys[1][0], bytes(32), *keys[1][2:])  # nobody agrees with this one
    wrong = messages.encode(told._replace(keys=keys), round.plan, SERVER, 0)

    with pytest.raises(secagg.NotAuthenticError, match="small order"):
        round.clients[0].respond(wrong)

    assert watched.made == watched.gone == 9
