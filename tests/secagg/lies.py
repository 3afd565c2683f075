"""Whole rounds with well-formed lies in them, and what must hold all the same.

A lie is a message that is decoded, changed and encoded again, so that it passes the
parsers and reaches what is behind them. `pick(n)` says which of n things is done: it
comes from hypothesis in tests, and from a fuzzer's bytes in `fuzz`.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedagg import secagg
from fedagg.secagg import _messages as messages
from fedagg.secagg._messages import SERVER
from tests.secagg.rounds import CONTEXT, Round, fixed, sum_of

Pick = Callable[[int], int]
PLANS = [
    secagg.Plan.complete(4, 3, 5, CONTEXT, threshold=2),
    dataclasses.replace(
        secagg.Plan.complete(7, 3, 5, CONTEXT, threshold=2), degree=4, quorum=4
    ),
    secagg.Plan.complete(5, 3, 5, CONTEXT, threshold=3, signed=True),
    secagg.Plan.complete(5, 3, 5, CONTEXT, threshold=3, hybrid=True),
    dataclasses.replace(
        secagg.Plan.complete(7, 3, 5, CONTEXT, threshold=4, signed=True),
        degree=4,
        threshold=3,
        quorum=5,
    ),
    secagg.Plan.complete(5, 3, 5, CONTEXT, threshold=3, signed=True, hybrid=True),
    dataclasses.replace(
        secagg.Plan.complete(7, 3, 5, CONTEXT, threshold=2, hybrid=True),
        degree=4,
        quorum=4,
    ),
]
KINDS = list(messages._LAYOUTS)


def lie(plan: secagg.Plan, data: bytes, pick: Pick, others: Sequence[bytes]) -> bytes:
    """Another message than this one, of the same kind, round, sender and receiver."""
    *_, kind, sender, receiver = messages._HEADER.unpack_from(data)
    mine = messages.decode(KINDS[kind], data, plan, sender, receiver)
    fields: list[Any] = list(mine)
    at = pick(len(fields))
    if isinstance(fields[at], bytes):
        fields[at] = altered(fields[at], pick)
    else:
        theirs = read_any(plan, others[pick(len(others))])
        strange = theirs[at] if type(theirs) is type(mine) else fields[at]
        fields[at] = altered_list(list(fields[at]), list(strange), plan.clients, pick)
        if kind == KINDS.index(messages.Unmasking) and pick(2):  # moved over
            fields[1 - at] = sorted({*fields[1 - at], *mine[at]} - {*fields[at]})
    return messages.encode(KINDS[kind](*fields), plan, sender, receiver)


def read_any(plan: secagg.Plan, data: bytes):
    *_, kind, sender, receiver = messages._HEADER.unpack_from(data)
    return messages.decode(KINDS[kind], data, plan, sender, receiver)


def altered(value: bytes, pick: Pick) -> bytes:
    """As many bytes, others."""
    if not value:
        return value
    changed = bytearray(value)
    changed[pick(len(changed))] ^= 1 << pick(8)
    return (bytes(changed), bytes(len(value)), b"\xff" * len(value))[pick(3)]


def altered_list(items: list, strange: list, clients: int, pick: Pick) -> list:
    """A list of clients that is in order, but not the one that it should be."""
    found = {x[0]: x for x in items}
    what = pick(5)
    if what == 0 and found:
        del found[items[pick(len(items))][0]]
    elif what == 1 and strange:
        other = strange[pick(len(strange))]
        found[other[0]] = other
    elif what == 2 and items:  # one's as another's
        one = items[pick(len(items))]
        number = pick(clients)
        found[number] = (number, *one[1:])
    elif what == 3 and items and len(items[0]) > 1:
        number, *rest = items[pick(len(items))]
        at = pick(len(rest))
        rest[at] = altered(rest[at], pick)
        found[number] = (number, *rest)
    elif what == 4 and items:  # two change places
        one, two = items[pick(len(items))], items[pick(len(items))]
        found[one[0]], found[two[0]] = (one[0], *two[1:]), (two[0], *one[1:])
    return [found[number] for number in sorted(found)]


def play(pick: Pick) -> Round:
    """A round in which some lie and some drop out, and nothing goes wrong unseen.

    Raises:
        AssertionError: if something did.
    """
    plan = fixed(PLANS[pick(len(PLANS))])
    server_lies, liars = bool(pick(2)), {pick(plan.clients), pick(plan.clients)}
    round, inbox, opened, loud = Round(plan), {}, Counter(), True
    inbox = dict(round.inbox)
    while round.server.step != "nothing":
        step, answers = round.server.step, {}
        for i, message in inbox.items():
            if message is not None and server_lies and not pick(4):
                others = [x for x in inbox.values() if x is not None]
                message = lie(plan, message, pick, others)
            try:
                answers[i] = round.clients[i].respond(message)
            except secagg.ProtocolError:
                continue
            if step == "openings" and i not in liars:
                count(plan, i, answers[i], opened)
        sent = list(answers.values())
        for i, answer in answers.items():
            if pick(8) == 0:  # dropped out
                continue
            if i in liars and not server_lies and not pick(3):
                answer = lie(plan, answer, pick, sent)
                loud = loud and step != "vectors"  # then it has another vector
            try:
                round.server.receive(i, answer)
            except secagg.ProtocolError:
                assert server_lies or i in liars
        try:
            inbox = dict(round.server.close())
        except secagg.ProtocolError:
            break
    both = {i for i, _ in opened if min(opened[i, "b"], opened[i, "s"]) > 0}
    if plan.signed:  # no two groups of neighbours open a secret each
        for i in both:
            least = min(opened[i, "b"], opened[i, "s"])
            assert least < plan.threshold
    if not server_lies:
        assert not both
        assert all(i in liars for i, says in round.server.accused.items() if not says)
        assert set(round.server.accused) <= liars or liars & {
            x for about in round.server.accused.values() for x in about
        }
    check_total(round, server_lies or not loud)
    return round


def count(plan: secagg.Plan, client: int, answer: bytes, opened: Counter) -> None:
    """Adds to how many have opened which secret of whom."""
    mine = messages.decode(messages.Opened, answer, plan, client, SERVER)
    opened.update((j, "b") for j, _ in mine.self_masks)
    opened.update((j, "s") for j, _ in mine.masking_keys)


def check_total(round: Round, may_differ: bool) -> None:
    """A sum, if there is one, is that of the survivors."""
    try:
        total = round.server.total
    except secagg.WrongStepError:
        return
    survivors = round.server.survivors
    assert len(survivors) >= round.plan.quorum
    if not may_differ:
        assert np.array_equal(total, sum_of(round.plan, round.vectors, survivors))
