"""Clients and a server of secure aggregation over TLS, in asyncio.

A frame is a byte that says its kind, four for its length, and its body. The server
begins a round with three, the plan, the cohort and what clients are told; from then on
each side sends messages of `secagg` in turn. Who a client is says its certificate.

| a peer that | is |
| --- | --- |
| says nothing, or what is no TLS | cut off, after so many seconds |
| connects and connects | let in by turns: so many may be in the handshake |
| has no certificate, a server's, or another authority's | refused in the handshake |
| has a number that nobody expects | cut off |
| comes again | taken for the client, and its older connection cut off |
| sends a frame of another kind, too large, half of one, or none in time | cut off |
| does not read what it is sent | likewise |
| sends what nobody asked for | not read, beyond the buffers of one connection |

Whom the server cuts off in a round is a client that dropped out. It has memory for
`numbers` clients and `pending` strangers, `largest` bytes and buffers for each. Who
connects faster than strangers are cut off keeps clients waiting: how many connections
an address may make is for a firewall to say.
"""

import asyncio
import contextlib
import enum
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np

from fedagg import secagg
from notebooks.secagg_demo.certificates import SERVER, number_of

_HEAD = struct.Struct(">BI")
_GONE = "closed the connection"
_INDICES = np.dtype(">u4")


class Kind(enum.IntEnum):
    """What is in a frame."""

    PLAN = 1
    COHORT = 2  # the clients' numbers, four bytes each, in the plan's order
    TOLD = 3
    STEP = 4


class TransportError(Exception):
    """A peer that is gone, or that sent something other than the frame expected."""


def pack(kind: Kind, body: bytes) -> bytes:
    """A frame."""
    return _HEAD.pack(kind, len(body)) + body


class Connection:
    """One end of a connection, in frames.

    Args:
        reader: from asyncio.
        writer: from asyncio.
        largest: the most bytes of a frame that is taken.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, largest: int
    ):
        self._reader, self._writer, self._largest = reader, writer, largest
        self.received = 0  # bytes of frames

    async def send(self, *frames: bytes) -> None:
        """Sends what is packed, as fast as the peer takes it."""
        self._writer.writelines(frames)
        await self._writer.drain()

    async def receive(self, *kinds: Kind) -> tuple[Kind, bytes]:
        """The next frame, which is of one of these kinds, before it is in memory.

        Raises:
            TransportError: if none comes, or something else.
        """
        try:
            head = await self._reader.readexactly(_HEAD.size)
            kind, size = _HEAD.unpack(head)
            if kind not in kinds:
                raise TransportError(f"sent a frame of kind {kind}")
            if size > self._largest:
                raise TransportError("sent too large a frame")
            body = await self._reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise TransportError(_GONE) from error
        self.received += _HEAD.size + size
        return Kind(kind), body

    @property
    def closed(self) -> bool:
        """Whether the peer is known to be gone."""
        return self._reader.at_eof() or self._writer.is_closing()

    def cut(self) -> None:
        """Closes the connection, whatever is still under way."""
        self._writer.transport.abort()


async def connect(port: int, context: ssl.SSLContext, largest: int) -> Connection:
    """A client's connection to the server."""
    streams = await asyncio.open_connection(SERVER, port, ssl=context)
    return Connection(*streams, largest)


Begin = Callable[[secagg.Plan, list[int], bytes], secagg.Client]


async def answers(
    connection: Connection, begin: Begin
) -> AsyncIterator[tuple[secagg.Plan, bytes]]:
    """What a client has to send in each step of each round, with the round's plan.

    Ends when the server is gone.

    Args:
        connection: to the server.
        begin: makes the client's part in a round of a plan, a cohort, and what it is
            told.

    Raises:
        WrongStepError: for a step before there is a round.
        ProtocolError: of some other kind, if the server is refused.
    """
    plan, client = None, None
    with contextlib.suppress(TransportError, OSError):
        while True:
            kind, body = await connection.receive(Kind.PLAN, Kind.STEP)
            if kind is Kind.PLAN:
                _, cohort = await connection.receive(Kind.COHORT)
                _, told = await connection.receive(Kind.TOLD)
                plan = secagg.Plan.decode(body)
                client = begin(plan, np.frombuffer(cohort, _INDICES).tolist(), told)
                yield plan, client.respond()
            elif plan is None or client is None:
                raise secagg.WrongStepError("A step before there is a round.")
            else:
                yield plan, client.respond(body)


