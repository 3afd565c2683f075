"""Asynchronous rounds between machines: a server that steps when a buffer is full."""

import os
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._aggregator import Aggregator
from fedagg._deployment.attendance import Attendance, Begun, Ready, ServerState
from fedagg._deployment.running_total import RunningTotal
from fedagg._deployment.wire import Wire
from fedagg._trees import checks
from fedagg._trees.buffers import check_buffer, inverse_root, told
from fedagg._trees.keys import as_key, fold_key
from fedagg._trees.kinds import check_kind, described
from fedagg._types import PyTree


class BufferedServer:
    """A server of asynchronous rounds, FedBuff, for clients that come and go.

    A client is given a model by `start` and trains as long as it takes. Then `ready`
    tells it what its change is multiplied by and what it is encoded by, which is the
    same for all of a buffer, so that any stages keep their meaning. `offer` takes the
    message. With the last one of a buffer the server steps, as `server` of the
    training's steps does, and all that was encoded for the step before is refused.
    Any number of threads may call any of these.

    | a client that | is told |
    | --- | --- |
    | asks where no place is free, or has to rest | None by `start` |
    | asks again while it is away, after a crash | the newest model, in the same place |
    | began too many steps ago | None by `ready`, and is counted |
    | is in a step already, since it began | None by `ready`: it counts |
    | offers what is for an earlier step | False, and asks `ready` again |
    | offers the same twice | True, and counts once |
    | does not come back | nothing; the transport's `give_up` frees its place |

    A server that was killed is made again of the state that `on_step` saved last, and
    of the folder, which has the buffer: clients that are away come back as ever.

    A `Wire` sends what the server reads, and a secure sum is refused: its clients would
    have to be there together, for a round of `secagg`. `training.steps.server` is run
    as it is; `training._replace(steps=...)` brings one that is compiled.

    Args:
        training: what `federated_averaging` made of the wire's aggregator.
        wire: of the aggregator and a client's change: `Wire(aggregator, variables)`.
        state: that of `training.init`, or a server's, to go on from.
        clients: how many there are, numbered from zero.
        buffer: clients in a step, K in the paper.
        concurrency: clients that are away at a time: M.
        key: for noise of the server. It may be the same for all steps, and is for a
            server that goes on.
        discount: as in `buffered_averaging`.
        max_staleness: likewise.
        separation: likewise.
        folder: for the buffer's file, which is written with each message. None for
            none.
        on_step: `(state, metrics)`, called after each step and before anybody learns of
            it. If it raises an error, the step was not, and the next offer tries again.
        add: as in `RunningTotal`.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if a number is out of range, the wire is of another aggregator, or
            it has a secure sum.

    Reference: Nguyen et al., "Federated Learning with Buffered Asynchronous
        Aggregation", 2022, algorithm 1.
    """

    def __init__(
        self,
        training: Aggregator,
        wire: Wire,
        state: PyTree,
        *,
        clients: int,
        buffer: int,
        concurrency: int,
        key: jax.Array | None = None,
        discount: Callable[[jax.Array], Any] = inverse_root,
        max_staleness: int = 10,
        separation: int = 1,
        folder: str | os.PathLike[str] | None = None,
        on_step: Callable[[ServerState, dict[str, Any]], None] | None = None,
        add: Callable[[PyTree, PyTree], PyTree] | None = None,
    ):
        check_kind(Aggregator, training=training)
        if not isinstance(wire, Wire):
            raise TypeError(f"wire: expected a Wire, got {described(wire)}.")
        _check_aggregator(training, wire)
        check_buffer(clients, buffer, concurrency, max_staleness, separation, discount)
        if not isinstance(state, ServerState):
            last = np.full(clients, -separation, np.int64)
            state = ServerState(state, np.asarray(0, np.int64), last)
        checks.check_whole(clients, clients, **{"clients of state": len(state.last)})
        self._training, self._wire, self._state = training, wire, state
        self._models = Wire(training, state.training.variables)
        self._attendance = Attendance(
            state.last, concurrency, max_staleness, separation
        )
        self._buffer, self._key, self._discount = buffer, as_key(key), discount
        self._folder = None if folder is None else pathlib.Path(folder)
        self._on_step, self._add = on_step, add
        self._lock = threading.Lock()
        self._model: bytes | None = None
        self._bounds, self._total = self._opened(state, is_new=False)
        self._step_if_full()

    @property
    def state(self) -> ServerState:
        """After the last step."""
        with self._lock:
            return self._state

    @property
    def counts(self) -> dict[str, int]:
        """How many are away, were given up, and came too late."""
        with self._lock:
            x = self._attendance
            return {"away": len(x.away), "lost": x.lost, "too_stale": x.too_stale}

    def start(self, client: int) -> Begun | None:
        """Sends a client out with the newest model, if it may go.

        Args:
            client: its number, as the transport knows it.
        """
        self._attendance.check(client)
        with self._lock:
            number = int(self._state.number)
            if client in self._total.clients or not self._attendance.begins(
                client, number
            ):
                return None
            if self._model is None:
                shared = self._training.steps.broadcast(self._state.training)
                self._model = self._models.encode_shared(shared, number)
            return Begun(number, self._model)

    def ready(self, client: int, began: int) -> Ready | None:
        """Tells a client that has trained what to encode its change by.

        Args:
            client: its number.
            began: the number that `start` told it.

        Raises:
            ValueError: for a step that is not yet.
        """
        self._attendance.check(client)
        with self._lock:
            number = int(self._state.number)
            checks.check_whole(0, number, began=began)
            is_in = client in self._total.clients
            if is_in or not self._attendance.is_awaited(client, began, number):
                return None
            factor = told("discount", self._discount, jnp.float32(number - began))
            return Ready(number, float(factor), self._bounds)

    def offer(self, client: int, number: int, message: bytes) -> bool:
        """Takes a client's message, and steps if it is the buffer's last.

        Args:
            client: its number.
            number: of the step, as `ready` told it.
            message: as `encode` of the wire wrote it for this number.

        Returns:
            Whether it counts. If not, it is to be encoded anew, as `ready` says.

        Raises:
            ValueError: if it is no message of this step. Another may come after it.
            OSError: if the buffer's file cannot be written. To offer it again helps.
        """
        self._attendance.check(client)
        with self._lock:
            self._step_if_full()
            if not self._may_offer(client, number):
                return client in self._total.clients
        decoded = self._wire.decode(message, number)  # side by side
        with self._lock:
            if not self._may_offer(client, number):
                return client in self._total.clients
            self._total.add(client, decoded)
            self._attendance.forget(client)
            self._step_if_full()
        return True

    def give_up(self, client: int) -> None:
        """Frees the place of a client, by its number. It may come back later."""
        self._attendance.check(client)
        with self._lock:
            self._attendance.give_up(client)

    def _may_offer(self, client: int, number: int) -> bool:
        is_now = number == self._state.number
        return is_now and self._attendance.may_offer(client, number)

    def _opened(self, state: ServerState, is_new: bool) -> tuple[bytes, RunningTotal]:
        """What messages for a step are encoded by, and their total so far."""
        number = int(state.number)
        shared = self._wire.aggregator.steps.broadcast(state.training.aggregator)
        if is_new:
            self._remove(number)  # what a run before left there
        path = None if self._folder is None else self._folder / f"step-{number}"
        total = RunningTotal(self._wire, number, path=path, add=self._add)
        return self._wire.encode_shared(shared, number), total

    def _remove(self, number: int) -> None:
        if self._folder is not None:
            (self._folder / f"step-{number}").unlink(missing_ok=True)

    def _step_if_full(self) -> None:
        before, clients = self._state, self._total.clients
        if len(clients) < self._buffer:
            return
        number = int(before.number)
        output = self._training.steps.server(
            before.training, self._total.total, fold_key(self._key, number)
        )
        last = np.array(before.last)
        last[sorted(clients)] = number
        state = ServerState(output.state, np.asarray(number + 1), last)
        bounds, total = self._opened(state, is_new=True)
        if self._on_step is not None:
            self._on_step(state, output.metrics)
        self._state, self._attendance.last = state, last
        self._model, self._bounds, self._total = None, bounds, total
        self._remove(number)


def _check_aggregator(training: Aggregator, wire: Wire) -> None:
    theirs, stage = wire.aggregator, wire.aggregator.stage
    if training.stage is not stage or training.rule != theirs.rule:
        raise ValueError(
            f"wire: expected one of the aggregator in {training}, got {theirs}'s."
        )
    if stage is not None and stage.traits.is_secret:
        raise ValueError(
            f"{stage.traits.name} hides what single clients send, which this server "
            "reads. Run secagg among clients that are ready together."
        )
