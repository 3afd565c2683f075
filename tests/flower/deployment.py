"""A Flower deployment in one process: its own apps, messages and contexts, as bytes."""

from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import (
    ArrayRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.common import serde
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

import fedagg
from fedagg.flower import fedagg_mod

NODES = 5


def first_model() -> ArrayRecord:
    """Names are not in the order of the alphabet, and shapes differ."""
    w, b = np.zeros((2, 3), np.float32), np.ones(4, np.float32)
    return ArrayRecord({"w": _array(w), "b": _array(b)})


def _array(x: np.ndarray):
    return ArrayRecord([x])["0"]


def change_of(partition: int, round_number: int) -> dict[str, np.ndarray]:
    """What a client adds to the model, and nothing that floats would round."""
    random = np.random.default_rng((partition, round_number))
    return {
        "w": random.integers(-8, 8, (2, 3)).astype(np.float32) / 8,
        "b": random.integers(-8, 8, 4).astype(np.float32) / 8,
    }


def examples_of(partition: int) -> int:
    return partition + 1


def train(message: Message, context: Context) -> Message:
    """A client's app, as it is for `FedAvg`."""
    partition = int(context.node_config["partition-id"])
    number = int(message.content["config"]["server-round"])
    change = change_of(partition, number)
    trained = {
        name: _array(x.numpy() + change[name])
        for name, x in message.content["arrays"].items()
    }
    content = {
        "arrays": ArrayRecord(trained),
        "metrics": MetricRecord({"num-examples": examples_of(partition), "loss": 0.5}),
    }
    return Message(RecordDict(content), reply_to=message)


def evaluate(message: Message, context: Context) -> Message:
    largest = max(float(x.numpy().max()) for x in message.content["arrays"].values())
    metrics = MetricRecord({"num-examples": 1, "largest": largest})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def client_app(aggregator: fedagg.Aggregator, **options) -> ClientApp:
    app = ClientApp(mods=[fedagg_mod(aggregator, **options)])
    app.train()(train)
    app.evaluate()(evaluate)
    return app


class OneProcess(Grid):
    """Nodes that answer one after the other.

    `spoil` makes a node's reply into what comes, None for nothing.
    """

    def __init__(
        self,
        app: ClientApp,
        spoil: Callable[[int, Message], Message | None] = lambda node, reply: reply,
    ):
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self._app, self._spoil = app, spoil
        # As Flower's, which take all of 64 bits.
        self._contexts = {
            2**64 - 1 - i: self._kept(
                Context(1, 2**64 - 1 - i, {"partition-id": i}, RecordDict(), {})
            )
            for i in range(NODES)
        }
        self.messages: list[Message] = []  # all that went over the wire

    @staticmethod
    def _kept(context: Context) -> bytes:
        return serde.context_to_proto(context).SerializeToString()

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return [
            reply
            for message in messages
            if (reply := self._answered(carried(message))) is not None
        ]

    @property
    def contexts(self) -> dict[int, Context]:
        """What each node keeps."""
        parsed = serde.ProtoContext.FromString
        return {
            node: serde.context_from_proto(parsed(kept))
            for node, kept in self._contexts.items()
        }

    def _answered(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        context = self.contexts[node]
        try:
            reply = self._app(message, context)
        except Exception as error:  # as Flower's client does
            return Message(Error(0, repr(error)), reply_to=message)
        self._contexts[node] = self._kept(context)
        reply = self._spoil(node, carried(reply))
        self.messages += [message, *([] if reply is None else [reply])]
        return reply

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *given, **options) -> Message:
        raise NotImplementedError

    def get_nodes(self):
        raise NotImplementedError

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError


def carried(message: Message) -> Message:
    """A message after its way over the wire."""
    proto = serde.message_to_proto(message)
    return serde.message_from_proto(type(proto).FromString(proto.SerializeToString()))
