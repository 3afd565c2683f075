"""Rounds of the protocol that tests stop, steer and spoil."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from fedagg import secagg
from fedagg.secagg._demands import AnyPlan

CONTEXT = secagg.context_of([], b"what clients are told")


def repeatable(label: str) -> Callable[[int], bytes]:
    """Bytes in place of random ones, the same in every run."""
    count = 0

    def random(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(f"{label} {count}".encode()).digest(size)

    return random


def make_vectors(plan: secagg.Plan, seed: int = 0) -> np.ndarray:
    shape = plan.clients, plan.length
    random = np.random.default_rng(seed)
    return random.integers(0, 2**plan.bits, shape, dtype=np.uint32)


def sum_of(plan: secagg.Plan, vectors: np.ndarray, survivors: Iterable[int]):
    total = vectors[list(survivors)].astype(np.uint64).sum(axis=0)
    return (total % 2**plan.bits).astype(np.uint32)


def fixed(plan: secagg.Plan) -> secagg.Plan:
    """The plan with a session and a seed that are the same in every run."""
    return dataclasses.replace(plan, session=bytes(range(32)), graph_seed=bytes(32))


class Round:
    """Clients and a server, and the messages between them, kept to be looked at."""

    def __init__(self, plan: secagg.Plan, seed: int = 0):
        self.plan, self.vectors = plan, make_vectors(plan, seed)
        identities: list[bytes | None] = [None] * plan.clients
        roster = None
        if plan.signed:
            pairs = [secagg.generate_identity() for _ in range(plan.clients)]
            identities[:], roster = zip(*pairs, strict=True)
        self.identities, self.roster = identities, roster
        self.clients = [self.make_client(i) for i in range(plan.clients)]
        self.server = secagg.Server(plan, roster=roster)
        self.inbox: Mapping[int, bytes | None] = dict.fromkeys(range(plan.clients))
        self.sent: dict[str, dict[int, bytes]] = {}  # by step and client

    def make_client(self, i: int) -> secagg.Client:
        return secagg.Client(
            self.plan,
            i,
            self.vectors[i],
            AnyPlan(),
            identity=self.identities[i],
            roster=self.roster,
            random=repeatable(f"client {i}"),
        )

    def answers(self, without: Iterable[int] = ()) -> dict[int, bytes]:
        """What clients answer in this step, but for some."""
        silent = set(without)
        inbox = {i: x for i, x in self.inbox.items() if i not in silent}
        answers = {i: self.clients[i].respond(x) for i, x in inbox.items()}
        self.sent[self.server.step] = answers
        return answers

    def deliver(self, answers: Mapping[int, bytes]) -> None:
        """Gives the server all answers, and closes the step."""
        for i, message in answers.items():
            self.server.receive(i, message)
        self.inbox = self.server.close()

    def run_until(self, step: str, drop: Mapping[int, str] | None = None) -> "Round":
        """Goes on until the server is in this step; some clients drop out before."""
        while self.server.step != step:
            now = self.server.step
            self.deliver(self.answers(i for i, x in (drop or {}).items() if x == now))
        return self
