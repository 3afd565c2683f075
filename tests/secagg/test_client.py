"""What a client refuses, and that it then sends nothing more."""

import dataclasses

import numpy as np
import pytest

from fedagg import secagg
from fedagg.secagg import _messages as messages
from fedagg.secagg._demands import AnyPlan
from fedagg.secagg._messages import SERVER
from tests.secagg.rounds import CONTEXT, Round

PLANS = {
    "complete": secagg.Plan.complete(5, 4, 8, CONTEXT, threshold=2),
    "sparse": dataclasses.replace(
        secagg.Plan.complete(9, 4, 8, CONTEXT, threshold=3), degree=4
    ),
    "signed": dataclasses.replace(
        secagg.Plan.complete(5, 4, 8, CONTEXT, threshold=3, signed=True), quorum=3
    ),
    "hybrid": secagg.Plan.complete(5, 4, 8, CONTEXT, threshold=2, hybrid=True),
}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())


def refuses(error, round: Round, message: bytes, pattern: str | None = None):
    """Client 0 refuses, and is then done."""
    with pytest.raises(error, match=pattern):
        round.clients[0].respond(message)
    with pytest.raises(secagg.WrongStepError, match="nothing"):
        round.clients[0].respond(round.inbox[0])


def shares_of(plan: secagg.Plan):
    """The kind of message in which envelopes come."""
    return (
        messages.HybridSharesOfNeighbours
        if plan.hybrid
        else messages.SharesOfNeighbours
    )


def received(round: Round, kind, client: int = 0):
    data = round.inbox[client]
    assert data is not None
    return messages.decode(kind, data, round.plan, SERVER, client)


def told(round: Round, message, client: int = 0) -> bytes:
    return messages.encode(message, round.plan, SERVER, client)


@every_plan
@pytest.mark.parametrize("step", ["shares", "vectors", "openings"])
def test_a_message_of_another_round_receiver_sender_or_step_is_refused(plan, step):
    def fresh() -> Round:
        return Round(plan).run_until(step)

    other = Round(plan.renewed(CONTEXT)).run_until(step)
    earlier = Round(plan).run_until("vectors" if step == "shares" else "shares")
    mirrored = bytearray(fresh().inbox[0] or b"")
    mirrored[34:38], mirrored[38:42] = mirrored[38:42], mirrored[34:38]

    for message, word in (
        (other.inbox[0], "round"),
        (fresh().inbox[1], "receiver"),
        (earlier.inbox[0], "step"),
        (bytes(mirrored), "sender"),
    ):
        refuses(secagg.WrongMessageError, fresh(), message or b"", f"this {word}")


@every_plan
def test_steps_are_taken_once_and_in_order(plan):
    round, earlier = Round(plan), []

    while round.server.step != "nothing":
        client, message = round.clients[0], round.inbox[0]
        with pytest.raises(secagg.WrongStepError):
            client.respond(b"" if message is None else None)
        for before in earlier:
            other = Round(plan).run_until(round.server.step)
            refuses(secagg.WrongMessageError, other, before, "step|round")
        round.deliver(round.answers())
        earlier += [message] if message else []

    with pytest.raises(secagg.WrongStepError):  # a second unmasking
        round.clients[0].respond(earlier[-1])
    assert round.server.survivors == tuple(range(plan.clients))


@every_plan
def test_a_list_of_keys_that_is_wrong_is_refused(plan):
    def fresh():
        round = Round(plan).run_until("shares")
        return round, received(round, messages.KeysOfNeighbours)

    def check(error, change):
        round, now = fresh()
        message = now._replace(keys=change(list(now.keys)))
        refuses(error, round, told(round, message))

    outsider = next(
        (j for j in range(1, plan.clients) if j not in plan.neighbours(0)), None
    )
    check(secagg.ContradictionError, lambda keys: keys[1:])  # without itself
    check(
        secagg.ContradictionError,  # itself, with a key that is not its own
        lambda keys: [(0, keys[1][1], *keys[0][2:]), *keys[1:]],
    )
    check(secagg.MalformedMessageError, lambda keys: [*keys, keys[-1]])
    check(secagg.MalformedMessageError, lambda keys: keys[::-1])
    check(secagg.MalformedMessageError, lambda k: [*k, (plan.clients, *k[1][1:])])
    check(
        secagg.ContradictionError,  # two clients with one key
        lambda keys: [*keys[:-1], (keys[-1][0], *keys[1][1:])],
    )
    check(secagg.TooFewClientsError, lambda keys: keys[: plan.threshold])
    if outsider is not None:
        check(
            secagg.ContradictionError,
            lambda keys: sorted([*keys, (outsider, b"k" * 32, b"k" * 32, bytes(64))]),
        )


