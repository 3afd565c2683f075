"""The transport of `notebooks/secagg_demo`, with clients and strangers in one loop."""

import asyncio
import contextlib

import numpy as np
import pytest

from fedagg import secagg
from fedagg.secagg._demands import AnyPlan
from notebooks.secagg_demo.transport import Clients, Connection, TransportError, pack
from tests.secagg.rounds import CONTEXT

LENGTH, LARGEST, SECONDS = 5, 4096, 0.3


class Killed(Exception):
    """A client ends here, after these bytes."""


def vector_of(number: int) -> np.ndarray:
    return np.arange(LENGTH, dtype=np.uint32) + np.uint32(2**31 + number)


def sum_of(numbers) -> np.ndarray:
    return sum((vector_of(i) for i in numbers), np.zeros(LENGTH, np.uint32))


async def take_part(port: int, number: int, spoil=lambda step, answer: answer) -> None:
    """A client. `spoil` makes a step's bytes into what is sent, None for nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connection = Connection(reader, writer, LARGEST, longest=8)
    await connection.send(number)
    client: secagg.Client | None = None
    step = 0
    with contextlib.closing(writer), contextlib.suppress(TransportError, OSError):
        while True:
            frame = await connection.receive(list, bytes)
            if type(frame) is list:
                plan, cohort = secagg.Plan.decode(frame[0]), frame[1]
                client = secagg.Client(
                    plan, cohort.index(number), vector_of(number), AnyPlan()
                )
                step, answer = 0, client.respond()
            else:
                assert client is not None
                step, answer = step + 1, client.respond(frame)
            try:
                sent = spoil(step, pack(answer))
            except Killed as killed:
                writer.write(killed.args[0])
                return
            if sent is None:
                await reader.read()  # until the server has had enough
                return
            writer.write(sent)
            await writer.drain()


@contextlib.asynccontextmanager
async def server(numbers: int):
    """The server's end, its port, and whom it has cut off so far."""
    cut = []
    clients = Clients(
        numbers,
        largest=LARGEST,
        seconds=SECONDS,
        report=lambda number, why: cut.append((number, why)),
    )
    listener = await asyncio.start_server(clients.welcome, "127.0.0.1", 0)
    try:
        yield clients, listener.sockets[0].getsockname()[1], cut
    finally:
        listener.close()
        clients.close()


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def run_round(clients: Clients) -> tuple[np.ndarray, list[int]]:
    cohort = clients.connected()
    plan = secagg.Plan.complete(len(cohort), LENGTH, 32, CONTEXT)
    return await clients.round(cohort, plan, None)


def play(numbers: int, spoilt: dict, rounds: int = 1):
    """Rounds with clients of which some spoil what they send."""

    async def main():
        async with server(numbers) as (clients, port, cut):
            parts = [
                asyncio.create_task(take_part(port, i, *spoilt.get(i, ())))
                for i in range(numbers)
            ]
            await until(lambda: len(clients.connected()) == numbers)
            results = [await run_round(clients) for _ in range(rounds)]
            clients.close()
            await asyncio.gather(*parts)
        return results, cut

    return asyncio.run(main())


SPOILT = {
    "bad bytes": (lambda frame: b"\xc1", "no frame"),
    "an entry too large": (lambda frame: pack(bytes(LARGEST + 1)), "no frame"),
    "a flood": (lambda frame: pack(bytes(2**20)), "too large"),
    "a list": (lambda frame: pack([frame]), "no frame"),
    "a map": (lambda frame: pack({1: 2}), "no frame"),
    "nothing at all": (lambda frame: pack(None), "type NoneType"),
    "another message": (lambda frame: pack(frame), "Expected"),
    "all but a byte": (lambda frame: frame[:-1], "in time"),
    "silence": (lambda frame: None, "in time"),
}


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize(("sent", "why"), SPOILT.values(), ids=SPOILT.keys())
def test_who_sends_nonsense_too_much_or_nothing_drops_out(sent, why, step):
    def spoil(at, frame):
        return sent(frame) if at == step else frame

    [(total, survivors)], cut = play(5, {2: (spoil,)})

    # In the last step, its vector is in the sum already.
    expected = [0, 1, 2, 3, 4] if step == 3 else [0, 1, 3, 4]
    assert survivors == expected
    assert (total == sum_of(expected)).all()
    assert [number for number, _ in cut] == [2] and why in cut[0][1]


