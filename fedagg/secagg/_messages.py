"""The messages of a round, and their bytes.

A message begins with a header: version, the plan's identifier, kind, sender, receiver.
Its fields follow in the order of its type. A field of bytes has a length known from the
plan. A list is preceded by the number of its items, which are in ascending order of the
client they begin with. Numbers take four bytes, the highest first. So a message has one
form only, and its length is checked before anything is read.
"""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from fedagg.secagg._agreement import ciphertext_size, key_size
from fedagg.secagg._crypto import SEALED
from fedagg.secagg._errors import MalformedMessageError, WrongMessageError
from fedagg.secagg._masking import packed_size
from fedagg.secagg._plan import Plan

SERVER = 2**32 - 1  # as a sender or receiver
NO_SIGNATURE = bytes(64)
FIELD = 32  # bytes of a share

_VERSION = 2
_HEADER = struct.Struct(">B32sBII")
_COUNT = struct.Struct(">I")
_VECTOR = "vector"


class Keys(NamedTuple):
    """Step 0, AdvertiseKeys, from a client: c^PK, s^PK and, if signed, a signature."""

    agreement: bytes
    masking: bytes
    signature: bytes


class KeysOfNeighbours(NamedTuple):
    """Step 0, AdvertiseKeys, from the server: keys of the client and its neighbours.

    With a digest of the keys of each client that advertised some, if signed.
    """

    keys: Sequence[tuple[int, bytes, bytes, bytes]]
    everyone: Sequence[tuple[int, bytes]]


class Shares(NamedTuple):
    """Step 1, ShareKeys, from a client: what commits it to b, an envelope for each.

    An envelope comes with the digests of the shares in it, of b and of s^SK.
    """

    commitment: bytes
    envelopes: Sequence[tuple[int, bytes, bytes, bytes]]


class SharesOfNeighbours(NamedTuple):
    """Step 1, ShareKeys, from the server: the envelopes for a client, with digests."""

    envelopes: Sequence[tuple[int, bytes, bytes, bytes]]


class HybridShares(NamedTuple):
    """`Shares` in a hybrid plan, with a seed for each neighbour of a higher number.

    A seed is a ciphertext for the neighbour, the secret hidden under the owner's s^SK,
    and its digest.
    """

    commitment: bytes
    envelopes: Sequence[tuple[int, bytes, bytes, bytes]]
    seeds: Sequence[tuple[int, bytes, bytes, bytes]]


class HybridSharesOfNeighbours(NamedTuple):
    """`SharesOfNeighbours`, with ciphertext and digest of the seeds for a client."""

    envelopes: Sequence[tuple[int, bytes, bytes, bytes]]
    seeds: Sequence[tuple[int, bytes, bytes]]


class MaskedInput(NamedTuple):
    """Step 2, MaskedInputCollection, from a client: y, packed."""

    vector: bytes


class Complaint(NamedTuple):
    """Step 2, MaskedInputCollection, in place of y: whose envelopes do not open."""

    clients: Sequence[tuple[int]]


class Survivors(NamedTuple):
    """Step 2, MaskedInputCollection, from the server if signed: all who sent y."""

    clients: Sequence[tuple[int]]


class Consistency(NamedTuple):
    """Step 3, ConsistencyCheck, from a client: it signs the list of survivors."""

    signature: bytes


class Unmasking(NamedTuple):
    """Step 4, Unmasking, from the server: which neighbours are alive, which are not.

    With signatures under the list of survivors, if signed.
    """

    alive: Sequence[tuple[int]]
    dropped: Sequence[tuple[int]]
    signatures: Sequence[tuple[int, bytes]]


class Opened(NamedTuple):
    """Step 4, Unmasking, from a client: a share of b or of s^SK for each neighbour."""

    self_masks: Sequence[tuple[int, bytes]]
    masking_keys: Sequence[tuple[int, bytes]]


_SEALED_SHARES = "*IEs32s32s"
_SHARES = f"*I{FIELD}s"
# The form of each field for `struct`, with a star before that of a list's items. K, E
# and C are the bytes of a public key, an envelope and a ciphertext, which depend on the
# plan.
_LAYOUTS: dict[type, tuple[str, ...]] = {
    Keys: ("Ks", "Ks", "64s"),
    KeysOfNeighbours: ("*IKsKs64s", "*I32s"),
    Shares: ("32s", _SEALED_SHARES),
    SharesOfNeighbours: (_SEALED_SHARES,),
    MaskedInput: (_VECTOR,),
    Complaint: ("*I",),
    Survivors: ("*I",),
    Consistency: ("64s",),
    Unmasking: ("*I", "*I", "*I64s"),
    Opened: (_SHARES, _SHARES),
    HybridShares: ("32s", _SEALED_SHARES, "*ICs32s32s"),
    HybridSharesOfNeighbours: (_SEALED_SHARES, "*ICs32s"),
}
_KINDS = list(_LAYOUTS)

