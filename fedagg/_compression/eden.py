"""EDEN and DRIVE: rotate, round to the best few values for a normal, set the scale."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from fedagg._compression.hadamard import hadamard
from fedagg._compression.random import random_bits
from fedagg._compression.rotation import rotation
from fedagg._messages.packing import pack, unpack
from fedagg._payload import Payload
from fedagg._rounds.chain import chain
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks
from fedagg._types import Stage, Traits, Update


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rotated(Payload):
    """A vector rotated once more, each entry a code of a few bits, as on the wire."""

    packed: tuple[jax.Array, ...]
    scale: jax.Array  # []
    words: jax.Array  # [2] uint32, the seed of the client's own rotation
    code_bits: int = field(metadata={"static": True})
    size: int = field(metadata={"static": True})

    def decode(self) -> jax.Array:
        """The vector `[size]`, rotated back by the client's own rotation."""
        values = _values(unpack(self.packed, self.code_bits, self.size), self.code_bits)
        return self.scale * _signs(self.words, self.size) * hadamard(values)


@prints_as_its_call
def eden(bits: int, *, seed: int = 0, name: str = "eden") -> Stage:
    """Sends a few bits an entry, without bias, for vectors of any shape alike.

    The vector `[d]` of all entries is rotated twice, as `rotation("hadamard")` does it:
    by a rotation that all share in a round, and by one of the client's own. (After one
    alone, the large entries of a vector that has few would be off by percents.) Its
    entries are then close to normal. Each is rounded to one of the `2**bits` values
    that are best for a normal, and a scale makes the whole unbiased. The squared error,
    in squares of the vector's norm, is 0.571, 0.133, 0.0358 and 0.00959 for one to four
    bits, and falls with the number of clients.

    The message has codes for `d` filled up to a power of two, a scale and the seed of
    the client's rotation. A value of zero is exact. A NaN or an infinity makes the
    whole NaN: put `zeroing` before this. Messages cannot be added: the server decodes
    each first.

    Args:
        bits: from 1 to 8.
        seed: what the shared rotations are drawn from. Public.
        name: what errors call this stage.

    Raises:
        ValueError: if `bits` is out of range; in `client`, without a key, or for a
            value unlike the template given to `init`.
        TypeError: in `client`, for a leaf that is not of a float dtype.

    Reference: Vargaftik et al., "EDEN: Communication-Efficient and Robust Distributed
        Mean Estimation for Federated Learning", 2022, section 3.
    """
    checks.check_whole(1, 8, bits=bits)
    bits = int(bits)

    def scale(rotated: jax.Array, rounded: jax.Array) -> jax.Array:
        return jnp.vdot(rotated, rotated) / _or_one(jnp.vdot(rotated, rounded))

    return chain(rotation("hadamard", seed=seed, name=name), _coding(bits, scale, name))


@prints_as_its_call
def drive(*, seed: int = 0, name: str = "drive") -> Stage:
    """Sends one bit an entry, with the least error for one client alone.

    As `eden(1)`, but with the scale that makes the squared error least: 0.363 squares
    of the norm, by shrinking the vector. That bias does not fall with the number of
    clients; `eden(1)` is unbiased, with an error of 0.571 that does.

    Args:
        seed: what the shared rotations are drawn from. Public.
        name: what errors call this stage.

    Raises:
        ValueError: in `client`, without a key, or for a value unlike the template given
            to `init`.
        TypeError: in `client`, for a leaf that is not of a float dtype.

    Reference: Vargaftik et al., "DRIVE: One-bit Distributed Mean Estimation", 2021,
        section 3.
    """

    def scale(rotated: jax.Array, rounded: jax.Array) -> jax.Array:
        return jnp.vdot(rotated, rounded) / jnp.vdot(rounded, rounded)

    return chain(rotation("hadamard", seed=seed, name=name), _coding(1, scale, name))


def _coding(bits: int, scale_of: Callable, name: str) -> Stage:
    """Rotates a vector by a rotation of the client's own, and quantizes it."""

    def client(update: Update, key: jax.Array | None):
        vector = update.value
        words = jax.random.bits(
            checks.check_key(key, name, "random numbers"), (2,), jnp.uint32
        )
        rotated = hadamard(_signs(words, vector.size) * vector)
        rotated = jax.lax.optimization_barrier(rotated)
        size_of_entry = jnp.sqrt(jnp.vdot(rotated, rotated) / vector.size)
        codes = _codes(rotated / _or_one(size_of_entry), bits)
        codes = jax.lax.optimization_barrier(codes)
        scale = scale_of(rotated, _values(codes, bits))
        message = Rotated(pack(codes, bits), scale, words, bits, vector.size)
        return update._replace(value=message), ()

    return Stage.stateless(client, traits=Traits(name, codes=True))


def _signs(words: jax.Array, size: int) -> jax.Array:
    """A random sign, one or minus one, for each position."""
    bit = (random_bits(words, size) >> 31).astype(jnp.int32)
    return (1 - 2 * bit).astype(jnp.float32)


def _or_one(x: jax.Array) -> jax.Array:
    """The divisor, or one for a vector of zeros."""
    return jnp.where(x == 0.0, 1.0, x)


def _codes(x: jax.Array, bits: int) -> jax.Array:
    """The position of the nearest value, for each entry."""
    half = 2 ** (bits - 1)
    borders = jnp.asarray(lloyd_max(bits)[1][half:])
    if bits <= 4:
        # A few comparisons are quicker than to look each entry up.
        size = sum(((jnp.abs(x) > b).astype(jnp.int32) for b in borders), jnp.int32(0))
    else:
        size = jnp.searchsorted(borders, jnp.abs(x)).astype(jnp.int32)
    return jnp.where(x > 0.0, half + size, half - 1 - size)


def _values(codes: jax.Array, bits: int) -> jax.Array:
    """The values at these positions."""
    half = 2 ** (bits - 1)
    values = lloyd_max(bits)[0][half:]
    size = jnp.where(codes >= half, codes - half, half - 1 - codes)
    if bits <= 4:
        steps = enumerate(np.diff(values))
        value = sum((jnp.where(size > i, x, 0.0) for i, x in steps), values[0])
    else:
        value = jnp.asarray(values)[size]
    return jnp.where(codes >= half, value, -value)


@functools.cache
def lloyd_max(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The optimal quantizer of a standard normal: its values `[2**bits]`, its borders.

    Reference: Lloyd, "Least Squares Quantization in PCM", 1982, method I; Max,
        "Quantizing for Minimum Distortion", 1960.
    """
    count = 2**bits
    values = math.sqrt(3.0) * scipy.special.ndtri((np.arange(count) + 0.5) / count)
    while True:
        borders = (values[1:] + values[:-1]) / 2.0
        ends = np.concatenate([[-np.inf], borders, [np.inf]])
        density = np.exp(-(ends**2) / 2.0) / math.sqrt(2.0 * math.pi)
        means = -np.diff(density) / np.diff(scipy.special.ndtr(ends))
        if np.max(np.abs(means - values)) < 1e-9:
            return values.astype(np.float32), borders.astype(np.float32)
        values = means