def test_keys_that_are_not_signed_by_their_owner_are_refused():
    for spoil in ("agreement", "masking", "signature", "swapped"):
        round = Round(PLANS["signed"]).run_until("shares")
        now = received(round, messages.KeysOfNeighbours)
        keys = list(now.keys)
        j, c, s, signature = keys[1]
        keys[1] = {
            "agreement": (j, bytes([9]) * 32, s, signature),
            "masking": (j, c, bytes([9]) * 32, signature),
            "signature": (j, c, s, bytes(64)),
            "swapped": (j, *keys[2][1:3], keys[2][3]),
        }[spoil]
        if spoil == "swapped":
            keys.pop(2)

        message = told(round, now._replace(keys=keys))

        refuses(secagg.NotAuthenticError, round, message, "signature")


def test_digests_of_keys_that_are_not_everyones_are_refused():
    def check(plan, error, change):
        round = Round(plan).run_until("shares")
        now = received(round, messages.KeysOfNeighbours)
        message = now._replace(everyone=change(list(now.everyone)))
        refuses(error, round, told(round, message))

    signed, wrong = PLANS["signed"], secagg.ContradictionError
    check(signed, wrong, lambda x: [x[0], (1, bytes(32)), *x[2:]])
    check(signed, wrong, lambda x: x[1:])  # without its own
    check(signed, wrong, lambda x: [])
    check(PLANS["complete"], wrong, lambda x: [(0, bytes(32))])


def test_clients_that_were_told_of_different_keys_open_nothing():
    """A server tells client 0 of other keys of a client that is not its neighbour."""
    plan = dataclasses.replace(PLANS["signed"], clients=9, quorum=6, degree=4)
    round = Round(plan).run_until("shares")
    stranger = next(j for j in range(1, 9) if j not in plan.neighbours(0))
    now = received(round, messages.KeysOfNeighbours)
    lie = [(j, bytes(32) if j == stranger else x) for j, x in now.everyone]
    answers = {0: round.clients[0].respond(told(round, now._replace(everyone=lie)))}
    round.deliver(round.answers([0]) | answers)
    round.deliver(round.answers())

    mine = round.clients[0].respond(round.inbox[0])
    with pytest.raises(secagg.NotAuthenticError, match="signature"):
        round.server.receive(0, mine)
    for i, message in round.answers([0]).items():
        round.server.receive(i, message)
    unmasking = round.server.close()[1]
    lists = messages.decode(messages.Unmasking, unmasking, plan, SERVER, 1)
    alive = [(j,) for j in plan.neighbours(0)]
    message = messages.Unmasking(alive, [], lists.signatures)
    refuses(secagg.NotAuthenticError, round, told(round, message), "signature")


def test_a_key_in_another_form_is_refused():
    round = Round(PLANS["complete"]).run_until("shares")
    now = received(round, messages.KeysOfNeighbours)
    for at in (1, 2):
        keys = [list(x) for x in now.keys]
        keys[1][at] = keys[1][at][:-1] + bytes([keys[1][at][-1] ^ 128])
        other = Round(PLANS["complete"]).run_until("shares")
        message = told(other, now._replace(keys=[tuple(x) for x in keys]))
        refuses(secagg.NotAuthenticError, other, message, "one form")


def test_a_key_of_small_order_is_refused():
    round = Round(PLANS["complete"]).run_until("shares")
    now = received(round, messages.KeysOfNeighbours)
    keys = list(now.keys)
    keys[1] = (keys[1][0], bytes(32), *keys[1][2:])

    message = told(round, now._replace(keys=keys))

    refuses(secagg.NotAuthenticError, round, message, "small order")


@every_plan
def test_envelopes_that_are_wrong_are_refused(plan):
    def check(error, change):
        round = Round(plan).run_until("vectors")
        came = received(round, shares_of(plan))
        envelopes = list(came.envelopes)
        sent = came._replace(envelopes=change(envelopes))
        refuses(error, round, told(round, sent))

    check(secagg.TooFewClientsError, lambda x: x[: plan.threshold - 1])
    check(secagg.MalformedMessageError, lambda x: [x[0], *x])
    check(secagg.ContradictionError, lambda x: [(0, *x[0][1:]), *x])  # its own


