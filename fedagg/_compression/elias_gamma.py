"""Entropy coding of integers that are small and often zero."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_MOST_ENTRIES = 2**31  # so that the code of a run and a sign fit in 64 bits
_PIECE = 2**15  # bytes that are taken apart together, so that they stay in cache


def elias_gamma_encode(x: np.ndarray | jax.Array) -> bytes:
    """Codes integers as bytes, small ones and zeros in few bits.

    The code gamma(k) of a number k > 0 is as many zeros as k has binary digits after
    the first, a one, and these digits, the lowest first. Every entry other than zero
    writes gamma(1 + zeros just before it), a bit that is one if it is positive, and
    gamma(|entry|); zeros at the end write gamma(1 + their number). Bits fill a byte
    from the lowest, and zeros fill up the last byte. An entry takes at most 65 bits,
    an array without entries no byte. These are the bytes of TensorFlow Compression's
    `run_length_gamma_encode`, with which TensorFlow Federated measured bit rates.

    Runs on the host.

    Args:
        x: at most 2**31 integers in the range of int32, of any shape, read in C order.

    Raises:
        TypeError: if `x` is not of an integer dtype.
        ValueError: if an entry is outside the range of int32, or there are too many.

    Reference: Elias, "Universal codeword sets and representations of the integers",
        1975, the code gamma.
    """
    x = np.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"Expected integers, got {x.dtype}: round and cast them first.")
    _check_size(x.size)
    x = x.reshape(-1)
    at = np.flatnonzero(x)
    values = x[at]
    int32 = np.iinfo(np.int32)
    if at.size and (values.max() > int32.max or values.min() < int32.min):
        span = f"{values.min()} to {values.max()}"
        raise ValueError(f"Expected entries in the range of int32, got {span}.")

    gaps, gap_lengths = _gamma(np.diff(at, prepend=-1))
    positive = (values > 0).astype(np.uint64) << gap_lengths.astype(np.uint64)
    sizes, size_lengths = _gamma(np.abs(values.astype(np.int64)))
    codes = np.stack([gaps | positive, sizes], axis=1).reshape(-1)
    lengths = np.stack([gap_lengths + 1, size_lengths], axis=1).reshape(-1)
    rest, rest_length = _gamma_of_rest(x.size - _end(at))
    return _joined(np.append(codes, rest), np.append(lengths, rest_length))


def elias_gamma_decode(
    data: bytes | bytearray | memoryview, shape: Sequence[int]
) -> np.ndarray:
    """Gives the int32 array `[*shape]` that `elias_gamma_encode` made `data` of.

    Nothing else decodes: the code of an array is the only one that gives it.

    Runs on the host.

    Args:
        data: the bytes, all of them and no more.
        shape: the shape of the array, which `data` does not hold.

    Raises:
        ValueError: if `data` is not the code of an array with as many entries as
            `shape` has, or these are too many.

    Reference: Elias, "Universal codeword sets and representations of the integers",
        1975, the code gamma.
    """
    if any(x < 0 for x in shape):
        raise ValueError(f"Expected no negative number in the shape, got {shape=}.")
    size = math.prod(shape)
    _check_size(size)
    octets = np.frombuffer(data, np.uint8)
    starts, end = _starts(octets, size)
    words = np.zeros(octets.size // 8 + 2, "<u8")  # any 64 bits are within two words
    words.view(np.uint8)[: octets.size] = octets

    gaps, signs_at = _read_gamma(words, starts)
    positive = _read(words, signs_at) & np.uint64(1)
    sizes, _ = _read_gamma(words, signs_at + 1)
    if np.any(gaps == 0) or np.any((sizes == 0) | (sizes >= 2**31 + (positive == 0))):
        raise ValueError("Expected entries in the range of int32, got longer codes.")
    at = np.cumsum(gaps) - 1
    # What is left after the last entry other than zero can be one thing only.
    rest, rest_length = _gamma_of_rest(max(size - _end(at), 0))
    left = 8 * octets.size - end
    tail = int.from_bytes(octets[end // 8 :][:10].tobytes(), "little") >> end % 8
    if _end(at) > size or not 0 <= left - rest_length.sum() < 8 or tail != rest.sum():
        raise ValueError(
            f"Expected the code of {size} entries for {shape=}, got one of {_end(at)} "
            f"and {left} bits that are not the code of the rest. Is the data cut off, "
            "or the shape another's?"
        )
    x = np.zeros(size, np.int32)
    x[at] = np.where(positive == 1, sizes, -sizes)
    return x.reshape(shape)


def elias_gamma_bits(x: jax.Array) -> jax.Array:
    """Counts the bits `[]` that `elias_gamma_encode` makes of an array, as uint32.

    The count is eight times the number of bytes, for every input, and wraps at 2**32.
    No 66,000,000 entries reach that, nor do 2**26 if less than a third are -2**31.

    Args:
        x: integers of any shape, of a dtype whose values int32 holds.

    Raises:
        TypeError: if `x` is of another dtype.

    Reference: Elias, "Universal codeword sets and representations of the integers",
        1975, the code gamma.
    """
    if not jnp.issubdtype(x.dtype, jnp.integer) or not np.can_cast(x.dtype, np.int32):
        raise TypeError(f"Expected integers that int32 holds, got {x.dtype}.")
    x = jnp.ravel(x).astype(jnp.int32)
    if x.size == 0:
        return jnp.uint32(0)
    position = jnp.arange(x.size, dtype=jnp.int32)
    last = lax.cummax(jnp.where(x != 0, position, -1))  # other than zero, up to here
    gap = position - jnp.concatenate([jnp.full((1,), -1, jnp.int32), last[:-1]])
    # The size of -2**31 wraps to itself, whose bits are those of 2**31.
    bits = jnp.where(x != 0, _gamma_bits(gap) + 1 + _gamma_bits(jnp.abs(x)), 0)
    rest = x.size - last[-1]
    bits = jnp.sum(bits, dtype=jnp.uint32) + jnp.where(rest > 1, _gamma_bits(rest), 0)
    return (bits + 7) // 8 * 8


def _gamma_bits(k: jax.Array) -> jax.Array:
    """The length of gamma(k), as uint32."""
    return 63 - 2 * lax.clz(k).astype(jnp.uint32)


def _check_size(size: int) -> None:
    if size > _MOST_ENTRIES:
        raise ValueError(f"Expected at most {_MOST_ENTRIES} entries, got {size}.")


def _end(at: np.ndarray) -> int:
    """One more than the last position, or zero without any."""
    return int(at[-1]) + 1 if at.size else 0


def _gamma(k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The codes gamma(k) as uint64, the first bit lowest, and their lengths."""
    digits = np.frexp(k.astype(np.float64))[1].astype(np.int64) - 1  # exact: k < 2**53
    one = np.int64(1) << digits
    return (one | ((k - one) << (digits + 1))).astype(np.uint64), 2 * digits + 1


