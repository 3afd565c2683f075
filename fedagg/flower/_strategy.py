"""The server's side: a strategy that keeps an aggregator's state."""

import hashlib
import logging
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import optax
from flax import serialization

from fedagg import secagg
from fedagg._aggregator import Aggregator
from fedagg._deployment.running_total import RunningTotal
from fedagg._deployment.wire import Wire
from fedagg._files import parsing, replaced
from fedagg._privacy.secret import secret_key
from fedagg._training.federated_averaging import federated_averaging
from fedagg._trees import pytree
from fedagg._types import PyTree
from fedagg.flower._flwr import (
    ArrayRecord,
    ConfigRecord,
    FedAvg,
    Grid,
    Message,
    MessageType,
    MetricRecord,
    Result,
)
from fedagg.flower._records import KEY, arrays_of, content_of, context_of, is_secure

_LOG = logging.getLogger(__name__)


class FedAgg(FedAvg):
    """A strategy of Flower that aggregates by any aggregator, over its state.

    Nodes are chosen and evaluated as `FedAvg` does it. Clients have `fedagg_mod` of the
    same aggregator, and send what its `steps.client` makes of the change of the model:
    the server never has more than one total of them. What comes of it moves the model,
    as in `federated_averaging`. A reply that is none of the round, or an error, is of a
    client that is absent; what the aggregator measures are the metrics of the round.

    Under a secure sum, of all that is sent, each round is one of `fedagg.secagg`, in
    four trips: the server's messages and the clients' are those of a plan for the nodes
    that were chosen. It ends without a change where too many drop out.

    With a path, the model and all states are in one file after each round, and `start`
    goes on from there, for `num_rounds` more.

    Attributes:
        state: of the aggregator and the optimizer, with the model; None before `start`.
        number: of the round that is under way.

    Args:
        aggregator: the round, as the clients' mod has it.
        optimizer: of the server, from Optax, or a `ServerStep`. None adds the
            aggregated change to the model.
        path: of the file; None for none.
        plan: further options of `secagg.Plan.for_aggregator`, as `complete`.
        **options: those of `FedAvg`: fractions, numbers of nodes, keys of records.

    Raises:
        TypeError: if the aggregator or the optimizer is none.
        ValueError: in `start`, for a model or an aggregator that does not fit, or that
            sends some in the clear and some under a secure sum; for a file that is
            damaged, or of rounds of another kind.

    Reference: Reddi et al., "Adaptive Federated Optimization", 2021, algorithm 1.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        optimizer: Any = None,
        *,
        path: str | os.PathLike[str] | None = None,
        plan: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        optimizer = optax.sgd(1.0) if optimizer is None else optimizer
        self._training = federated_averaging(_as_it_came, optimizer, aggregator)
        self._aggregator, self._options = aggregator, dict(plan or {})
        self._add = jax.jit(aggregator.steps.add)
        self._server = jax.jit(self._training.steps.server)
        self._path = None if path is None else pathlib.Path(path)
        self.state: Any = None
        self.number = 0

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        **options: Any,
    ) -> Result:
        """Runs rounds, from the file if there is one, else from these arrays.

        Args:
            grid: Flower's.
            initial_arrays: the model.
            num_rounds: how many more.
            timeout: seconds that a trip may take.
            **options: what else `FedAvg.start` takes.
        """
        model = arrays_of(initial_arrays)
        self._names, self._timeout = list(initial_arrays), timeout
        self._wire = Wire(self._aggregator, model)
        self._is_secure = is_secure(self._aggregator)
        self.state = self._training.init(model)
        if self._path is not None and self._path.exists():
            self.state, self.number = _resumed(self._path, self.state)
        return super().start(grid, self._record(), num_rounds, timeout, **options)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        chosen = super().configure_train(server_round, arrays, config, grid)
        messages, model = list(chosen), arrays_of(arrays)
        self._grid = grid
        self._cohort = [message.metadata.dst_node_id for message in messages]
        shared = self._aggregator.steps.broadcast(self.state.aggregator)
        told = self._wire.encode_shared(shared, self.number)
        ours: dict[str, Any] = {"round": self.number, "told": told}
        if self._is_secure and messages:
            self._plan = secagg.Plan.for_aggregator(
                *(self._aggregator, model, len(messages)),
                context_of(self._cohort, messages[0].content, told),
                number=self.number,
                **self._options,
            )
            cohort = b"".join(node.to_bytes(8) for node in self._cohort)
            ours |= {"plan": self._plan.encode(), "cohort": cohort}
        for message in messages:
            message.content[KEY] = ConfigRecord(ours)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> "tuple[ArrayRecord | None, MetricRecord | None]":  # Flower may be a mock
        if not self._cohort:  # no node was to train
            return None, None
        number, self.number = self.number, self.number + 1
        try:
            summed = self._secure_total if self._is_secure else self._total
            total = summed(number, replies)
        except secagg.ProtocolError as error:
            _LOG.warning("Round %d has no sum: %s", number, error)
            return None, None
        output = self._server(self.state, total, secret_key())
        self.state = output.state
        self._save()
        metrics = {name: float(x) for name, x in output.metrics.items()}
        return self._record(), MetricRecord(metrics)

    def _total(self, number: int, replies: Iterable[Message]) -> PyTree:
        running = RunningTotal(self._wire, number, add=self._add)
        for node, sent in _sent(replies):
            try:
                running.add(self._cohort.index(node), sent)
            except ValueError as error:
                _LOG.warning("Node %d is absent: %s", node, error)
        return running.total

    def _secure_total(self, number: int, replies: Iterable[Message]) -> PyTree:
        server = secagg.Server(self._plan)
        while server.step != "nothing":
            for node, sent in _sent(replies):
                try:
                    server.receive(self._cohort.index(node), sent)
                except (ValueError, secagg.ProtocolError) as error:
                    _LOG.warning("Node %d has dropped out: %s", node, error)
            asked = [
                Message(content_of(step=x), self._cohort[i], MessageType.TRAIN)
                for i, x in server.close().items()
            ]
            if asked:
                replies = self._grid.send_and_receive(asked, timeout=self._timeout)
        model = self.state.variables
        return secagg.total_of(self._aggregator, model, server.total)

    def _record(self) -> ArrayRecord:
        """The model, as clients are told."""
        arrays = pytree.flatten(self.state.variables)[0]
        named = ArrayRecord([jax.device_get(x) for x in arrays]).values()
        return ArrayRecord(dict(zip(self._names, named, strict=True)))

    def _save(self) -> None:
        if self._path is not None:
            saved = serialization.to_bytes((self.state, self.number))
            sealed = hashlib.sha256(saved).digest() + saved
            replaced(self._path, lambda file: file.write(sealed))


def _resumed(path: pathlib.Path, first: Any) -> tuple[Any, int]:
    """The state and the number that were saved last.

    Raises:
        ValueError: if the file is damaged, or of rounds with another kind of state.
    """
    data = path.read_bytes()
    with parsing(path, "rounds of a FedAgg like this one"):
        digest, saved = data[:32], data[32:]
        if hashlib.sha256(saved).digest() != digest:
            raise ValueError("the bytes are not as they were written.")
        found: Any = serialization.from_bytes((first, 0), saved)
        return pytree.like(found[0], first, "state"), int(found[1])


def _as_it_came(variables: PyTree, row: PyTree, key: jax.Array) -> tuple[PyTree, dict]:
    """The work of clients that are elsewhere."""
    return row, {}


def _sent(replies: Iterable[Message]) -> Iterable[tuple[int, bytes]]:
    """Nodes, and what they sent; who failed or sent nothing of ours is absent."""
    for reply in replies:
        node = reply.metadata.src_node_id
        if reply.has_error():
            _LOG.warning("Node %d is absent: %s", node, reply.error.reason)
        elif isinstance(ours := reply.content.get(KEY), ConfigRecord):
            yield node, bytes(ours.get("message", b""))
        else:
            _LOG.warning("Node %d is absent: it has no fedagg_mod.", node)
