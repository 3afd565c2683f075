"""One total of a round's messages, to which they are added as they come."""

import os
import pathlib
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._deployment.wire import Wire
from fedagg._files import parsing, replaced
from fedagg._trees import checks, pytree
from fedagg._trees.kinds import described
from fedagg._types import PyTree


class RunningTotal:
    """The total of a round, to which clients' messages are added as they come.

    Any number of threads may use it: messages are decoded side by side, and a client
    counts once, however often it sends. There is one total in memory, whatever the
    number of clients, but for that of a rule, `combining`, which has all values. Sums
    of integers do not depend on who comes first; those of floats do, by rounding.

    With a path, the total and its clients' numbers go into one file, all or nothing. A
    server that was killed makes the same `RunningTotal` and goes on: who is in
    `clients` is in the total, and all others send again. With `every=1` the file has
    whatever `add` returned for. With more, what came after the last write is lost with
    the server, and a client is told that it is done when there was one, `save`.

    Args:
        wire: of the round.
        number: of the round.
        path: of the file; None for none.
        every: after how many messages the file is written.
        device: where the total is. None keeps it in NumPy, on the host.
        add: the `add` of the aggregator's steps, compiled: `jax.jit(steps.add)`. None
            runs it operation by operation, which takes long where messages are decoded.

    Raises:
        TypeError: if `wire` is none.
        ValueError: if there is a file that is of another round, or of something else.
    """

    def __init__(
        self,
        wire: Wire,
        number: int,
        *,
        path: str | os.PathLike[str] | None = None,
        every: int = 1,
        device: jax.Device | None = None,
        add: Callable[[PyTree, PyTree], PyTree] | None = None,
    ):
        if not isinstance(wire, Wire):
            raise TypeError(f"wire: expected a Wire, got {described(wire)}.")
        checks.check_whole(0, 2**63 - 1, number=number)
        checks.check_whole(1, every=every)
        self._wire, self._number, self._device = wire, number, device
        self._path = None if path is None else pathlib.Path(path)
        self._add = wire.aggregator.steps.add if add is None else add
        self._every, self._unsaved = every, 0
        self._changed = threading.Condition()
        self._clients: set[int] = set()
        self._coming: set[int] = set()  # whose messages are being decoded
        self._total: PyTree = None
        self._is_closed = False
        if self._path is not None and self._path.exists():
            self._resume(self._path)

    @property
    def clients(self) -> frozenset[int]:
        """The numbers of those whose messages are in the total."""
        with self._changed:
            return frozenset(self._clients)

    @property
    def total(self) -> PyTree:
        """A copy of the total so far, which may still grow; None if nobody came."""
        with self._changed:
            return jax.tree.map(lambda x: jnp.array(x, copy=True), self._total)

    def close(self) -> PyTree:
        """Ends the round: the total that `steps.server` takes, as `total` has it.

        Nobody is added from here on, so that `clients` are those in this total. What
        the file has goes on open, for a server that was killed before its step.
        """
        with self._changed:
            self._is_closed = True
        return self.total

    def add(self, client: int, message: bytes | PyTree) -> bool:
        """Adds a client's message, unless the client is in already or the round closed.

        A message that is refused changes nothing, and another may come after it.

        Args:
            client: its number, as the transport knows it.
            message: bytes as `Wire.encode` wrote them, or what `steps.client` returned.

        Returns:
            Whether it was added now. If not, the client counts if it is in `clients`,
            and else came after `close`.

        Raises:
            ValueError: if it is not a message of this round.
            OSError: if the file cannot be written. The message is in the total then,
                and sending it again tries to write once more.
        """
        checks.check_whole(0, 2**63 - 1, client=client)
        with self._changed:
            self._changed.wait_for(lambda: client not in self._coming)
            if client in self._clients or self._is_closed:
                self._save_if_due()
                return False
            self._coming.add(client)
        try:
            part = self._part(message)
            with self._changed:
                if self._is_closed:  # meanwhile
                    return False
                self._total = self._added(part)
                self._clients.add(client)
                self._unsaved += 1
                self._save_if_due()
        finally:
            with self._changed:
                self._coming.remove(client)
                self._changed.notify_all()
        return True

    def save(self) -> None:
        """Writes the file now.

        Raises:
            ValueError: if there is no path.
            OSError: if the file cannot be written.
        """
        if self._path is None:
            raise ValueError("Expected a path, RunningTotal(..., path=...), got none.")
        with self._changed:
            self._write(self._path)

    def _part(self, message: bytes | PyTree) -> PyTree:
        """What is added for a client."""
        if isinstance(message, (bytes, bytearray, memoryview)):
            message = self._wire.decode(bytes(message), self._number)
        part = self._add(None, message)
        if self._device is None:
            return jax.tree.map(np.array, part)
        return jax.device_put(part, self._device)

    def _added(self, part: PyTree) -> PyTree:
        if self._total is None:
            return part
        is_sum = self._wire.aggregator.stage is not None
        if not is_sum or self._device is not None:
            return self._add(self._total, part)
        if pytree.shapes(part) != pytree.shapes(self._total):  # before either changes
            raise ValueError("message: expected one of the template's shapes.")
        return jax.tree.map(lambda x, y: np.add(x, y, out=x), self._total, part)

    def _save_if_due(self) -> None:
        if self._path is not None and self._unsaved >= self._every:
            self._write(self._path)

    def _write(self, path: pathlib.Path) -> None:
        leaves, _ = pytree.flatten(self._total)
        arrays = {f"part{i}": np.asarray(x) for i, x in enumerate(leaves)}
        whose = np.array(sorted(self._clients), np.int64)
        named = {"of": self._of, "clients": whose, **arrays}
        replaced(path, lambda file: np.savez(file, allow_pickle=False, **named))
        self._unsaved = 0

    @property
    def _of(self) -> np.ndarray:
        """What the file is of, as bytes."""
        known = self._wire.identity + self._number.to_bytes(8)
        return np.frombuffer(known, np.uint8)

    def _resume(self, path: pathlib.Path) -> None:
        with path.open("rb") as file, parsing(path, "the file of a RunningTotal"):
            with np.load(file, allow_pickle=False) as archive:
                saved = dict(archive)
            of, clients = saved.pop("of"), set(saved.pop("clients").tolist())
            leaves = [saved[f"part{i}"] for i in range(len(saved))]
        if not np.array_equal(of, self._of):
            raise ValueError(
                f"Expected the total of round {self._number} of this wire at {path}, "
                "got another's: give each round a file of its own."
            )
        if not clients:
            return
        form = jax.eval_shape(
            lambda x: self._wire.aggregator.steps.add(None, x), self._wire.message
        )
        with parsing(path, "a total of such messages"):
            total = pytree.unflatten(pytree.flatten(form)[1], leaves)
        on_host = self._device is None
        self._total = total if on_host else jax.device_put(total, self._device)
        self._clients = clients
