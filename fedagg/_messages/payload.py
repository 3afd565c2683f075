"""Messages with payloads in them: how they are found, and decoded."""

from typing import Any

from fedagg._payload import Payload
from fedagg._trees import pytree
from fedagg._types import PyTree


def is_payload(x: Any) -> bool:
    return isinstance(x, Payload)


def parts_of(message: PyTree) -> list[tuple[str, Any]]:
    """The arrays and the payloads of a message, each with its path."""
    return pytree.parts_with_names(message, is_payload)


def coded_parts(message: PyTree) -> list[tuple[str, Payload]]:
    """The payloads that must be decoded before they are added, each with its path."""
    return [(path, x) for path, x in parts_of(message) if is_coded(x)]


def is_coded(x: Any) -> bool:
    """Whether this must be decoded before it is added."""
    return is_payload(x) and not x.is_added


def decode(message: PyTree) -> PyTree:
    """Replaces every payload that must be decoded before it is added."""
    return pytree.map_parts(lambda x: x.decode(), message, is_coded)


def inside(payload: Payload) -> list[tuple[str, Any]]:
    """The arrays and the payloads that a payload holds, each with its path."""
    return pytree.parts_with_names(
        payload, lambda x: x is not payload and is_payload(x)
    )
