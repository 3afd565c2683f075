"""Clients and a server of secure aggregation over TCP, in asyncio and msgpack.

A frame is one msgpack object, read by msgpack's own streaming reader. From a client it
is its number, once, then bytes, a message of `secagg.Client`. From the server it is a
list, which begins a round, or bytes, a message of `secagg.Server`. Who sends anything
else, too much, too late, or comes as somebody who is there already, is cut off. For a
round that is a client that dropped out.

There is no TLS here, so that anybody can take the number of a client that is not there.
In a signed plan it gets no further; then, and in any deployment, put TLS with clients'
certificates below this: `asyncio.start_server` takes them.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import numpy as np

from fedagg import secagg

_PIECE = 2**16  # bytes read at once
_NONE = object()  # no frame yet
_GONE = "closed the connection"


def pack(frame: Any) -> bytes:
    """A frame as bytes."""
    packer = msgpack.Packer(autoreset=False)
    packer.pack(frame)
    return packer.bytes()


class TransportError(Exception):
    """A peer that is gone, or that sent something other than the frame expected."""


class Connection:
    """One end of a connection, in frames.

    Args:
        reader: from asyncio.
        writer: from asyncio.
        largest: the most bytes of a frame that is taken.
        longest: the most items of a list in it. None are taken by default.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        largest: int,
        longest: int = 0,
    ):
        self._reader, self._writer = reader, writer
        # Room is made for lists as soon as they are announced, so that `longest` is
        # what keeps a small frame of nested lists from taking much memory.
        self._frames = msgpack.Unpacker(
            max_buffer_size=largest + _PIECE,
            max_bin_len=largest,
            max_array_len=longest,
            max_map_len=0,
            max_str_len=0,
            max_ext_len=0,
        )

    async def send(self, frame: Any) -> None:
        """Sends a frame, as fast as the peer takes it."""
        self._writer.write(pack(frame))
        await self._writer.drain()

    async def receive(self, *kinds: type) -> Any:
        """The next frame, which is of one of these types.

        Raises:
            TransportError: if none comes, or something else.
        """
        try:
            while (frame := next(self._frames, _NONE)) is _NONE:
                piece = await self._reader.read(_PIECE)
                if not piece:
                    raise TransportError(_GONE)
                self._frames.feed(piece)
        except msgpack.BufferFull as error:
            raise TransportError("sent too large a frame") from error
        except (ValueError, msgpack.UnpackException) as error:
            raise TransportError("sent what is no frame") from error
        if type(frame) not in kinds:
            raise TransportError(f"sent a frame of type {type(frame).__name__}")
        return frame

    @property
    def closed(self) -> bool:
        """Whether the peer is known to be gone."""
        return self._reader.at_eof()

    def cut(self) -> None:
        """Closes the connection, whatever is still under way."""
        self._writer.transport.abort()


class Clients:
    """The server's end: who is connected, and rounds with all of them.

    Args:
        numbers: how many clients there may be, numbered from zero.
        largest: bytes of the largest frame that is taken.
        seconds: how long a client may take for a step.
        report: is told whom the server cut off, by number if known, and why.
    """

    def __init__(
        self,
        numbers: int,
        *,
        largest: int,
        seconds: float,
        report: Callable[[int | None, str], None],
    ):
        self._numbers, self._largest = numbers, largest
        self._seconds, self._report = seconds, report
        self._connections: dict[int, Connection] = {}

    async def welcome(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Takes a new connection in, if it says a number in time that is free."""
        connection = Connection(reader, writer, self._largest)
        try:
            async with asyncio.timeout(self._seconds):
                number = await connection.receive(int)
            if not 0 <= number < self._numbers:
                raise TransportError(f"came as {number}, whom nobody expects")
            if number in self.connected():
                raise TransportError(f"came as {number}, who is here already")
        except (TransportError, OSError) as error:
            self._cut(connection, None, error)
        else:
            self._connections[number] = connection

    def connected(self) -> list[int]:
        """The clients that are here, in ascending order."""
        for number, connection in list(self._connections.items()):
            if connection.closed:
                self._cut(connection, number, TransportError(_GONE))
        return sorted(self._connections)

    async def round(
        self,
        cohort: Sequence[int],
        plan: secagg.Plan,
        roster: Sequence[bytes] | None,
        *more: Any,
    ) -> tuple[np.ndarray, list[int]]:
        """Runs the protocol, and gives the sum and the numbers of those who are in it.

        Args:
            cohort: clients that are `connected`, in the plan's order.
            plan: the round's.
            roster: the clients' public keys, if the plan is signed.
            *more: what clients get to know, beside the encoded plan and the cohort.

        Raises:
            ProtocolError: if too many dropped out.
        """
        server = secagg.Server(plan, roster=roster)
        # Who comes back in the middle of the round waits for the next one.
        connections = [self._connections[number] for number in cohort]

        async def ask(i: int, frame: Any) -> None:
            try:
                async with asyncio.timeout(self._seconds):
                    await connections[i].send(frame)
                    answer = await connections[i].receive(bytes)
                server.receive(i, answer)
            except (TransportError, OSError, secagg.ProtocolError) as error:
                self._cut(connections[i], cohort[i], error)

        frames = dict.fromkeys(range(len(cohort)), [plan.encode(), list(cohort), *more])
        while frames:
            await asyncio.gather(*(ask(i, frame) for i, frame in frames.items()))
            frames = server.close()
        return server.total, [cohort[i] for i in server.survivors]

    def close(self) -> None:
        """Sends everybody home."""
        for connection in self._connections.values():
            connection.cut()

    def _cut(
        self, connection: Connection, number: int | None, error: Exception
    ) -> None:
        connection.cut()
        if number is not None:
            if self._connections.get(number) is not connection:
                return  # found out already
            del self._connections[number]
        late = isinstance(error, TimeoutError)
        self._report(number, "said nothing in time" if late else str(error))
