"""Hybrid plans: closed while X25519 or ML-KEM-768 is, and no lie goes unseen."""

import dataclasses
import re

import numpy as np
import pytest

from fedagg import secagg
from fedagg.secagg import _agreement, _crypto, _envelopes, _kem, _seeds, _statements
from fedagg.secagg import _messages as messages
from fedagg.secagg._messages import SERVER
from tests.secagg.rounds import CONTEXT, Round, sum_of
from tests.secagg.test_crypto import VECTORS

PLAN = secagg.Plan.complete(5, 3, 9, CONTEXT, threshold=3, hybrid=True)
CLASSICAL = dataclasses.replace(PLAN, hybrid=False)


def test_ml_kem_is_that_of_fips_203():
    text = (VECTORS / "asymmetric/MLKEM/kat_MLKEM_768.rsp").read_text()
    found = re.findall(r"^(\w+) = ([0-9a-f]+)$", text, re.M)
    row = {name: bytes.fromhex(x) for name, x in found[:11] if name != "count"}
    key = _kem.private_key(row["d"] + row["z"])

    assert _kem.public_key(key) == row["pk"]
    assert _kem.decapsulate(key, row["ct"]) == row["ss"]
    assert _kem.decapsulate(key, row["ct_n"]) == row["ss_n"]  # none of this key's
    secret, sent = _kem.encapsulate(row["pk"])
    assert _kem.decapsulate(key, sent) == secret


def test_an_ml_kem_key_has_one_form():
    key = _kem.public_key(_kem.private_key(bytes(64)))

    _kem.check_form(key)
    for wrong in (b"\xff" * 3 + key[3:], key[:-1], b""):
        with pytest.raises(secagg.NotAuthenticError, match="one form"):
            _kem.check_form(wrong)


@pytest.mark.parametrize("step", ["keys", "shares", "vectors", "openings"])
@pytest.mark.parametrize("client", [0, 2, 4])
def test_whoever_drops_out_the_sum_is_that_of_the_survivors(step, client):
    round = Round(PLAN).run_until("nothing", {client: step})

    survivors = round.server.survivors
    assert len(survivors) == 5 - (step != "openings")
    assert np.array_equal(round.server.total, sum_of(PLAN, round.vectors, survivors))


def test_a_seed_is_hidden_from_the_server_until_a_masking_secret_is_opened():
    own, other = bytes(range(32)), bytes([1]) * 32
    publics = {j: _agreement.key_of(PLAN, bytes([j]) * 32).public for j in (1, 2)}
    seeds, sent = _seeds.make_seeds(PLAN, 0, own, publics)

    for j, _, hidden, digest in sent:
        assert hidden != seeds[j].secret
        way = PLAN, 0, j
        assert _seeds.recover_seed(*way, own, hidden, digest) == seeds[j].secret
        assert _seeds.recover_seed(*way, other, hidden, digest) is None
    # The pads are of their own, or the server had what two seeds differ in.
    pads = [
        bytes(x ^ y for x, y in zip(hidden, seeds[j].secret, strict=True))
        for j, _, hidden, _ in sent
    ]
    assert pads[0] != pads[1]


def test_what_it_costs_is_what_the_page_says():
    sent, received = {}, {}
    for plan in (PLAN, CLASSICAL):
        round = Round(plan).run_until("shares")
        keys = round.inbox[4] or b""
        round.run_until("vectors")
        sent[plan.hybrid] = [len(round.sent[x][0]) for x in ("keys", "shares")]
        received[plan.hybrid] = [len(keys), len(round.inbox[4] or b"")]

    def more(sizes) -> list[int]:
        return [x - y for x, y in zip(sizes[True], sizes[False], strict=True)]

    # A ciphertext for each of four neighbours. Client 0 has a seed for each too, and
    # client 4 gets one of each.
    assert more(sent) == [2 * 1184, 4 * 1088 + 4 * (4 + 1088 + 64) + 4]
    assert more(received) == [5 * 2 * 1184, 4 * 1088 + 4 * (4 + 1088 + 32) + 4]
    # Of 22 neighbours half have higher numbers, on average.
    assert round_to_thousands(2 * 1184 + 22 * 1088 + 11 * 1156) == 39
    assert round_to_thousands(23 * 2 * 1184 + 22 * 1088 + 11 * 1124) == 91


def round_to_thousands(size: int) -> int:
    return (size + 500) // 1000


def test_a_plan_says_that_it_is_hybrid_and_clients_may_demand_it():
    assert secagg.Plan.decode(PLAN.encode()) == PLAN
    assert PLAN.identifier != CLASSICAL.identifier
    assert secagg.Plan.for_cohort(60, 1, 8, CONTEXT, hybrid=True).hybrid
    demands = secagg.Demands(CONTEXT, 9, 2, 9, adversary=0.0, hybrid=True)

    demands.check(PLAN)
    with pytest.raises(secagg.ContradictionError, match="hybrid"):
        demands.check(CLASSICAL)
    dataclasses.replace(demands, hybrid=False).check(PLAN)


