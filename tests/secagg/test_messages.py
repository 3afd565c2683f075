"""Parsers: every message has one form, and all else is a typed error."""

import functools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from fedagg import secagg
from fedagg.secagg import _messages as messages
from fedagg.secagg._messages import SERVER
from tests.secagg.rounds import Round, sum_of
from tests.secagg.test_client import PLANS

KINDS = list(messages._LAYOUTS)
STEPS = ["keys", "shares", "vectors", "signatures", "openings"]
often = hypothesis.settings(max_examples=200)
sometimes = hypothesis.settings(max_examples=60)


@functools.cache
def valid(plan_name: str) -> dict[str, tuple[type, bytes, int, int]]:
    """A message of every kind, as it is sent: kind, bytes, sender, receiver."""
    round, found = Round(PLANS[plan_name]), {}

    def keep(data: bytes, sender: int, receiver: int) -> None:
        kind = KINDS[data[33]]
        found.setdefault(kind.__name__, (kind, data, sender, receiver))

    while round.server.step != "nothing":
        answers = round.answers()
        keep(answers[1], 1, SERVER)
        round.deliver(answers)
        if round.inbox:
            keep(round.inbox[1] or b"", SERVER, 1)
    complaint = messages.encode(messages.Complaint([(2,)]), round.plan, 1, SERVER)
    keep(complaint, 1, SERVER)
    return found


def mutated(data: bytes, draw: st.DataObject) -> bytes:
    """The bytes after a few flips, cuts and insertions."""
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, max(len(changed) - 1, 0)))
        match draw.draw(st.sampled_from(["flip", "cut", "put", "repeat", "end"])):
            case "flip" if changed:
                changed[at] ^= 1 << draw.draw(st.integers(0, 7))
            case "cut":
                del changed[at : at + draw.draw(st.integers(1, 40))]
            case "put":
                changed[at:at] = draw.draw(st.binary(max_size=8))
            case "repeat":
                changed[at:at] = changed[at : at + draw.draw(st.integers(1, 100))]
            case _:
                del changed[at:]
    return bytes(changed)


def assert_refused_or_the_only_form(plan, kind, data, sender, receiver):
    try:
        message = messages.decode(kind, data, plan, sender, receiver)
    except secagg.ProtocolError:
        return
    assert messages.encode(message, plan, sender, receiver) == data


def plan_of(kind_name: str) -> str:
    """The plan in which this kind of message is sent."""
    return "hybrid" if kind_name.startswith("Hybrid") else "signed"


def test_every_kind_is_sent_in_a_signed_or_a_hybrid_round():
    assert {*valid("signed"), *valid("hybrid")} == {kind.__name__ for kind in KINDS}


@pytest.mark.parametrize("name", [kind.__name__ for kind in KINDS])
def test_a_message_comes_back_from_its_bytes_and_no_part_of_them(name):
    kind, data, sender, receiver = valid(plan_of(name))[name]
    plan = PLANS[plan_of(name)]

    message = messages.decode(kind, data, plan, sender, receiver)

    assert messages.encode(message, plan, sender, receiver) == data
    for end in range(len(data)):
        with pytest.raises(secagg.MalformedMessageError):
            messages.decode(kind, data[:end], plan, sender, receiver)
    with pytest.raises(secagg.MalformedMessageError):
        messages.decode(kind, data + b"\0", plan, sender, receiver)


@pytest.mark.parametrize("name", [kind.__name__ for kind in KINDS])
def test_every_bit_of_the_header_counts(name):
    kind, data, sender, receiver = valid(plan_of(name))[name]

    for bit in range(8 * messages._HEADER.size):
        spoilt = bytearray(data)
        spoilt[bit // 8] ^= 1 << bit % 8
        with pytest.raises(secagg.ProtocolError):
            messages.decode(kind, bytes(spoilt), PLANS[plan_of(name)], sender, receiver)


@often
@hypothesis.given(st.sampled_from([kind.__name__ for kind in KINDS]), st.data())
def test_mutated_messages_are_refused_or_the_only_form_of_what_they_say(name, draw):
    kind, data, sender, receiver = valid(plan_of(name))[name]
    other = mutated(data, draw)

    plan = PLANS[plan_of(name)]
    assert_refused_or_the_only_form(plan, kind, other, sender, receiver)


@often
@hypothesis.given(st.sampled_from(KINDS), st.binary(max_size=300), st.booleans())
def test_any_bytes_are_refused_or_the_only_form_of_what_they_say(kind, body, headed):
    plan = PLANS["complete"]
    header = messages._HEADER.pack(2, plan.identifier, KINDS.index(kind), 1, SERVER)
    data = header + body if headed else body

    assert_refused_or_the_only_form(plan, kind, data, 1, SERVER)


@pytest.mark.parametrize("count", [6, 2**16, 2**32 - 1])
def test_a_list_longer_than_the_cohort_is_refused_before_it_is_read(count):
    plan = PLANS["complete"]
    kind = messages.Survivors
    header = messages._HEADER.pack(2, plan.identifier, KINDS.index(kind), SERVER, 1)
    data = header + count.to_bytes(4) + bytes(24)

    with pytest.raises(secagg.MalformedMessageError, match="items"):
        messages.decode(kind, data, plan, SERVER, 1)


@sometimes
@hypothesis.given(
    st.sampled_from(["complete", "signed", "hybrid"]), st.sampled_from(STEPS), st.data()
)
@pytest.mark.deep
def test_a_client_that_sends_mutated_messages_never_makes_a_wrong_sum(name, step, draw):
    plan = PLANS[name]
    if step == "signatures" and not plan.signed:
        step = "openings"
    round = Round(plan).run_until(step)
    answers = round.answers()
    answers[1] = mutated(answers[1], draw)

    try:
        for i, message in answers.items():
            try:
                round.server.receive(i, message)
            except secagg.ProtocolError:
                assert i == 1
        round.inbox = round.server.close()
        round.run_until("nothing")
    except secagg.ProtocolError:
        with pytest.raises(secagg.WrongStepError):
            _ = round.server.total
        return

    expected = sum_of(plan, round.vectors, round.server.survivors)
    if step == "vectors":  # a client may say any vector its own
        assert set(round.server.survivors) >= {0, 2, 3, 4}
    else:
        assert np.array_equal(round.server.total, expected)


@sometimes
@hypothesis.given(
    st.sampled_from(["complete", "signed", "hybrid"]),
    st.sampled_from(STEPS[1:]),
    st.data(),
)
@pytest.mark.deep
def test_a_client_refuses_mutated_messages_or_takes_a_step(name, step, draw):
    plan = PLANS[name]
    if step == "signatures" and not plan.signed:
        step = "openings"
    round = Round(plan).run_until(step)
    data = round.inbox[1]
    assert data is not None

    other = mutated(data, draw)
    try:
        answer = round.clients[1].respond(other)
    except secagg.ProtocolError:
        return

    if step == "openings":
        opened = messages.decode(messages.Opened, answer, plan, 1, SERVER)
        both = dict(opened.self_masks).keys() & dict(opened.masking_keys).keys()
        assert not both