@pytest.mark.parametrize("step", range(4))
def test_a_client_that_dies_in_the_middle_of_a_frame_is_out_of_later_rounds(step):
    def die(at, frame):
        if at == step:
            raise Killed(frame[: len(frame) // 2])
        return frame

    results, cut = play(5, {2: (die,)}, rounds=2)

    survivors = [numbers for _, numbers in results]
    assert survivors == [[0, 1, 2, 3, 4] if step == 3 else [0, 1, 3, 4], [0, 1, 3, 4]]
    assert all((total == sum_of(numbers)).all() for total, numbers in results)
    assert cut == [(2, "closed the connection")]


STRANGERS = {
    "a repeated number": (pack(1), "here already"),
    "an unknown number": (pack(99), "nobody expects"),
    "a negative number": (pack(-1), "nobody expects"),
    "something true": (pack(True), "type bool"),
    "bad bytes": (b"\xc1", "no frame"),
    "another protocol": (b"GET / HTTP/1.1\r\n", "nobody expects"),
    "too large a frame": (pack(bytes(2**18)), "too large"),
    "lists in lists": (b"\xdd\x00\x01\x00\x00" * 500, "no frame"),
    "silence": (b"", "in time"),
}


@pytest.mark.parametrize(("sent", "why"), STRANGERS.values(), ids=STRANGERS.keys())
def test_a_stranger_is_refused_and_the_round_is_that_of_the_clients(sent, why):
    async def main():
        async with server(4) as (clients, port, cut):
            parts = [asyncio.create_task(take_part(port, i)) for i in range(4)]
            await until(lambda: len(clients.connected()) == 4)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(OSError):  # refused before all was sent
                writer.write(sent)
                await writer.drain()
            result = await run_round(clients)
            await until(lambda: cut)
            with contextlib.suppress(OSError):
                assert await reader.read() == b""  # it was told nothing
            writer.close()
            clients.close()
            await asyncio.gather(*parts)
        return result, cut

    (total, survivors), cut = asyncio.run(main())

    assert survivors == [0, 1, 2, 3] and (total == sum_of(survivors)).all()
    assert len(cut) == 1 and cut[0][0] is None and why in cut[0][1]


def test_a_round_with_too_few_clients_fails_and_the_next_one_does_not():
    def late(at, frame):
        return None if at == 2 else frame

    async def main():
        async with server(5) as (clients, port, cut):
            spoilt = {0: (late,), 1: (late,), 2: (late,)}
            parts = [
                asyncio.create_task(take_part(port, i, *spoilt.get(i, ())))
                for i in range(5)
            ]
            await until(lambda: len(clients.connected()) == 5)
            with pytest.raises(secagg.TooFewClientsError):
                await run_round(clients)
            result = await run_round(clients)
            clients.close()
            await asyncio.gather(*parts)
        return result, cut

    (total, survivors), cut = asyncio.run(main())

    assert survivors == [3, 4] and (total == sum_of(survivors)).all()
    assert {number for number, _ in cut} == {0, 1, 2}


def test_a_client_that_went_comes_back_under_its_number():
    async def main():
        async with server(3) as (clients, port, _):
            parts = [asyncio.create_task(take_part(port, i)) for i in range(3)]
            await until(lambda: len(clients.connected()) == 3)
            parts[1].cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await parts[1]
            await until(lambda: len(clients.connected()) == 2)
            parts[1] = asyncio.create_task(take_part(port, 1))
            await until(lambda: len(clients.connected()) == 3)
            result = await run_round(clients)
            clients.close()
            await asyncio.gather(*parts)
        return result

    total, survivors = asyncio.run(main())

    assert survivors == [0, 1, 2] and (total == sum_of(survivors)).all()


def test_a_client_that_comes_back_in_the_middle_of_a_round_is_in_the_next_one():
    def die(at, frame):
        if at == 1:
            raise Killed(b"")
        return frame

    def stall(at, frame):  # so that the round takes long enough
        return None if at == 1 else frame

    async def main():
        async with server(8) as (clients, port, cut):

            async def die_and_come_back():
                await take_part(port, 2, die)
                await until(lambda: cut)
                await take_part(port, 2)

            parts = [
                *(asyncio.create_task(take_part(port, i)) for i in (1, 3, 4, 5, 6, 7)),
                asyncio.create_task(take_part(port, 0, stall)),
                asyncio.create_task(die_and_come_back()),
            ]
            await until(lambda: len(clients.connected()) == 8)
            results = [await run_round(clients) for _ in range(2)]
            clients.close()
            await asyncio.gather(*parts)
        return results, cut

    results, cut = asyncio.run(main())

    assert [numbers for _, numbers in results] == [
        [1, 3, 4, 5, 6, 7],
        [1, 2, 3, 4, 5, 6, 7],
    ]
    assert all((total == sum_of(numbers)).all() for total, numbers in results)
    assert [number for number, _ in cut] == [2, 0]
