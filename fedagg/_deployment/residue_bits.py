"""Integers of a few bits as a stream of bits, none of them wasted."""

from collections.abc import Sequence

import numpy as np

_PIECE = 2**16  # entries that are spread out at once


def pack(parts: Sequence[tuple[np.ndarray, int]]) -> bytes:
    """Entries uint32, of `bits` bits each, part after part, the lowest bit first.

    Zeros fill up the last byte.
    """
    packed, rest = [], np.zeros(0, np.uint8)
    for words, bits in parts:
        words = words.reshape(-1)
        for start in range(0, words.size, _PIECE):
            octets = words[start : start + _PIECE].astype("<u4").view(np.uint8)
            octets = octets.reshape(-1, 4)
            if not (bits % 8 or rest.size):  # whole bytes stay what they are
                packed.append(octets[:, : bits // 8].tobytes())
                continue
            spread = np.unpackbits(octets, axis=1, bitorder="little")
            stream = np.concatenate([rest, spread[:, :bits].reshape(-1)])
            whole = stream.size // 8 * 8
            packed.append(np.packbits(stream[:whole], bitorder="little").tobytes())
            rest = stream[whole:]
    packed.append(np.packbits(rest, bitorder="little").tobytes())
    return b"".join(packed)


def unpack(
    data: bytes | memoryview, parts: Sequence[tuple[tuple[int, ...], int]]
) -> list[np.ndarray]:
    """The inverse of `pack`, for parts of these shapes and bits.

    Raises:
        ValueError: if the data is not what `pack` makes of any.
    """
    octets, at, found = np.frombuffer(data, np.uint8), 0, []  # `at` in bits
    for shape, bits in parts:
        words = np.zeros(int(np.prod(shape, dtype=np.int64)), np.uint32)
        for start in range(0, words.size, _PIECE):
            piece = words[start : start + _PIECE]
            end = at + bits * piece.size
            if not (bits % 8 or at % 8):
                whole = np.zeros((piece.size, 4), np.uint8)
                of_piece = octets[at // 8 : end // 8].reshape(piece.size, bits // 8)
                whole[:, : bits // 8] = of_piece
                piece[:], at = whole.view("<u4")[:, 0], end
                continue
            stream = np.unpackbits(octets[at // 8 : -(-end // 8)], bitorder="little")
            spread = np.zeros((piece.size, 32), np.uint8)
            stream = stream[at % 8 : at % 8 + bits * piece.size]
            spread[:, :bits] = stream.reshape(piece.size, bits)
            piece[:] = np.packbits(spread, axis=1, bitorder="little").view("<u4")[:, 0]
            at = end
        found.append(words.reshape(shape))
    if at % 8 and octets[-1] >> (at % 8):
        raise ValueError("Expected zeros after the last entry.")
    return found


def packed_size(parts: Sequence[tuple[tuple[int, ...], int]]) -> int:
    """Bytes that `pack` makes of parts of these shapes and bits."""
    return -(-sum(int(np.prod(shape)) * bits for shape, bits in parts) // 8)
