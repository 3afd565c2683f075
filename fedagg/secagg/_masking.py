"""Masks in Z_{2^b}, added to vectors and taken off again, and vectors as bytes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fedagg._messages.packing import bit_fields
from fedagg.secagg._crypto import keystream
from fedagg.secagg._errors import MalformedMessageError

_PIECE = 2**16  # entries of all masks that are made before the next ones


class Mask(NamedTuple):
    """The stream of a key, and whether it is added or taken off."""

    key: bytes
    sign: int  # 1 or -1

    def __repr__(self) -> str:
        return f"Mask(sign={self.sign})"  # a key is never shown


def add_masks(
    total: np.ndarray,
    masks: Sequence[Mask],
    expand: Callable[[bytes], Callable[[bytes, bytearray], int]] = keystream,
) -> None:
    """Adds masks to uint32 entries `[length]` in place, wrapping at 2**32.

    The low b bits of an entry are then those of the sum modulo 2**b. A piece of the
    entries stays in cache while all masks are added to it, so that memory for one piece
    of one mask is all that is needed.
    """
    streams = [(expand(mask.key), mask.sign) for mask in masks]
    zeros = bytes(4 * min(_PIECE, total.size))
    buffer = bytearray(len(zeros) + 15)
    for start in range(0, total.size, _PIECE):
        piece = total[start : start + _PIECE]
        plain = zeros[: 4 * piece.size]
        words = np.frombuffer(buffer, "<u4", piece.size)
        for fill, sign in streams:
            fill(plain, buffer)
            (np.add if sign > 0 else np.subtract)(piece, words, out=piece)


def own_vector(vector: np.typing.ArrayLike, bits: int, length: int) -> np.ndarray:
    """A copy of uint32 `[length]` below 2**bits, in NumPy, wherever it came from.

    Raises:
        ValueError: for all else.
    """
    own = np.array(vector)
    if own.dtype != np.uint32 or own.shape != (length,):
        shown = f"{own.dtype} {list(own.shape)}"
        raise ValueError(f"Expected a vector uint32 [{length}], got {shown}.")
    if length and int(own.max()) >> bits:
        raise ValueError(f"Expected entries below 2**{bits}, got {own.max()}.")
    return own


def reduce(total: np.ndarray, bits: int) -> np.ndarray:
    """The entries modulo 2**bits, in place."""
    return np.bitwise_and(total, np.uint32(2**bits - 1), out=total)


def pack(vector: np.ndarray, bits: int) -> bytes:
    """Entries below 2**bits as bytes, `packed_size` of them.

    An entry is cut into parts of 8, 4, 2 and 1 bits, the lowest first; each part of all
    entries comes before the next. Where a byte holds several entries, they come from as
    many equal stretches of the vector.
    """
    packed = []
    for shift, width in bit_fields(bits):
        part = (vector >> np.uint32(shift)).astype(np.uint8)
        if width < 8:
            part &= np.uint8(2**width - 1)
            part = np.pad(part, (0, -part.size % (8 // width)))
            stretches = part.reshape(8 // width, -1)
            part = stretches[0].copy()
            for i in range(1, 8 // width):
                part |= stretches[i] << np.uint8(width * i)
        packed.append(part.tobytes())
    return b"".join(packed)


def unpack(data: bytes, bits: int, length: int) -> np.ndarray:
    """The inverse of `pack`, uint32 `[length]`.

    Raises:
        MalformedMessageError: if the data is not what `pack` makes of any vector.
    """
    if len(data) != packed_size(bits, length):
        raise MalformedMessageError(f"Expected {length} entries of {bits} bits.")
    # All in place: memory of so many entries that is new takes longer than the rest.
    octets = np.zeros((length, 4), np.uint8)
    highest = np.zeros(length, np.uint8)  # what an entry has beside whole bytes
    packed, at = np.frombuffer(data, np.uint8), 0
    for shift, width in bit_fields(bits):
        part = packed[at : at + (length * width + 7) // 8]
        at += part.size
        if width == 8:
            octets[:, shift // 8] = part
            continue
        shifts = np.arange(0, 8, width, dtype=np.uint8)
        part = (part[None] >> shifts[:, None]) & np.uint8(2**width - 1)
        part = part.reshape(-1)
        if part[length:].any():
            raise MalformedMessageError("Expected zeros after the last entry.")
        highest |= part[:length] << np.uint8(shift % 8)
    if bits % 8:
        octets[:, bits // 8] = highest
    return octets.view("<u4").reshape(-1).astype(np.uint32, copy=False)


def packed_size(bits: int, length: int) -> int:
    """Bytes that `pack` makes of a vector."""
    return sum((length * width + 7) // 8 for _, width in bit_fields(bits))
