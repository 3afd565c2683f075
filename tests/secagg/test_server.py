"""What the server refuses without harm, and when it gives up."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from fedagg import secagg
from fedagg.secagg import _messages as messages
from fedagg.secagg._messages import SERVER
from tests.secagg.rounds import Round, make_vectors, sum_of
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
    plan = secagg.Plan.complete(6, 3, threshold=3)
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
    plan = dataclasses.replace(secagg.Plan.complete(12, 3, threshold=3), degree=6)
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
def test_a_wrong_share_is_passed_over_where_others_are_left(drop):
    plan = secagg.Plan.complete(6, 4, threshold=3)
    for liar in (0, 2, 5):
        round = Round(plan).run_until("openings", drop)
        wrong = spoil_opening(round, liar, 1)

        round.deliver({**round.answers([liar]), liar: wrong})

        survivors = [i for i in range(6) if i not in drop]
        expected = sum_of(plan, round.vectors, survivors)
        assert np.array_equal(round.server.total, expected)


@pytest.mark.parametrize("drop", [{}, {1: "vectors"}])
def test_wrong_shares_that_are_too_many_are_an_error_and_no_sum(drop):
    plan = secagg.Plan.complete(6, 4, threshold=3)
    round = Round(plan).run_until("openings", drop)
    wrong = {i: spoil_opening(round, i, 1) for i in (0, 3)}
    answers = {**round.answers([*wrong, 4]), **wrong}  # and 4 has dropped out

    for i, message in answers.items():
        round.server.receive(i, message)
    with pytest.raises(secagg.RecoveryError, match="client 1"):
        round.server.close()

    with pytest.raises(secagg.WrongStepError, match="no sum"):
        _ = round.server.total


def test_a_client_that_commits_to_another_b_than_it_shares_is_found_out():
    plan = secagg.Plan.complete(4, 4, threshold=2)
    round = Round(plan).run_until("shares")
    answers = round.answers()
    shares = read(round, messages.Shares, answers[3], 3)
    answers[3] = written(round, shares._replace(commitment=bytes(32)), 3)
    round.deliver(answers)

    with pytest.raises(secagg.RecoveryError, match="client 3"):
        round.run_until("nothing")


def test_shares_for_others_than_asked_for_are_refused():
    round = Round(PLANS["complete"]).run_until("openings", {1: "vectors"})
    data = round.clients[0].respond(round.inbox[0])
    opened = read(round, messages.Opened, data, 0)

    for wrong, error in (
        (messages.Opened(opened.self_masks[1:], opened.masking_keys), "asked for"),
        (messages.Opened(opened.self_masks, []), "asked for"),
        (messages.Opened(opened.masking_keys, opened.self_masks), "asked for"),
        (messages.Opened(opened.self_masks, [(1, b"\xff" * 32)]), "of the field"),
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
    moved = sorted([(stranger, envelopes[0][1]), *envelopes[1:]])

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
    plan = secagg.Plan.complete(8, 2**18, threshold=2)
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
