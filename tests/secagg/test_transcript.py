"""The bytes on the wire stay what they are: a frozen round, replayed."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from fedagg import secagg
from fedagg.secagg import _kem
from fedagg.secagg._crypto import verifying_key
from fedagg.secagg._demands import AnyPlan
from tests.secagg.rounds import CONTEXT, fixed, repeatable, sum_of

PATH = pathlib.Path(__file__).parents[1] / "data" / "secagg_transcript.json"
FROZEN = json.loads(PATH.read_text())["rounds"] if PATH.exists() else {}
DROP = {1: "shares", 3: "vectors", 4: "openings"}
PLANS = {
    "complete": secagg.Plan.complete(6, 5, 19, CONTEXT, threshold=2),
    "sparse": dataclasses.replace(
        secagg.Plan.complete(9, 5, 32, CONTEXT, threshold=2), degree=4, quorum=2
    ),
    "signed": dataclasses.replace(
        secagg.Plan.complete(8, 5, 8, CONTEXT, threshold=4, signed=True), quorum=5
    ),
    "hybrid": secagg.Plan.complete(6, 5, 8, CONTEXT, threshold=2, hybrid=True),
}


class Encapsulations:
    """Secrets and ciphertexts of ML-KEM, from a list while it lasts, else random."""

    def __init__(self, frozen: list):
        self.frozen, self.made = iter(frozen), []

    def __call__(self, public: bytes) -> tuple[bytes, bytes]:
        pair = next(self.frozen, None) or [x.hex() for x in ENCAPSULATE(public)]
        self.made.append(list(pair))
        return bytes.fromhex(pair[0]), bytes.fromhex(pair[1])


ENCAPSULATE = _kem.encapsulate


def replay(plan: secagg.Plan, encapsulated: list) -> dict:
    """A round with repeatable bytes for random ones: all messages, and the sum."""
    encapsulations = Encapsulations(encapsulated)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_kem, "encapsulate", encapsulations)
        played = play(plan)
    return played | {"encapsulated": encapsulations.made}


def play(plan: secagg.Plan) -> dict:
    mask = np.uint32(2**plan.bits - 1)
    drawn = [hashlib.shake_256(bytes([i])).digest(20) for i in range(plan.clients)]
    vectors = [np.frombuffer(x, "<u4").astype(np.uint32) & mask for x in drawn]
    identities = [hashlib.sha256(b"id%d" % i).digest() for i in range(plan.clients)]
    roster = None
    if plan.signed:
        roster = [verifying_key(x) for x in identities]
    clients = [
        secagg.Client(
            plan,
            i,
            vectors[i],
            AnyPlan(),
            identity=identities[i] if plan.signed else None,
            roster=roster,
            random=repeatable(f"client {i}"),
        )
        for i in range(plan.clients)
    ]
    server = secagg.Server(plan, roster=roster)
    transcript = [("plan", plan.encode().hex())]
    inbox: Any = dict.fromkeys(range(plan.clients))
    while server.step != "nothing":
        for i in sorted(inbox):
            if DROP.get(i) == server.step:
                continue
            message = clients[i].respond(inbox[i])
            transcript.append((f"{i}, {server.step}", message.hex()))
            server.receive(i, message)
        inbox = server.close()
        told = "".join(inbox[i].hex() for i in sorted(inbox))
        transcript.append((f"server, then {server.step}", told))
    expected = sum_of(plan, np.array(vectors), server.survivors)
    assert np.array_equal(server.total, expected)
    return {
        "messages": [list(x) for x in transcript],
        "survivors": list(server.survivors),
        "total": server.total.tolist(),
    }


@pytest.mark.parametrize("name", PLANS)
def test_the_bytes_of_a_round_are_those_that_were_frozen(name):
    frozen = {"encapsulated": [], **FROZEN[name]}

    assert replay(fixed(PLANS[name]), frozen["encapsulated"]) == frozen


def freeze() -> None:
    """Writes the file anew, which changes the version of the wire format."""
    frozen = {name: replay(fixed(plan), []) for name, plan in PLANS.items()}
    PATH.write_text(json.dumps({"rounds": frozen}, indent=0) + "\n")