class Clients:
    """The server's end: who is connected, and rounds with all of them.

    Args:
        numbers: how many clients there may be, numbered from zero.
        largest: bytes of the largest frame that is taken.
        seconds: how long a client may take for a step.
        handshake: how long a stranger may take to show a certificate.
        pending: how many strangers may be about to.
        report: is told whom the server cut off, by number if known, and why.
    """

    def __init__(
        self,
        numbers: int,
        *,
        largest: int,
        seconds: float,
        handshake: float,
        pending: int,
        report: Callable[[int | None, str], None],
    ):
        self._numbers, self._largest = numbers, largest
        self._seconds, self._handshake, self._report = seconds, handshake, report
        self._connections: dict[int, Connection] = {}
        self._room = asyncio.Semaphore(pending)

    async def listen(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        """Takes clients in until it is cancelled. The socket is not to block."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                await self._room.acquire()  # who comes now waits in the backlog
                peer, _ = await loop.sock_accept(listener)
                task = group.create_task(self._welcome(peer, context))
                task.add_done_callback(lambda _: self._room.release())

    async def _welcome(self, peer: socket.socket, context: ssl.SSLContext) -> None:
        """Takes a peer in if it shows a client's certificate in time."""
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            async with asyncio.timeout(self._handshake):
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol, peer, ssl=context
                )
        except OSError as error:  # also of TLS, and of time
            self._report(None, _why(error))
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        connection = Connection(reader, writer, self._largest)
        number = number_of(transport.get_extra_info("peercert"))
        if number is None or number >= self._numbers:
            connection.cut()
            self._report(None, "has a certificate that nobody expects")
            return
        if number in self._connections:
            again = TransportError("came again")
            self._cut(self._connections[number], number, again)
        self._connections[number] = connection

    def connected(self) -> list[int]:
        """The clients that are here, in ascending order."""
        for number, connection in list(self._connections.items()):
            if connection.closed:
                self._cut(connection, number, TransportError(_GONE))
        return sorted(self._connections)

    @property
    def received(self) -> int:
        """Bytes of frames that came from those who are here."""
        return sum(x.received for x in self._connections.values())

    async def round(
        self,
        cohort: Sequence[int],
        plan: secagg.Plan,
        roster: Sequence[bytes] | None,
        told: bytes,
    ) -> tuple[np.ndarray, list[int]]:
        """Runs the protocol, and gives the sum and the numbers of those who are in it.

        Args:
            cohort: clients that are `connected`, in the plan's order.
            plan: the round's.
            roster: the clients' public keys, if the plan is signed.
            told: what clients get to know, beside the plan and the cohort.

        Raises:
            ProtocolError: if too many dropped out.
        """
        server = secagg.Server(plan, roster=roster)
        # Who comes back in the middle of the round waits for the next one.
        connections = [self._connections[number] for number in cohort]

        async def ask(i: int, *frames: bytes) -> None:
            try:
                async with asyncio.timeout(self._seconds):
                    await connections[i].send(*frames)
                    _, answer = await connections[i].receive(Kind.STEP)
                server.receive(i, answer)
            except (TransportError, OSError, secagg.ProtocolError) as error:
                self._cut(connections[i], cohort[i], error)

        listed = np.array(cohort, _INDICES).tobytes()
        parts = (Kind.PLAN, plan.encode()), (Kind.COHORT, listed), (Kind.TOLD, told)
        first = [pack(*part) for part in parts]
        await asyncio.gather(*(ask(i, *first) for i in range(len(cohort))))
        # Beside the loop, which has strangers to see off meanwhile.
        while outbox := await asyncio.to_thread(server.close):
            await asyncio.gather(
                *(ask(i, pack(Kind.STEP, x)) for i, x in outbox.items())
            )
        return server.total, [cohort[i] for i in server.survivors]

    def close(self) -> None:
        """Sends everybody home."""
        for connection in self._connections.values():
            connection.cut()

    def _cut(self, connection: Connection, number: int, error: Exception) -> None:
        connection.cut()
        if self._connections.get(number) is connection:  # else it is known
            del self._connections[number]
            self._report(number, _why(error))


def _why(error: Exception) -> str:
    """What is reported of a peer that is cut off."""
    late = isinstance(error, TimeoutError)
    return "said nothing in time" if late else str(error) or type(error).__name__
