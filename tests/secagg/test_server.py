"""What the server refuses without harm, and when it gives up."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from fedagg import secagg
from fedagg.secagg import _messages as messages
from fedagg.secagg._messages import SERVER
from tests.secagg.rounds import CONTEXT, Round, make_vectors, sum_of
from tests.secagg.test_client import PLANS, every_plan


def read(round: Round, kind, data: bytes, client: int):
    return messages.decode(kind, data, round.plan, client, SERVER)


def written(round: Round, message, client: int) -> bytes:
    return messages.encode(message, round.plan, client, SERVER)


@every_plan
def test_messages_that_are_refused_do_no_harm(plan):
    round = Round(plan)

    while round.server.step != "nothing":
        answers = round.answers()
        spoilt = bytearray(answers[0])
        spoilt[40] ^= 1
        for message in (b"", answers[1], bytes(spoilt), answers[0] + b"\0"):
            with pytest.raises(secagg.ProtocolError):
                round.server.receive(0, message)
        for i, message in answers.items():
            round.server.receive(i, message)
            with pytest.raises(secagg.ContradictionError, match="nothing to send"):
                round.server.receive(i, message)
        for stranger in (-1, plan.clients, SERVER):
            with pytest.raises(secagg.ContradictionError, match="nothing to send"):
                round.server.receive(stranger, answers[0])
        assert round.server.waiting_for == frozenset()
        round.inbox = round.server.close()

    expected = sum_of(plan, round.vectors, range(plan.clients))
    assert np.array_equal(round.server.total, expected)


def test_vectors_may_come_in_any_order_and_the_last_steps_messages_are_gone():
    round = Round(PLANS["complete"]).run_until("vectors")
    answers = round.answers()

    round.deliver(dict(sorted(answers.items(), reverse=True)))
    with pytest.raises(secagg.ProtocolError):
        round.server.receive(0, answers[0])
    round.run_until("nothing")

    assert np.array_equal(
        round.server.total, sum_of(round.plan, round.vectors, range(5))
    )


def test_there_is_no_sum_before_the_end_and_no_step_after_it():
    round = Round(PLANS["complete"]).run_until("openings")

    with pytest.raises(secagg.WrongStepError, match="no sum"):
        _ = round.server.total
    round.run_until("nothing")
    with pytest.raises(secagg.WrongStepError, match="over"):
        round.server.close()


@pytest.mark.parametrize("step", ["keys", "shares", "vectors", "openings"])
def test_below_the_threshold_there_is_an_error_and_no_sum(step):
    plan = secagg.Plan.complete(6, 3, 32, CONTEXT, threshold=3)
    enough = dict.fromkeys((4, 5), step)
    too_few = dict.fromkeys((3, 4, 5), step)

    total, survivors = secagg.simulate(plan, make_vectors(plan), drop=enough)
    assert np.array_equal(total, sum_of(plan, make_vectors(plan), survivors))
    round = Round(plan)
    with pytest.raises(secagg.TooFewClientsError):
        round.run_until("nothing", too_few)
    with pytest.raises(secagg.WrongStepError, match="no sum"):
        _ = round.server.total


def test_too_few_signatures_end_a_signed_round():
    round = Round(PLANS["signed"])

    with pytest.raises(secagg.TooFewClientsError, match="signed"):
        round.run_until("nothing", dict.fromkeys((2, 3, 4), "signatures"))


def test_a_client_with_too_few_neighbours_left_is_left_out_not_waited_for():
    plan = dataclasses.replace(
        secagg.Plan.complete(12, 3, 32, CONTEXT, threshold=3), degree=6
    )
    around = set(plan.neighbours(0))
    # The nearest on the ring have the most neighbours in common.
    near = sorted(around, key=lambda j: len(around.intersection(plan.neighbours(j))))
    gone = dict.fromkeys(near[2:], "keys")

    round = Round(plan).run_until("shares", gone)
    assert round.server.waiting_for == set(range(1, 12)) - set(gone)
    round.run_until("nothing")

    expected = sum_of(plan, round.vectors, round.server.survivors)
    assert np.array_equal(round.server.total, expected)


def spoil_opening(round: Round, client: int, about: int) -> bytes:
    """The client's opening, with another share of a neighbour's secret."""
    data = round.clients[client].respond(round.inbox[client])
    opened = read(round, messages.Opened, data, client)

    def spoil(shares):
        return [(j, bytes(32) if j == about else y) for j, y in shares]

    wrong = messages.Opened(*(spoil(shares) for shares in opened))
    return written(round, wrong, client)


@pytest.mark.parametrize("drop", [{}, {1: "vectors"}])
def test_a_wrong_share_is_refused_at_once_and_by_name(drop):
    plan = secagg.Plan.complete(7, 4, 32, CONTEXT, threshold=3)
    round = Round(plan).run_until("openings", drop)
    wrong = {liar: spoil_opening(round, liar, 1) for liar in (0, 2)}

    for liar, message in wrong.items():
        with pytest.raises(
            secagg.ContradictionError, match=f"Client {liar} .* 1 dealt"
        ):
            round.server.receive(liar, message)
    round.deliver(round.answers(wrong))

    survivors = [i for i in range(7) if i not in drop]
    assert np.array_equal(round.server.total, sum_of(plan, round.vectors, survivors))
    assert round.server.accused == {}


def test_clients_that_share_other_secrets_than_they_announce_are_all_named():
    plan = secagg.Plan.complete(5, 4, 32, CONTEXT, threshold=2)
    round = Round(plan).run_until("shares")
    answers = round.answers()
    for i in (1, 3):
        shares = read(round, messages.Shares, answers[i], i)
        answers[i] = written(round, shares._replace(commitment=bytes(32)), i)
    round.deliver(answers)
    round.run_until("openings")

    for i, message in round.answers().items():
        round.server.receive(i, message)
    with pytest.raises(secagg.RecoveryError, match=r"\[1, 3\]"):
        round.server.close()

    assert round.server.accused == {1: (), 3: ()}
    with pytest.raises(secagg.WrongStepError, match="no sum"):
        _ = round.server.total


def spoil_envelopes(round: Round, sender: int, receivers) -> bytes:
    data = round.clients[sender].respond(round.inbox[sender])
    kind = messages.HybridShares if round.plan.hybrid else messages.Shares
    shares = read(round, kind, data, sender)
    envelopes = [
        (j, bytes(len(envelope)) if j in receivers else envelope, *digests)
        for j, envelope, *digests in shares.envelopes
    ]
    return written(round, shares._replace(envelopes=envelopes), sender)


def test_a_client_whose_envelopes_do_not_open_is_named_and_left_out_of_another_round():
    plan = secagg.Plan.complete(5, 4, 32, CONTEXT, threshold=2)
    round = Round(plan).run_until("shares")
    round.deliver({**round.answers([3]), 3: spoil_envelopes(round, 3, range(5))})

    with pytest.raises(secagg.TooFewClientsError, match="accused"):
        round.run_until("nothing")
    assert round.server.accused == {3: (0, 1, 2, 4)}

    again = secagg.Plan.complete(4, 4, 32, CONTEXT, number=1, threshold=2)
    vectors = round.vectors[[0, 1, 2, 4]]
    total, survivors = secagg.simulate(again, vectors)
    assert np.array_equal(total, sum_of(again, vectors, survivors))


@every_plan
def test_a_complaint_of_one_costs_the_round_nobody_else(plan):
    round = Round(plan).run_until("shares")
    liar = plan.neighbours(0)[0]
    wrong = spoil_envelopes(round, liar, [0])
    round.deliver({**round.answers([liar]), liar: wrong})

    round.run_until("nothing")

    assert round.server.accused == {liar: (0,)}
    assert round.server.survivors == tuple(range(1, plan.clients))
    expected = sum_of(plan, round.vectors, range(1, plan.clients))
    assert np.array_equal(round.server.total, expected)


def test_a_complaint_about_nobody_or_a_stranger_is_refused():
    round = Round(PLANS["sparse"]).run_until("vectors")
    stranger = next(j for j in range(1, 9) if j not in round.plan.neighbours(0))

    for accused in ([], [(stranger,)], [(0,)]):
        message = written(round, messages.Complaint(accused), 0)
        with pytest.raises(secagg.ContradictionError, match="complaint"):
            round.server.receive(0, message)
    round.run_until("nothing")

    assert round.server.accused == {}


def test_shares_for_others_than_asked_for_are_refused():
    round = Round(PLANS["complete"]).run_until("openings", {1: "vectors"})
    data = round.clients[0].respond(round.inbox[0])
    opened = read(round, messages.Opened, data, 0)

    for wrong, error in (
        (messages.Opened(opened.self_masks[1:], opened.masking_keys), "asked for"),
        (messages.Opened(opened.self_masks, []), "asked for"),
        (messages.Opened(opened.masking_keys, opened.self_masks), "asked for"),
        (messages.Opened(opened.self_masks, [(1, b"\xff" * 32)]), "1 dealt"),
    ):
        with pytest.raises(secagg.ProtocolError, match=error):
            round.server.receive(0, written(round, wrong, 0))
    round.server.receive(0, data)


def test_envelopes_for_others_than_the_neighbours_are_refused():
    round = Round(PLANS["sparse"]).run_until("shares")
    data = round.answers()[0]
    shares = read(round, messages.Shares, data, 0)
    envelopes = list(shares.envelopes)
    stranger = next(j for j in range(1, 9) if j not in round.plan.neighbours(0))
    moved = sorted([(stranger, *envelopes[0][1:]), *envelopes[1:]])

    for wrong in (envelopes[1:], moved):
        message = written(round, shares._replace(envelopes=wrong), 0)
        with pytest.raises(secagg.ContradictionError, match="neighbours"):
            round.server.receive(0, message)


def test_signatures_are_checked_and_not_taken_without_a_roster():
    signed, plain = Round(PLANS["signed"]), Round(PLANS["complete"])
    for round, error in (
        (signed, secagg.NotAuthenticError),
        (plain, secagg.MalformedMessageError),
    ):
        keys = read(round, messages.Keys, round.answers()[0], 0)
        message = written(round, keys._replace(signature=b"\1" * 64), 0)
        with pytest.raises(error):
            round.server.receive(0, message)
    with pytest.raises(ValueError, match="roster"):
        secagg.Server(signed.plan)


def test_keys_that_neighbours_would_refuse_are_refused():
    round = Round(PLANS["complete"])
    answers = round.answers()
    honest = read(round, messages.Keys, answers[0], 0)
    round.server.receive(0, answers[0])

    for wrong, error in (
        (honest, secagg.ContradictionError),  # the key of another
        (honest._replace(agreement=bytes(32)), secagg.NotAuthenticError),
        (honest._replace(masking=bytes(32)), secagg.NotAuthenticError),
    ):
        with pytest.raises(error):
            round.server.receive(1, written(round, wrong, 1))
    del answers[0]
    round.deliver(answers)
    round.run_until("nothing")

    assert round.server.survivors == tuple(range(5))


def test_the_server_holds_one_sum_and_no_vectors():
    plan = secagg.Plan.complete(8, 2**18, 32, CONTEXT, threshold=2)
    round = Round(plan).run_until("vectors")
    answers = round.answers()
    size = 4 * plan.length
    tracemalloc.start()

    for i, message in answers.items():
        round.server.receive(i, message)
    kept, peak = tracemalloc.get_traced_memory()

    tracemalloc.stop()
    assert kept < size / 8  # the sum was there before
    assert peak < 4 * size  # one message, taken apart


@pytest.mark.deep
def test_closing_a_signed_step_builds_no_messages():
    plan = secagg.Plan.complete(40, 1, 32, CONTEXT, threshold=21, signed=True)
    round = Round(plan).run_until("signatures")
    for i, message in round.answers().items():
        round.server.receive(i, message)
    tracemalloc.start()

    inbox = round.server.close()

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = sum(len(x) for x in inbox.values())
    assert len(inbox) == 40 and whole > 40 * 40 * 68
    assert peak < whole / 5
    assert inbox[3] == inbox[3]
    with pytest.raises(KeyError):
        _ = inbox[40]
