"""Messages of a round as bytes: arrays one after the other, and a header.

Both sides know what a message looks like, so that its bytes describe nothing, and
nothing is run to read them: a header says what they are of, and their number is known.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._aggregator import Aggregator
from fedagg._deployment.arrays import bytes_of, from_bytes, written
from fedagg._messages.message import Message
from fedagg._trees import checks, pytree
from fedagg._trees.kinds import array_leaves, check_kind, described
from fedagg._types import PyTree
from fedagg._version import __version__

_MAGIC = b"fedagg1"
_SHARED, _ABSENT, _PRESENT, _SUMMED = range(4)  # kinds of what follows a header
# Magic and kind; version, aggregator, template, of each a digest; the round.
_HEADER = struct.Struct(">7sB8s8s8sQ")
_NAMES = ("version of fedagg", "aggregator", "template", "round")


class Wire:
    """What clients and server of a round send each other, as bytes and back.

    A message takes `message_bits` of the aggregator, rounded up to bytes, and a header
    of `Wire.header` bytes: packed codes stay packed, and integers under a secure sum
    have the bits of their modulus. Who reads it has made the same `Wire`, and refuses
    with a ValueError what is of another aggregator, template, round or version of
    fedagg, what is cut off or too long, and whatever `encode` would not have written.
    Nothing that is read is run. Who sent something is for the transport to know, by
    TLS with certificates for one.

    An aggregator is known by its stages or its rule as they print: stages of your own
    by their names, `Traits("clamping")`, bounds and rules by their sentences. Put into
    these whatever may differ: without a name, any two are one to a wire. A training is
    known by its aggregator.

    Attributes:
        header: bytes of a header.
        aggregator: as given.
        message: what a client sends, as shapes and dtypes.
        shared: what clients are told, likewise.
        identity: bytes that version, aggregator and template are known by.

    Args:
        aggregator: what both sides run, of any kind that has `steps`.
        template: one client's value, arrays or `jax.ShapeDtypeStruct`; of a training,
            the model.
        metrics: the names of those metrics of the clients' work that are sent.

    Raises:
        TypeError: if `aggregator` is none, or one made by hand.
        ValueError: what its stages raise for such a value.
    """

    header = _HEADER.size

    def __init__(
        self, aggregator: Aggregator, template: PyTree, metrics: Sequence[str] = ()
    ):
        check_kind(Aggregator, aggregator=aggregator)
        template = pytree.abstract(array_leaves(template, "template"))
        number = jax.ShapeDtypeStruct((), jnp.float32)
        message = aggregator.message(template)
        noted = {name: (number, number) for name in metrics}
        self.aggregator = aggregator
        self.message = message._replace(metrics={**message.metrics, **noted})
        self.shared = jax.eval_shape(
            lambda x: aggregator.steps.broadcast(aggregator.init(x)), template
        )
        # Not how a round is driven, nor what trains: these may differ, and functions
        # have addresses of their own on each machine.
        stage = aggregator.stage
        printed = aggregator.rule or repr(aggregator if stage is None else stage)
        forms = [written(x) for x in (template, self.message, self.shared)]
        known = [__version__, printed, "".join(forms)]
        self._known = [hashlib.sha256(x.encode()).digest()[:8] for x in known]
        self.identity = b"".join(self._known)

    def encode_shared(self, shared: PyTree, number: int) -> bytes:
        """What `steps.broadcast` returned, for all clients.

        Args:
            shared: all that clients are told.
            number: of the round, which is in the header.

        Raises:
            ValueError: if it is not like that of the template.
        """
        like = self._like(shared, self.shared, "shared")
        return self._head(_SHARED, number) + bytes_of(like)

    def decode_shared(self, data: bytes, number: int) -> PyTree:
        """What `encode_shared` had of the same round, in NumPy.

        Args:
            data: the bytes.
            number: of the round.

        Raises:
            ValueError: if the bytes are of anything else.
        """
        self._kind(data, number, _SHARED)
        return from_bytes(memoryview(data)[_HEADER.size :], self.shared)

    def encode(self, message: PyTree, number: int) -> bytes:
        """A client's message.

        Args:
            message: what `steps.client` returned.
            number: of the round, which is in the header.

        Raises:
            ValueError: if it is not like that of the template, as for metrics of which
                this was not told.
            TypeError: for what no client sends.
        """
        if not isinstance(message, Message):
            raise TypeError(
                "message: expected what `client` of the steps returned, got "
                f"{described(message)}. One that keeps a memory returns (message, "
                "memory)."
            )
        kind = _SUMMED
        if not isinstance(message.present, tuple):
            kind = _PRESENT if bool(message.present) else _ABSENT
        like = self._like(message, self.message, "message")
        return self._head(kind, number) + bytes_of(like._replace(present=()))

    def decode(self, data: bytes, number: int) -> PyTree:
        """The message that `encode` had in the same round, in NumPy, for `steps.add`.

        Args:
            data: the bytes.
            number: of the round.

        Raises:
            ValueError: if the bytes are of anything else.
        """
        coded = not isinstance(self.message.present, tuple)
        kinds = (_ABSENT, _PRESENT) if coded else (_SUMMED,)
        kind = self._kind(data, number, *kinds)
        message = from_bytes(
            memoryview(data)[_HEADER.size :], self.message._replace(present=())
        )
        present = np.bool_(kind == _PRESENT) if coded else ()
        return message._replace(present=present)

    def _head(self, kind: int, number: int) -> bytes:
        checks.check_whole(0, 2**63 - 1, number=number)
        return _HEADER.pack(_MAGIC, kind, *self._known, number)

    def _kind(self, data: bytes, number: int, *kinds: int) -> int:
        if len(data) < _HEADER.size:
            raise ValueError(f"Expected a header of {_HEADER.size} bytes, got less.")
        magic, kind, *got = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError("Expected bytes that a Wire wrote, got others.")
        for name, x, y in zip(_NAMES, [*self._known, number], got, strict=True):
            if x != y:
                shown = f", {y} and not {x}" if name == "round" else ""
                raise ValueError(f"Expected bytes of this {name}, got another{shown}.")
        if kind not in kinds:
            raise ValueError("Expected a message where something else was sent.")
        return kind

    def _like(self, x: PyTree, form: PyTree, name: str) -> Any:
        x = jax.tree.map(np.asarray, x)
        expected, got = written(form), written(x)
        if expected != got:
            raise ValueError(
                f"{name}: expected what is like the template's, {expected}; got {got}. "
                "Metrics of the clients' work are named in Wire(..., metrics=...)."
            )
        return x
