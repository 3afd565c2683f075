"""The server's part in a round."""

import threading
from collections.abc import Mapping, Sequence

import numpy as np

from fedagg.secagg._errors import ContradictionError, ProtocolError, WrongStepError
from fedagg.secagg._plan import Plan
from fedagg.secagg._round import Round


class Server:
    """The server in one round: bytes of clients in, bytes for clients out.

    In each step, give `receive` what clients send, in any order, then `close` the step
    and send on what it returns. A client that sends nothing in time, or something that
    `receive` refuses, has dropped out. After the last step, `total` is the sum over
    `survivors`. It holds one running sum, to which a vector is added as it comes. Any
    number of threads may use it.

    Args:
        plan: the round's.
        roster: all clients' public Ed25519 keys of 32 bytes, if the plan is signed.

    Raises:
        ValueError: if the roster does not fit the plan.

    Reference: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
        Overhead", 2020, algorithm 2; with signatures, Bonawitz et al., "Practical
        Secure Aggregation for Privacy-Preserving Machine Learning", 2017, figure 4.
    """

    def __init__(self, plan: Plan, *, roster: Sequence[bytes] | None = None):
        self._round = Round(plan, roster)
        self._lock, self._step = threading.Lock(), "keys"
        self._asked = set(range(plan.clients))  # who may send something in this step

    @property
    def step(self) -> str:
        """What is awaited: keys, shares, vectors, signatures, openings, or nothing."""
        return self._step

    @property
    def waiting_for(self) -> frozenset[int]:
        """The clients that have something left to send in this step."""
        with self._lock:
            return frozenset(self._asked)

    @property
    def survivors(self) -> tuple[int, ...]:
        """The clients whose vectors are in the sum, in ascending order."""
        with self._lock:
            return tuple(sorted(self._round.vectors))

    @property
    def accused(self) -> dict[int, tuple[int, ...]]:
        """Who broke the round, by number, with those who say so.

        These could not open the client's envelopes, and have dropped out: either it or
        they lie. Nobody has to say so where its shares gave another secret than it
        announced.
        """
        with self._lock:
            found: dict[int, tuple[int, ...]] = {}
            for client, about in sorted(self._round.complaints.items()):
                for j in about:
                    found[j] = (*found.get(j, ()), client)
            return found | dict.fromkeys(self._round.wrong, ())

    @property
    def total(self) -> np.ndarray:
        """The sum of the survivors' vectors modulo 2**bits, uint32 `[length]`."""
        if self._round.total is None:
            raise WrongStepError("There is no sum before the last step is closed.")
        return self._round.total

    def receive(self, client: int, message: bytes) -> None:
        """Takes a client's message. One that is refused changes nothing.

        Args:
            client: who sent it, as the transport knows.
            message: its bytes.

        Raises:
            ContradictionError: if the client was not asked, or sent something already.
            ProtocolError: of some other kind, if the message is not what was asked for.
        """
        memoryview(message)  # else a TypeError, before it does harm
        with self._lock:
            if client not in self._asked:
                raise ContradictionError(f"Client {client} has nothing to send now.")
            self._asked.remove(client)
            try:
                _STEPS[self._step][0](self._round, client, message)
            except ProtocolError:
                self._asked.add(client)
                raise
            except BaseException:  # nobody knows how far it came
                self._step, self._asked = "nothing", set()
                raise

    def close(self) -> Mapping[int, bytes]:
        """Ends a step: the next messages, by client; none after the last step.

        Each is written when it is asked for.

        Raises:
            TooFewClientsError: if a sum is out of reach: the round has failed.
            RecoveryError: if clients shared wrong secrets: a mask stays unknown.
            WrongStepError: if the round is over.
        """
        with self._lock:
            if self._step == "nothing":
                raise WrongStepError("The round is over.")
            step, self._step, self._asked = self._step, "nothing", set()
            following, outbox = _STEPS[step][1](
                self._round
            )  # if this fails, the round has
            self._step, self._asked = following, set(outbox)
            return outbox


# What takes a message of a step, and what ends it.
_STEPS = {
    "keys": (Round.receive_keys, Round.close_keys),
    "shares": (Round.receive_shares, Round.close_shares),
    "vectors": (Round.receive_vectors, Round.close_vectors),
    "signatures": (Round.receive_signatures, Round.close_signatures),
    "openings": (Round.receive_openings, Round.close_openings),
}