@every_plan
def test_a_client_names_those_whose_envelopes_do_not_open_and_is_done(plan):
    def check(change, count=1):
        round = Round(plan).run_until("vectors")
        came = received(round, shares_of(plan))
        envelopes = list(came.envelopes)
        names = [(j,) for j, *_ in envelopes[:count]]
        sent = came._replace(envelopes=change(envelopes))
        answer = round.clients[0].respond(told(round, sent))

        complaint = messages.decode(messages.Complaint, answer, plan, 0, SERVER)
        assert list(complaint.clients) == names
        with pytest.raises(secagg.WrongStepError, match="nothing"):
            round.clients[0].respond(round.inbox[0])

    def spoilt(at):
        def change(envelopes):
            first, *rest = envelopes
            changed = bytearray(first[at])
            changed[-1] ^= 1
            return [(*first[:at], bytes(changed), *first[at + 1 :]), *rest]

        return change

    for at in (1, 2, 3):  # the envelope, and the digests of both shares
        check(spoilt(at))
    check(lambda x: [(x[0][0], *x[1][1:]), (x[1][0], *x[0][1:]), *x[2:]], 2)


def test_an_envelope_of_a_client_that_dropped_out_before_is_refused():
    round = Round(PLANS["complete"]).run_until("vectors", {4: "keys"})
    envelopes = list(received(round, messages.SharesOfNeighbours).envelopes)

    message = told(
        round,
        messages.SharesOfNeighbours([*envelopes, (4, bytes(92), bytes(32), bytes(32))]),
    )

    refuses(secagg.ContradictionError, round, message, "not expected")


def test_an_envelope_with_what_is_no_share_does_not_open():
    from fedagg.secagg._envelopes import Way, open_shares, seal_shares

    way, agreed = Way(PLANS["complete"], 1, 0), bytes(32)
    good = seal_shares(way, agreed, (5, 2**256 - 190), bytes)
    wrong = seal_shares(way, agreed, (5, 2**256 - 1), bytes)

    assert open_shares(way, agreed, *good)[0] == (5).to_bytes(32)
    with pytest.raises(secagg.MalformedMessageError, match="Client 1 sent no share"):
        open_shares(way, agreed, *wrong)


@every_plan
def test_lists_that_would_open_both_secrets_or_a_strangers_are_refused(plan):
    step = "openings"
    drop = {1: "keys", 2: "vectors"} if plan is PLANS["complete"] else {}

    def check(error, change, pattern=None):
        round = Round(plan).run_until(step, drop)
        now = received(round, messages.Unmasking)
        alive, dropped = change(list(now.alive), list(now.dropped))
        message = messages.Unmasking(sorted(alive), sorted(dropped), now.signatures)
        refuses(error, round, told(round, message), pattern)

    last = max(plan.neighbours(0))
    wrong, malformed = secagg.ContradictionError, secagg.MalformedMessageError
    check(wrong, lambda a, d: (a, [*d, (last,)]), "both alive and dropped")
    check(wrong, lambda a, d: (a, [*d, (0,)]))  # itself
    check(wrong, lambda a, d: ([*a, (0,)], d))
    check(wrong, lambda a, d: (a[1:], d))  # says nothing of somebody
    check(malformed, lambda a, d: (a, [*d, (last,), (last,)]), "once")
    check(malformed, lambda a, d: (a, [*d, (plan.clients,)]), "below")
    few = plan.threshold - 1
    check(secagg.TooFewClientsError, lambda a, d: (a[:few], [*d, *a[few:]]))
    if drop:
        check(wrong, lambda a, d: (a, [*d, (1,)]))  # dropped out before it shared
        check(wrong, lambda a, d: ([*a, (1,)], d))


@pytest.mark.parametrize("degree", [4, 8])
def test_a_client_counts_its_neighbours_towards_the_quorum(degree):
    """Of nine with a quorum of eight one is gone at most, wherever it stands."""
    plan = secagg.Plan.complete(9, 4, 8, CONTEXT, threshold=2)
    plan = dataclasses.replace(plan, degree=degree, quorum=8)
    for gone, refused in ((1, False), (2, True)):
        round = Round(plan).run_until("openings")
        alive = plan.neighbours(0)
        lists = [(j,) for j in alive[gone:]], [(j,) for j in alive[:gone]]
        message = told(round, messages.Unmasking(*lists, []))
        if refused:
            refuses(secagg.TooFewClientsError, round, message, "neighbours")
        else:
            round.clients[0].respond(message)