FromClient = (
    Keys | Shares | HybridShares | MaskedInput | Complaint | Consistency | Opened
)
FromServer = (
    KeysOfNeighbours
    | SharesOfNeighbours
    | HybridSharesOfNeighbours
    | Survivors
    | Unmasking
)
M = TypeVar("M", bound=FromClient | FromServer)


def encode(
    message: FromClient | FromServer, plan: Plan, sender: int, receiver: int
) -> bytes:
    kind = _KINDS.index(type(message))
    parts = [_HEADER.pack(_VERSION, plan.identifier, kind, sender, receiver)]
    fields: tuple[Any, ...] = tuple(message)
    for form, value in zip(_forms(type(message), plan), fields, strict=True):
        if form.startswith("*"):
            item = struct.Struct(">" + form[1:])
            parts.append(_COUNT.pack(len(value)))
            parts.extend(item.pack(*record) for record in value)
        else:
            parts.append(value)
    return b"".join(parts)


def is_of(kind: type, data: bytes) -> bool:
    """Whether a message says that it is of a kind."""
    return len(data) >= _HEADER.size and _HEADER.unpack_from(data)[2] == _KINDS.index(
        kind
    )


def decode(kind: type[M], data: bytes, plan: Plan, sender: int, receiver: int) -> M:
    """Reads a message of a kind.

    Raises:
        MalformedMessageError: if the bytes are no message.
        WrongMessageError: if it is not of this kind, round, sender and receiver.
    """
    if len(data) < _HEADER.size:
        raise MalformedMessageError("Expected a header, got less.")
    version, *header = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise MalformedMessageError(f"Expected {_VERSION=}, got {version}.")
    wanted = (plan.identifier, _KINDS.index(kind), sender, receiver)
    for name, want, got in zip(
        ("round", "step", "sender", "receiver"), wanted, header, strict=True
    ):
        if want != got:
            shown = "another" if name == "round" else f"{got}, not {want}"
            raise WrongMessageError(f"Expected a message of this {name}, got {shown}.")
    fields, at = [], _HEADER.size
    for form in _forms(kind, plan):
        if form.startswith("*"):
            value, at = _read_list(form[1:], data, at, plan.clients)
        else:
            exact = form == _VECTOR
            size = packed_size(plan.bits, plan.length) if exact else int(form[:-1])
            value, at = bytes(data[at : at + size]), at + size
        fields.append(value)
    if at != len(data):
        raise MalformedMessageError(f"Expected {at} bytes, got {len(data)}.")
    return kind(*fields)


def _forms(kind: type, plan: Plan) -> list[str]:
    """The forms of a message's fields, with the sizes that a plan gives them."""
    ciphertext = ciphertext_size(plan)
    sizes = {
        "K": key_size(plan),
        "E": ciphertext + 2 * FIELD + SEALED,
        "C": ciphertext,
    }
    forms = list(_LAYOUTS[kind])
    for letter, size in sizes.items():
        forms = [form.replace(letter, str(size)) for form in forms]
    return forms


def _read_list(form: str, data: bytes, at: int, clients: int) -> tuple[list, int]:
    """The items of a list, and where it ends."""
    item = struct.Struct(">" + form)
    if len(data) < at + _COUNT.size:
        raise MalformedMessageError("Expected a list, got less.")
    (count,) = _COUNT.unpack_from(data, at)
    start = at + _COUNT.size
    end = start + count * item.size
    if count > clients or len(data) < end:
        raise MalformedMessageError(f"Expected {count} items, got less, or no room.")
    items = list(item.iter_unpack(data[start:end]))
    numbers = [x[0] for x in items]
    if any(a >= b for a, b in zip(numbers, numbers[1:], strict=False)):
        raise MalformedMessageError("Expected each client once, in ascending order.")
    if numbers and numbers[-1] >= clients:
        raise MalformedMessageError(f"Expected clients below {clients}.")
    return items, end
