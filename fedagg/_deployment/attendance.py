"""Who is away, since when, and what a server tells those who come."""

from typing import NamedTuple

import numpy as np

from fedagg._trees import checks
from fedagg._types import PyTree


class ServerState(NamedTuple):
    """What a server goes on from: arrays, for any checkpoint."""

    training: PyTree  # of `federated_averaging`
    number: np.ndarray  # [] int64, steps so far
    last: np.ndarray  # [clients] int64, the step each was in last; else far behind


class Begun(NamedTuple):
    """What a client begins with."""

    number: int  # of the step, to be given back when it is ready
    told: bytes  # of `Wire(training, variables)`: `decode_shared(told, number)`


class Ready(NamedTuple):
    """What a client that has trained encodes its change by."""

    number: int  # of the step that it is for
    discount: float  # what the change is multiplied by, before it is encoded
    told: bytes  # of the server's wire: `decode_shared(told, number)`


class Attendance:
    """The clients of a `BufferedServer`, which holds its lock around each call."""

    def __init__(self, last: np.ndarray, room: int, most: int, separation: int):
        self.last = last  # [clients] the step that each was in last
        self.away: dict[int, int] = {}  # at which step each began
        self.too_stale = self.lost = 0
        self._room, self._most, self._separation = room, most, separation
        self._asked: dict[int, int] = {}  # for which step each may offer

    def check(self, client: int) -> None:
        """Raises a ValueError for a number that no client has."""
        checks.check_whole(0, len(self.last) - 1, client=client)

    def has_rested(self, client: int, number: int) -> bool:
        return bool(number - self.last[client] >= self._separation)

    def begins(self, client: int, number: int) -> bool:
        """Whether it is sent out at this step, which is noted."""
        is_free = client in self.away or len(self.away) < self._room
        if not is_free or not self.has_rested(client, number):
            return False
        self.forget(client)
        self.away[client] = number
        return True

    def is_awaited(self, client: int, began: int, number: int) -> bool:
        """Whether one that began at a step may offer for this one, which is noted."""
        if number - began > self._most:
            self.too_stale += client in self.away
        elif began > self.last[client] and self.has_rested(client, number):
            self.away[client], self._asked[client] = began, number
            return True
        self.forget(client)
        return False

    def may_offer(self, client: int, number: int) -> bool:
        return self._asked.get(client) == number

    def forget(self, client: int) -> None:
        """It is not away any more."""
        self.away.pop(client, None)
        self._asked.pop(client, None)

    def give_up(self, client: int) -> None:
        self.lost += client in self.away
        self.forget(client)