class Recorded:
    """All that a server saw of a round, and the clients' keys, for who broke a part."""

    def __init__(self):
        self.round = Round(PLAN)
        keys = self.round.answers()
        self.c = [_agreement.key_of(PLAN, x._c) for x in self.round.clients]
        self.s = [_agreement.key_of(PLAN, x._s) for x in self.round.clients]
        self.public = {
            i: messages.decode(messages.Keys, x, PLAN, i, SERVER)
            for i, x in keys.items()
        }
        self.round.deliver(keys)
        self.dealt = {
            i: messages.decode(messages.HybridShares, x, PLAN, i, SERVER)
            for i, x in self.round.answers().items()
        }


def test_an_envelope_stays_closed_to_who_has_one_of_the_two_secrets():
    seen = Recorded()
    _, envelope, *digests = seen.dealt[0].envelopes[2]  # from 0 to 3
    way = _envelopes.Way(PLAN, 0, 3)
    sender, receiver = seen.public[0].agreement, seen.public[3].agreement
    sent, sealed = envelope[:1088], envelope[1088:]
    told = _agreement.decapsulated(seen.c[3], sent)
    known = sender + receiver + sent

    both = _agreement.agree(PLAN, seen.c[3], sender, told, known)
    curve_only = _agreement.agree(PLAN, seen.c[3], sender, bytes(32), known)
    stranger = _agreement.key_of(PLAN, bytes(32))
    lattice_only = _agreement.agree(PLAN, stranger, sender, told, known)

    assert _envelopes.open_shares(way, both, sealed, *digests)
    for agreed in (curve_only, lattice_only):
        with pytest.raises(secagg.NotAuthenticError):
            _envelopes.open_shares(way, agreed, sealed, *digests)


def test_a_pairwise_mask_needs_both_secrets_too():
    seen = Recorded()
    _, sent, _, digest = seen.dealt[0].seeds[2]  # from 0 to 3
    seed = _seeds.receive_seed(PLAN, 0, 3, seen.s[3], sent, digest)
    public = seen.public[0].masking

    mask = _statements.pairwise_mask(PLAN, 3, seen.s[3], 0, public, seed)
    without_seed = _statements.pairwise_mask(
        PLAN, 3, seen.s[3], 0, public, seed._replace(secret=bytes(32))
    )
    other = _statements.pairwise_mask(
        PLAN, 0, seen.s[0], 3, seen.public[3].masking, seed
    )

    assert mask.key == other.key and mask.sign == -other.sign
    assert mask.key != without_seed.key
    assert _crypto.agree(seen.s[3].curve, public[:32]) not in mask.key


def changed_seed(data: bytes, owner: int, at: int) -> bytes:
    """The owner's message, with another ciphertext (0) or hidden secret (1) for 4."""
    dealt = messages.decode(messages.HybridShares, data, PLAN, owner, SERVER)
    *seeds, (holder, sent, hidden, digest) = dealt.seeds
    last = [sent, hidden]
    last[at] = bytes([last[at][0] ^ 1]) + last[at][1:]
    wrong = dealt._replace(seeds=[*seeds, (holder, last[0], last[1], digest)])
    return messages.encode(wrong, PLAN, owner, SERVER)


def test_who_sends_another_seed_than_it_says_is_named_by_who_gets_it():
    round = Round(PLAN).run_until("shares")
    answers = round.answers()
    round.deliver(answers | {1: changed_seed(answers[1], 1, 0)})

    for i, message in round.answers().items():
        round.server.receive(i, message)

    assert round.server.accused == {1: (4,)}


@pytest.mark.parametrize(
    "at, gone",
    [(0, 4), (1, 1)],
    ids=["the receiver is gone before it looks", "the owner drops out"],
)
def test_a_seed_that_the_server_cannot_recover_is_an_error_with_its_owners_name(
    at, gone
):
    round = Round(PLAN).run_until("shares")
    answers = round.answers()
    round.deliver(answers | {1: changed_seed(answers[1], 1, at)})
    round.deliver(round.answers(without=[gone]))

    with pytest.raises(secagg.RecoveryError, match=r"\[1\]"):
        round.deliver(round.answers())

    assert round.server.accused == {1: ()}


def test_seeds_for_others_than_the_higher_neighbours_are_refused():
    round = Round(PLAN).run_until("shares")
    answers = round.answers()
    dealt = messages.decode(messages.HybridShares, answers[1], PLAN, 1, SERVER)
    for seeds in (dealt.seeds[1:], [(0, *dealt.seeds[0][1:]), *dealt.seeds]):
        wrong = messages.encode(dealt._replace(seeds=seeds), PLAN, 1, SERVER)
        with pytest.raises(secagg.ContradictionError, match="seeds"):
            round.server.receive(1, wrong)
    round.deliver(answers)

    told = messages.decode(
        messages.HybridSharesOfNeighbours, round.inbox[3] or b"", PLAN, SERVER, 3
    )
    fewer = messages.encode(told._replace(seeds=told.seeds[1:]), PLAN, SERVER, 3)
    with pytest.raises(secagg.ContradictionError, match="lower neighbours"):
        round.clients[3].respond(fewer)
