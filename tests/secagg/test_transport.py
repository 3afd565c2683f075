"""The transport of `notebooks/secagg_demo`, with clients and strangers in one loop."""

import asyncio
import contextlib
import shutil
import socket
import ssl

import numpy as np
import pytest

from fedagg import secagg
from fedagg.secagg._demands import AnyPlan
from notebooks.secagg_demo import crowd
from notebooks.secagg_demo.certificates import (
    SERVER,
    Authority,
    client_context,
    number_of,
    server_context,
)
from notebooks.secagg_demo.transport import (
    Clients,
    Kind,
    answers,
    connect,
    pack,
)
from tests.secagg.rounds import CONTEXT

LENGTH, LARGEST, SECONDS = 5, 4096, 0.3
MOST, UNEXPECTED = 8, 99


class Killed(Exception):
    """A client ends here, after these bytes."""


def vector_of(number: int) -> np.ndarray:
    return np.arange(LENGTH, dtype=np.uint32) + np.uint32(2**31 + number)


def sum_of(numbers) -> np.ndarray:
    return sum((vector_of(i) for i in numbers), np.zeros(LENGTH, np.uint32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Certificates of a server and of clients, and below, those of somebody else."""
    place = tmp_path_factory.mktemp("certificates")
    authority = Authority(place)
    authority.sign_server()
    for number in (*range(MOST), UNEXPECTED):
        authority.sign_client(number)
    Authority(place / "elsewhere").sign_client(1)
    shutil.copy(place / "authority.pem", place / "elsewhere")  # trusts our server
    return place


async def take_part(
    folder, port: int, number: int, spoil=lambda step, frame: frame
) -> None:
    """A client. `spoil` makes a step's bytes into what is sent, None for nothing."""
    connection = await connect(port, client_context(folder, number), LARGEST)

    def begin(plan, cohort, told):
        return secagg.Client(plan, cohort.index(number), vector_of(number), AnyPlan())

    current, step = None, 0
    try:
        async for plan, answer in answers(connection, begin):
            step = step + 1 if plan is current else 0
            current = plan
            sent = spoil(step, pack(Kind.STEP, answer))
            if sent is not None:
                await connection.send(sent)
    except Killed as killed:
        await connection.send(killed.args[0])
    except OSError:  # the server has had enough
        return
    finally:
        connection.cut()


@contextlib.asynccontextmanager
async def server(folder, numbers: int, *, pending: int = 4, handshake: float = SECONDS):
    """The server's end, its port, and whom it has cut off so far."""
    cut = []
    clients = Clients(
        numbers,
        largest=LARGEST,
        seconds=SECONDS,
        handshake=handshake,
        pending=pending,
        report=lambda number, why: cut.append((number, why)),
    )
    with socket.create_server((SERVER, 0), backlog=64) as listener:
        listener.setblocking(False)
        listening = asyncio.create_task(
            clients.listen(listener, server_context(folder))
        )
        try:
            yield clients, listener.getsockname()[1], cut
        finally:
            listening.cancel()
            clients.close()
            with contextlib.suppress(asyncio.CancelledError):
                await listening


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def run_round(clients: Clients) -> tuple[np.ndarray, list[int]]:
    cohort = clients.connected()
    plan = secagg.Plan.complete(len(cohort), LENGTH, 32, CONTEXT)
    return await clients.round(cohort, plan, None, b"told")


@contextlib.asynccontextmanager
async def parts(folder, clients: Clients, port: int, spoilt: dict):
    """Clients that take part, with what they spoil, all of them connected."""
    tasks = {
        i: asyncio.create_task(take_part(folder, port, i, *how))
        for i, how in spoilt.items()
    }
    await until(lambda: len(clients.connected()) == len(tasks))
    yield tasks
    clients.close()
    await asyncio.gather(*tasks.values())


def play(folder, numbers: int, spoilt: dict, rounds: int = 1):
    """Rounds with clients of which some spoil what they send."""

    async def main():
        async with server(folder, numbers) as (clients, port, cut):
            everybody = {i: spoilt.get(i, ()) for i in range(numbers)}
            async with parts(folder, clients, port, everybody):
                results = [await run_round(clients) for _ in range(rounds)]
        return results, cut

    return asyncio.run(main())


STEPS = [0, *(pytest.param(i, marks=pytest.mark.deep) for i in (1, 2, 3))]
SPOILT = {
    "half a frame": (lambda frame: frame[: len(frame) // 2], "in time"),
    "too large a frame": (lambda frame: pack(Kind.STEP, bytes(2**20)), "too large"),
    "another kind": (lambda frame: pack(Kind.PLAN, frame[5:]), "of kind 1"),
    "a kind that is none": (lambda frame: b"\xff" + frame, "of kind 255"),
    "an empty message": (lambda frame: pack(Kind.STEP, b""), "Expected"),
    "another message": (lambda frame: pack(Kind.STEP, frame), "Expected"),
    "all but a byte": (lambda frame: frame[:-1], "in time"),
    "half a header": (lambda frame: frame[:3], "in time"),
    "silence": (lambda frame: None, "in time"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("sent", "why"), SPOILT.values(), ids=SPOILT.keys())
def test_who_sends_nonsense_too_much_or_nothing_drops_out(folder, sent, why, step):
    def spoil(at, frame):
        return sent(frame) if at == step else frame

    [(total, survivors)], cut = play(folder, 5, {2: (spoil,)})

    # In the last step, its vector is in the sum already.
    expected = [0, 1, 2, 3, 4] if step == 3 else [0, 1, 3, 4]
    assert survivors == expected
    assert (total == sum_of(expected)).all()
    assert [number for number, _ in cut] == [2] and why in cut[0][1]


@pytest.mark.parametrize("step", STEPS)
def test_a_client_that_dies_halfway_in_a_frame_is_out_of_later_rounds(folder, step):
    def die(at, frame):
        if at == step:
            raise Killed(frame[: len(frame) // 2])
        return frame

    results, cut = play(folder, 5, {2: (die,)}, rounds=2)

    survivors = [numbers for _, numbers in results]
    assert survivors == [[0, 1, 2, 3, 4] if step == 3 else [0, 1, 3, 4], [0, 1, 3, 4]]
    assert all((total == sum_of(numbers)).all() for total, numbers in results)
    assert cut == [(2, "closed the connection")]


def trusting(folder) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=folder / "authority.pem")


def as_server(folder) -> ssl.SSLContext:
    context = trusting(folder)
    context.load_cert_chain(folder / "server.pem")
    return context


def older(folder) -> ssl.SSLContext:
    context = client_context(folder, 1)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


# What a stranger connects with, what it sends, and what is said of it.
STRANGERS = {
    "of another authority": (
        lambda folder: client_context(folder / "elsewhere", 1),
        b"",
        "CERTIFICATE_VERIFY_FAILED",
    ),
    "of an unexpected number": (
        lambda folder: client_context(folder, UNEXPECTED),
        b"",
        "nobody expects",
    ),
    "without a certificate": (trusting, b"", "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
    "with that of the server": (as_server, b"", "CERTIFICATE_VERIFY_FAILED"),
    "of an older TLS": (older, b"", "UNSUPPORTED_PROTOCOL"),
    "without TLS": (lambda folder: None, b"GET / HTTP/1.1\r\n\r\n", "HTTP_REQUEST"),
    "of half a handshake": (lambda folder: None, b"\x16\x03\x01\x02\x00", "in time"),
    "silent": (lambda folder: None, b"", "in time"),
}


@pytest.mark.parametrize(
    ("context", "sent", "why"), STRANGERS.values(), ids=STRANGERS.keys()
)
def test_a_stranger_is_refused_and_the_round_is_that_of_the_clients(
    folder, context, sent, why
):
    async def main():
        async with server(folder, 4) as (clients, port, cut):
            async with parts(folder, clients, port, dict.fromkeys(range(4), ())):
                with contextlib.suppress(OSError):
                    reader, writer = await asyncio.open_connection(
                        SERVER, port, ssl=context(folder)
                    )
                    writer.write(sent)
                result = await run_round(clients)
                await until(lambda: cut)
                with contextlib.suppress(OSError, UnboundLocalError):
                    assert await reader.read() == b""  # it was told nothing
                    writer.close()
        return result, cut

    (total, survivors), cut = asyncio.run(main())

    assert survivors == [0, 1, 2, 3] and (total == sum_of(survivors)).all()
    assert len(cut) == 1 and cut[0][0] is None and why in cut[0][1]


@pytest.mark.parametrize(
    ("names", "number"),
    [
        (["client-0"], 0),
        (["client-12"], 12),
        ([], None),  # of an authority that writes names elsewhere
        (["client-01"], None),  # else two certificates would be one client's
        (["client-\u0663"], None),
        (["client-1", "client-2"], None),
        (["server"], None),
        (["client-"], None),
        (["client-1\n"], None),
    ],
)
def test_a_number_is_written_in_one_way_and_who_has_none_is_a_stranger(names, number):
    subject = [(("organizationName", "client-3"),)]
    subject += [(("commonName", x),) for x in names]

    assert number_of({"subject": tuple(subject)}) == number


def test_strangers_that_say_nothing_go_by_turns_and_clients_get_theirs(folder):
    async def main():
        async with server(folder, 3, pending=2) as (clients, port, cut):
            squatters = [await asyncio.open_connection(SERVER, port) for _ in range(5)]
            async with parts(folder, clients, port, dict.fromkeys(range(3), ())):
                result = await run_round(clients)
                await until(lambda: len(cut) == 5)
            for _, writer in squatters:
                writer.close()
        return result, cut

    (total, survivors), cut = asyncio.run(main())

    assert survivors == [0, 1, 2] and (total == sum_of(survivors)).all()
    assert cut == [(None, "said nothing in time")] * 5


def test_a_round_with_too_few_clients_fails_and_the_next_one_does_not(folder):
    def late(at, frame):
        return None if at == 2 else frame

    async def main():
        async with server(folder, 5) as (clients, port, cut):
            spoilt = {0: (late,), 1: (late,), 2: (late,), 3: (), 4: ()}
            async with parts(folder, clients, port, spoilt):
                with pytest.raises(secagg.TooFewClientsError):
                    await run_round(clients)
                result = await run_round(clients)
        return result, cut

    (total, survivors), cut = asyncio.run(main())

    assert survivors == [3, 4] and (total == sum_of(survivors)).all()
    assert {number for number, _ in cut} == {0, 1, 2}


def test_a_client_that_comes_again_replaces_its_older_connection(folder):
    async def main():
        async with server(folder, 3) as (clients, port, cut):
            squatting = await connect(port, client_context(folder, 1), LARGEST)
            await until(lambda: clients.connected() == [1])
            coming = dict.fromkeys(range(3), ())
            tasks = [
                asyncio.create_task(take_part(folder, port, i, *coming[i]))
                for i in coming
            ]
            await until(lambda: cut and len(clients.connected()) == 3)
            result = await run_round(clients)
            clients.close()
            await asyncio.gather(*tasks)
            squatting.cut()
        return result, cut

    (total, survivors), cut = asyncio.run(main())

    assert survivors == [0, 1, 2] and (total == sum_of(survivors)).all()
    assert cut == [(1, "came again")]


def test_a_client_that_comes_back_in_the_middle_of_a_round_is_in_the_next_one(folder):
    def die(at, frame):
        if at == 1:
            raise Killed(b"")
        return frame

    def stall(at, frame):  # so that the round takes long enough
        return None if at == 1 else frame

    async def main():
        async with server(folder, 8) as (clients, port, cut):

            async def die_and_come_back():
                await take_part(folder, port, 2, die)
                await until(lambda: cut)
                await take_part(folder, port, 2)

            tasks = [
                *(
                    asyncio.create_task(take_part(folder, port, i))
                    for i in (1, 3, 4, 5, 6, 7)
                ),
                asyncio.create_task(take_part(folder, port, 0, stall)),
                asyncio.create_task(die_and_come_back()),
            ]
            await until(lambda: len(clients.connected()) == 8)
            first = await run_round(clients)
            await until(lambda: len(clients.connected()) == 7)
            second = await run_round(clients)
            clients.close()
            await asyncio.gather(*tasks)
        return [first, second], cut

    results, cut = asyncio.run(main())

    assert [numbers for _, numbers in results] == [
        [1, 3, 4, 5, 6, 7],
        [1, 2, 3, 4, 5, 6, 7],
    ]
    assert all((total == sum_of(numbers)).all() for total, numbers in results)
    assert [number for number, _ in cut] == [2, 0]


def test_a_client_talks_to_no_server_that_another_client_plays(folder):
    async def main():
        listener = await asyncio.start_server(
            lambda reader, writer: writer.close(), SERVER, 0, ssl=played(folder)
        )
        async with listener:
            await connect(
                listener.sockets[0].getsockname()[1], client_context(folder, 0), LARGEST
            )

    def played(folder) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "client-1.pem")
        return context

    with pytest.raises(ssl.SSLCertVerificationError):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("clients", "killed"), [(12, 1), pytest.param(1000, 99, marks=pytest.mark.thorough)]
)
def test_a_crowd_in_one_process_gives_the_sum_of_those_whose_vectors_came(
    clients, killed
):
    outcome = asyncio.run(crowd.measure(clients, 10, killed, seconds=300.0))

    assert outcome.survivors == crowd.those_in_the_sum(clients, killed)
    assert np.array_equal(outcome.total, crowd.sum_of(outcome.survivors, 10))
    assert sorted(outcome.cut) == [(i, "closed the connection") for i in range(killed)]