def _gamma_of_rest(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The code of zeros at the end, `[1]`, or `[0]` if there are none."""
    return _gamma(np.array([count + 1] if count else [], np.int64))


def _joined(codes: np.ndarray, lengths: np.ndarray) -> bytes:
    """Codes of 1 to 64 bits, one after the other."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    word, shift = starts >> 6, (starts & 63).astype(np.uint64)
    words = np.zeros(_end(word) + 1, np.uint64)
    if codes.size:
        first = np.flatnonzero(np.diff(word, prepend=-1))
        words[word[first]] = np.bitwise_or.reduceat(codes << shift, first)
    cut = np.flatnonzero((ends - 1) >> 6 > word)  # at most one in each word
    words[word[cut] + 1] |= codes[cut] >> (np.uint64(64) - shift[cut])
    return words.astype("<u8").tobytes()[: (int(lengths.sum()) + 7) // 8]


def _starts(octets: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """The bits at which entries' codes begin, and the end of the last code.

    Stops after a piece of the input in which they become more than `most`.
    """
    found, at = [], 0
    while True:
        ends = _ends(octets[at // 8 :][:_PIECE]).data
        last, here, starts = len(ends) - 1, at % 8, []
        while (end := ends[here]) <= last:
            starts.append(here)
            here = end
        found.append(np.array(starts, np.int64) + at // 8 * 8)
        at = at // 8 * 8 + here
        most -= len(starts)
        if not starts or most < 0:
            return np.concatenate(found), at


def _ends(octets: np.ndarray) -> np.ndarray:
    """For each bit, where a code of an entry would end that begins at this bit.

    A code that the end of the input cuts off ends after it. The last number, one more
    than there are bits, is for a code that begins at the end.
    """
    bits = np.unpackbits(octets, bitorder="little")
    position = np.arange(bits.size + 1)
    one = np.append(np.where(bits, position[:-1], bits.size), bits.size)
    next_one = np.minimum.accumulate(one[::-1])[::-1]
    ends = 2 * next_one - position + 1  # of one gamma
    return ends[np.minimum(ends + 1, bits.size)]  # the sign is between the two


def _read(words: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The 64 bits from a position on."""
    word, shift = at >> 6, (at & 63).astype(np.uint64)
    # In two steps, as a shift by 64 is not defined.
    upper = words[word + 1] << np.uint64(1) << (np.uint64(63) - shift)
    return (words[word] >> shift) | upper


def _read_gamma(words: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number whose gamma is at a position, and where that ends; 0 if over 2**32."""
    word = _read(words, at)
    digits = np.bitwise_count(~word & (word - np.uint64(1))).astype(np.uint64)
    fits = digits < 32
    digits = np.where(fits, digits, 0).astype(np.uint64)
    one = np.uint64(1) << digits
    k = one | (word >> digits >> np.uint64(1)) & (one - np.uint64(1))
    return np.where(fits, k, 0).astype(np.int64), at + 2 * digits.astype(np.int64) + 1
