"""Parties that many threads use at once, as a server of remote calls does."""

import copy
import pickle
import sys
import threading
from multiprocessing.pool import ThreadPool
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from fedagg import secagg
from fedagg.secagg._demands import AnyPlan
from tests.secagg.rounds import CONTEXT, Round, sum_of


@pytest.fixture(autouse=True)
def turns_as_short_as_can_be():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(pool: ThreadPool, run, arguments) -> list:
    """Whether each call went through, all of them begun at one time."""
    barrier = threading.Barrier(len(arguments))

    def one(*own) -> bool:
        barrier.wait()
        try:
            run(*own)
        except secagg.ProtocolError:
            return False
        return True

    return pool.starmap(one, arguments, chunksize=1)


def dawdle() -> None:
    """Gives other threads a turn."""
    for _ in range(3000):
        pass


class SlowSum(np.ndarray):
    """A sum that loses what one of two threads adds, if both can come at once."""

    meeting = threading.Barrier(2)

    def __iadd__(self, other):
        before = np.array(self)
        try:
            self.meeting.wait(0.1)  # a second thread, if one can come
        except threading.BrokenBarrierError:
            self.meeting.reset()
        self[:] = before + other
        return self


class SlowClient(secagg.Client):
    """A client that looks at its step long before it goes on."""

    steps: ClassVar[dict[int, str]] = {}

    @property
    def _step(self) -> str:
        step = self.steps[id(self)]
        dawdle()
        return step

    @_step.setter
    def _step(self, step: str) -> None:
        self.steps[id(self)] = step


@pytest.mark.parametrize("signed", [False, True])
def test_messages_that_come_at_once_and_thrice_count_once(signed):
    plan = secagg.Plan.complete(4, 5, 32, CONTEXT, threshold=2 + signed, signed=signed)
    round = Round(plan)
    round.server._round._sum = round.server._round._sum.view(SlowSum)
    with ThreadPool(12) as pool:
        while round.server.step != "nothing":
            thrice = [x for x in round.answers().items() for _ in range(3)]
            taken = at_once(pool, round.server.receive, thrice)
            assert [sum(taken[i : i + 3]) for i in (0, 3, 6, 9)] == [1, 1, 1, 1]
            round.inbox = round.server.close()

    assert np.array_equal(round.server.total, sum_of(plan, round.vectors, range(4)))


def test_a_step_is_closed_once():
    round = Round(secagg.Plan.complete(4, 5, 32, CONTEXT, threshold=2))
    for i, message in round.answers().items():
        round.server.receive(i, message)

    with ThreadPool(4) as pool:
        closed = at_once(pool, round.server.close, [()] * 4)

    # Who comes later closes the next step, in which nobody has sent anything.
    assert closed.count(True) == 1


def test_a_client_takes_a_step_once_whoever_asks():
    plan = secagg.Plan.complete(6, 5, 32, CONTEXT, threshold=3)
    client = SlowClient(plan, 0, np.arange(5, dtype=np.uint32), AnyPlan())

    with ThreadPool(4) as pool:
        taken = at_once(pool, client.respond, [()] * 4)

    assert taken.count(True) == 1


def test_a_step_that_is_under_way_is_not_taken_again():
    plan = secagg.Plan.complete(3, 5, 32, CONTEXT)
    tried = []

    def random(size: int) -> bytes:
        if not tried:  # in the middle of the first step
            tried.append(size)
            with pytest.raises(secagg.WrongStepError, match="nothing"):
                client.respond()
        return bytes([1]) * size

    client = secagg.Client(plan, 0, np.zeros(5, np.uint32), AnyPlan(), random=random)
    client.respond()

    assert tried


def test_what_is_no_bytes_does_a_server_no_harm():
    round = Round(secagg.Plan.complete(3, 5, 32, CONTEXT, threshold=2))
    no_bytes: list[Any] = [None, 5, "text"]
    for wrong in no_bytes:
        with pytest.raises(TypeError):
            round.server.receive(0, wrong)

    round.run_until("nothing")

    assert round.server.survivors == (0, 1, 2)


def test_a_message_after_a_round_that_failed_is_a_typed_error():
    round = Round(secagg.Plan.complete(4, 5, 32, CONTEXT, threshold=2))
    answers = round.answers()
    round.server.receive(0, answers[0])
    with pytest.raises(secagg.TooFewClientsError):
        round.server.close()

    with pytest.raises(secagg.ContradictionError, match="nothing to send"):
        round.server.receive(1, answers[1])
    assert round.server.waiting_for == frozenset()


def test_a_vector_of_jax_is_taken_and_one_that_is_none_refused_at_once():
    plan = secagg.Plan.complete(3, 4, 20, CONTEXT)
    round = Round(plan)
    vector = jnp.arange(4, dtype=jnp.uint32)
    round.clients[1] = secagg.Client(plan, 1, vector, AnyPlan())
    round.vectors[1] = np.arange(4)

    round.run_until("nothing")

    assert np.array_equal(round.server.total, sum_of(plan, round.vectors, range(3)))
    big_endian = np.arange(4, dtype=">u4")
    no_vectors: list[Any] = [[1, 2, 3, 4], jnp.arange(4.0), big_endian, None]
    for wrong in no_vectors:
        with pytest.raises(ValueError, match="Expected a vector uint32"):
            secagg.Client(plan, 1, wrong, AnyPlan())


def test_a_client_is_not_pickled_or_copied_and_its_secrets_go_with_a_refusal():
    plan = secagg.Plan.complete(4, 5, 32, CONTEXT, threshold=2)
    round = Round(plan).run_until("vectors")
    client = round.clients[0]
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            duplicate(client)

    assert {"_s", "_c", "_b", "_total"} <= vars(client).keys()
    with pytest.raises(secagg.MalformedMessageError):
        client.respond(b"")
    assert vars(client).keys() == {"_lock", "_step"}
    round.deliver(round.answers([0]))
    round.deliver(round.answers())
    assert vars(round.clients[1]).keys() == {"_lock", "_step"}  # it is done
