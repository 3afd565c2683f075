"""What a client sends, what the server adds of it, and its size."""

from typing import NamedTuple

import jax

from fedagg._messages.payload import coded_parts, decode, is_payload, parts_of
from fedagg._trees import pytree
from fedagg._types import PyTree


class Message(NamedTuple):
    """What a client sends in a round. A sum of messages has the same parts."""

    value: PyTree  # what the stages made of the client's value
    note: PyTree  # what the stages note, summed too
    metrics: PyTree  # of the work: for each, weight times metric, and weight
    present: PyTree  # [] bool, whether the value counts; () if it is zero otherwise


def sent(
    value: PyTree, note: PyTree, metrics: PyTree, is_present: jax.Array
) -> Message:
    """The message of a client.

    Where the value is added as it is, a client whose value does not count sends zeros.
    Where it must be decoded first it stays as it is, and the server leaves it out.
    """
    if coded_parts(value):
        return Message(value, note, metrics, is_present)
    return Message(pytree.keep(is_present, value), note, metrics, ())


def added(message: Message) -> Message:
    """What the server adds of a message: arrays, in float32 or wider."""
    value = pytree.widen(decode(message.value))
    if coded_parts(message.value):
        value = pytree.keep(message.present, value)
    note, metrics = pytree.widen((message.note, message.metrics))
    return Message(value, note, metrics, ())


def count_bits(message: PyTree) -> int:
    """Bits of a message on the wire."""
    return sum(
        x.bits() if is_payload(x) else 8 * pytree.count_bytes(x)
        for _, x in parts_of(message)
    )
