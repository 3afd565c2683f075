"""A thousand clients in one process, over TLS on loopback, some of whom are killed.

`python -m notebooks.secagg_demo.crowd` is the clients' process; `measure` starts it, is
the server, and says what a round took.
"""

import argparse
import asyncio
import pathlib
import socket
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np

from fedagg import secagg
from notebooks.secagg_demo.certificates import (
    SERVER,
    Authority,
    client_context,
    server_context,
)
from notebooks.secagg_demo.transport import Clients, Kind, answers, connect, pack

ROOT = pathlib.Path(__file__).parents[2]
BITS = 32
AT_ONCE = 32  # clients that connect: all of them share one core
STEPS = ("keys", "shares", "vectors", "openings")
KILLED = ("shares", "vectors", "openings")  # halfway, in turns


class Outcome(NamedTuple):
    """What came of a round."""

    survivors: list[int]
    total: np.ndarray
    cut: list[tuple[int | None, str]]  # who was cut off, and why
    connecting: float  # seconds until all clients were there
    seconds: float  # of the round
    received: int  # bytes of frames, of those who were there at its end


def vector_of(number: int, length: int) -> np.ndarray:
    """What a client sends, so that anybody can say what the sum is."""
    return np.random.default_rng(number).integers(0, 2**BITS, length, dtype=np.uint32)


def sum_of(numbers: list[int], length: int) -> np.ndarray:
    total = np.zeros(length, np.uint32)
    for number in numbers:
        total += vector_of(number, length)
    return total


def those_in_the_sum(clients: int, killed: int) -> list[int]:
    """Of clients of whom the first are killed, those whose vectors came."""
    return [i for i in range(clients) if i >= killed or KILLED[i % 3] == "openings"]


async def take_part(
    folder: pathlib.Path,
    port: int,
    number: int,
    length: int,
    killed: str | None,
    doors: asyncio.Semaphore,
) -> None:
    """A client, which ends with half a frame of the step in which it is killed."""
    async with doors:
        context = client_context(folder, number)
        connection = await connect(port, context, _largest(length))

    def begin(plan: secagg.Plan, cohort: list[int], told: bytes) -> secagg.Client:
        names = [b"client %d" % i for i in cohort]
        demands = secagg.Demands(
            secagg.context_of(names, told), BITS, 2, len(cohort), mode="semi-honest"
        )
        vector = vector_of(number, length)
        return secagg.Client(plan, cohort.index(number), vector, demands)

    steps = iter(STEPS)
    async for _, answer in answers(connection, begin):
        frame = pack(Kind.STEP, answer)
        if next(steps) == killed:
            await connection.send(frame[: len(frame) // 2])
            connection.cut()
            return
        await connection.send(frame)


async def take_part_as_all(
    folder: pathlib.Path, port: int, clients: int, length: int, killed: int
) -> None:
    doors = asyncio.Semaphore(AT_ONCE)
    async with asyncio.TaskGroup() as group:
        for i in range(clients):
            ends = KILLED[i % 3] if i < killed else None
            group.create_task(take_part(folder, port, i, length, ends, doors))


async def measure(
    clients: int, length: int, killed: int, *, seconds: float = 120.0
) -> Outcome:
    """A round of clients in a process of their own, in a sparse graph.

    Args:
        clients: how many.
        length: entries of a vector.
        killed: how many of them are killed.
        seconds: for a step, of the slowest client.
    """
    cut: list[tuple[int | None, str]] = []
    peers = Clients(
        clients,
        largest=_largest(length),
        seconds=seconds,
        handshake=seconds,  # all clients share one core
        pending=AT_ONCE,
        report=lambda number, why: cut.append((number, why)),
    )
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        authority = Authority(folder)
        authority.sign_server()
        for i in range(clients):
            authority.sign_client(i)
        listener = socket.create_server((SERVER, 0), backlog=clients)
        listener.setblocking(False)
        listening = asyncio.create_task(peers.listen(listener, server_context(folder)))
        numbers = listener.getsockname()[1], clients, length, killed
        command = [sys.executable, "-m", "notebooks.secagg_demo.crowd", str(folder)]
        crowd = await asyncio.create_subprocess_exec(
            *command, *map(str, numbers), cwd=ROOT
        )
        try:
            start = time.perf_counter()
            while len(peers.connected()) < clients and crowd.returncode is None:
                await asyncio.sleep(0.01)
            connected = time.perf_counter()
            told = b"nothing"
            names = [b"client %d" % i for i in range(clients)]
            plan = secagg.Plan.for_cohort(
                clients, length, BITS, secagg.context_of(names, told)
            )
            total, survivors = await peers.round(peers.connected(), plan, None, told)
            end = time.perf_counter()
            received = peers.received
        finally:
            listening.cancel()
            peers.close()
            listener.close()
            await crowd.wait()
    took = connected - start, end - connected
    return Outcome(survivors, total, cut, *took, received)


def _largest(length: int) -> int:
    """Bytes of the largest frame: a vector, or what a client gets of its neighbours."""
    return 4 * length + 2**17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    for name in ("port", "clients", "length", "killed"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    asyncio.run(take_part_as_all(**vars(options)))


if __name__ == "__main__":
    main()