def test_a_list_of_survivors_that_is_wrong_is_refused():
    plan = PLANS["signed"]

    def check(error, survivors, drop=None):
        round = Round(plan).run_until("signatures", drop)
        message = messages.Survivors([(j,) for j in survivors])
        refuses(error, round, told(round, message))

    check(secagg.ContradictionError, [1, 2, 3, 4])  # without itself
    check(secagg.TooFewClientsError, [0, 1])
    check(secagg.MalformedMessageError, [0, 1, 1, 2])
    check(secagg.ContradictionError, [0, 1, 2, 3, 4], {4: "shares"})


def test_survivors_that_no_quorum_signed_are_refused():
    plan = PLANS["signed"]

    def check(error, change):
        round = Round(plan).run_until("openings")
        now = received(round, messages.Unmasking)
        message = now._replace(signatures=change(list(now.signatures)))
        refuses(error, round, told(round, message))

    check(secagg.TooFewClientsError, lambda x: x[:2])
    check(secagg.MalformedMessageError, lambda x: [x[0], x[0], x[0]])
    check(secagg.NotAuthenticError, lambda x: [*x[:2], (x[2][0], x[3][1])])


def test_signatures_under_another_list_of_survivors_are_refused():
    """A server tells client 0 that 4 dropped out, and the others that it did not."""
    round = Round(PLANS["signed"]).run_until("signatures")
    lie = told(round, messages.Survivors([(0,), (1,), (2,), (3,)]))
    mine = round.clients[0].respond(lie)
    others = {i: round.clients[i].respond(round.inbox[i]) for i in range(1, 5)}
    signatures = [
        (i, messages.decode(messages.Consistency, x, round.plan, i, SERVER).signature)
        for i, x in {0: mine, **others}.items()
    ]
    message = messages.Unmasking([(1,), (2,), (3,)], [(4,)], signatures[:4])

    refuses(secagg.NotAuthenticError, round, told(round, message), "signature")


def test_a_signed_list_of_survivors_is_kept_to():
    round = Round(PLANS["signed"]).run_until("openings")
    now = received(round, messages.Unmasking)
    message = messages.Unmasking([(1,), (2,), (3,)], [(4,)], now.signatures)

    refuses(secagg.ContradictionError, round, told(round, message), "was signed")


def test_signatures_in_a_round_without_are_refused():
    round = Round(PLANS["complete"]).run_until("openings")
    now = received(round, messages.Unmasking)

    message = told(round, now._replace(signatures=[(1, bytes(64))]))

    refuses(secagg.ContradictionError, round, message, "plan has none")


def test_no_answer_shows_a_secret_and_neither_does_the_client():
    round = Round(PLANS["complete"]).run_until("shares")
    client = round.clients[0]

    assert all(x not in round.sent["keys"][0] for x in (client._c, client._s))
    assert client._s.hex() not in repr(client) + str(vars(round.server))


def test_masks_are_made_of_fresh_keys_in_each_round():
    plan = PLANS["complete"]
    vector = np.zeros(4, np.uint32)

    keys = {secagg.Client(plan, 0, vector, AnyPlan()).respond() for _ in range(3)}

    assert len(keys) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": 5}, "below 5"),
        ({"index": -1}, "below 5"),
        ({"vector": np.zeros(3, np.uint32)}, r"uint32 \[4\]"),
        ({"vector": np.zeros(4, np.int32)}, r"uint32 \[4\]"),
        ({"vector": np.full(4, 256, np.uint32)}, r"below 2\*\*8"),
        ({"identity": bytes(32)}, "identity"),
        ({"roster": [bytes(32)] * 5}, "roster"),
    ],
)
def test_arguments_that_do_not_fit_the_plan_are_refused(change, message):
    arguments = {"index": 0, "vector": np.zeros(4, np.uint32)} | change
    index, vector = arguments.pop("index"), arguments.pop("vector")

    with pytest.raises(ValueError, match=message):
        secagg.Client(PLANS["complete"], index, vector, AnyPlan(), **arguments)


def test_a_signed_plan_wants_a_roster_with_the_clients_identity():
    plan, vector = PLANS["signed"], np.zeros(4, np.uint32)
    pairs = [secagg.generate_identity() for _ in range(5)]
    roster = [public for _, public in pairs]

    for identity, keys, message in (
        (None, roster, "identity"),
        (pairs[0][0], None, "roster"),
        (pairs[0][0], roster[:4], "5 keys"),
        (pairs[0][0], [roster[0]] * 5, "different"),
        (pairs[1][0], roster, "the roster has"),
    ):
        with pytest.raises(ValueError, match=message):
            secagg.Client(plan, 0, vector, AnyPlan(), identity=identity, roster=keys)
