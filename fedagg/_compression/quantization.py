"""Quantization of each tensor to codes of a few bits: uniform, QSGD, TernGrad."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from fedagg._compression.random import map_seeded, random_bits
from fedagg._messages.packing import pack, unpack
from fedagg._payload import Payload
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree
from fedagg._trees.measures import minimum_and_maximum
from fedagg._types import PyTree, Stage, Traits, Update

# Entries closer than this count as equal: one over a step would overflow.
_LEAST = 1e-30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized(Payload):
    """A tensor as codes: `low + (code - zero) * step`, as it goes on the wire."""

    packed: tuple[jax.Array, ...]  # codes of `code_bits` bits
    step: jax.Array  # []
    low: jax.Array | None  # [], or nothing where it is zero
    code_bits: int = field(metadata={"static": True})
    zero: int = field(metadata={"static": True})
    shape: tuple[int, ...] = field(metadata={"static": True})

    def decode(self) -> jax.Array:
        """The tensor as float32; NaN throughout if an entry was not finite."""
        steps, _ = self.integers()
        value = steps.astype(jnp.float32) * self.step
        return (value if self.low is None else value + self.low).reshape(self.shape)

    def integers(self) -> tuple[jax.Array, PyTree]:
        """The steps of each entry, int32, and the step and the smallest entry."""
        codes = unpack(self.packed, self.code_bits, math.prod(self.shape))
        return codes - self.zero, (self.step, self.low)


@prints_as_its_call
def quantization(
    bits: int = 8,
    threshold: int = 20000,
    *,
    stochastic: bool = True,
    name: str = "quantization",
) -> Stage:
    """Sends each large tensor of a client as codes of a few bits.

    The entries of a tensor are rounded to one of `2**bits` values, equally spaced from
    its smallest entry to its largest, which are sent along. Rounding is random and
    unbiased: an entry's mean is the entry, its error below one step. A tensor whose
    entries are equal is exact, and so are those of `threshold` entries or fewer, which
    are sent as they are: a small model as a whole, until `threshold=0` codes all. Steps
    below 1e-30 count as zero. A tensor with a NaN or an infinity in it, or of a range
    that float32 cannot hold, becomes NaN throughout: put `zeroing` before this.

    Ranges differ from client to client, so that codes cannot be added: the server
    decodes each message first. Put this after `mean`, which cannot weigh codes.

    Args:
        bits: from 1 to 16.
        threshold: the largest number of entries that is left alone.
        stochastic: if False, rounds to the nearest value instead, halves to the even
            code; biased, and in need of no key.
        name: what errors call this stage.

    Raises:
        ValueError: if `bits` or `threshold` is out of range; in `client`, if it has no
            key to draw with.
        TypeError: in `client`, for a leaf that is not of a float dtype.

    Reference: Suresh et al., "Distributed Mean Estimation with Limited Communication",
        2017, section 2.2; TensorFlow Federated,
        `tff.aggregators.EncodedSumFactory.quantize_above_threshold`.
    """
    checks.check_whole(1, 16, bits=bits)
    checks.check_whole(0, threshold=threshold)
    levels = 2 ** int(bits) - 1

    def encode(x: jax.Array, words: jax.Array | None) -> jax.Array | Quantized:
        if x.size <= threshold:
            return x
        low, high = minimum_and_maximum([x])
        return _in_steps(x, levels, words, low, (high - low) / levels)

    return _of_each_tensor(encode, name, draws=stochastic)


@prints_as_its_call
def qsgd(levels: int, *, name: str = "qsgd") -> Stage:
    """Sends each tensor as its L2 norm and whole multiples of `norm / levels`.

    Rounding is random and unbiased; zeros stay zeros. A code is of as many bits as
    `2 * levels` needs: the paper's Elias code is shorter, and `elias_gamma` counts it.
    A tensor with a NaN or an infinity in it, or of a norm above 1.8e19, whose square
    float32 cannot hold, becomes NaN throughout.

    Args:
        levels: multiples of the step on either side of zero, from 1 to 32767. With
            more, messages grow and errors shrink.
        name: what errors call this stage.

    Raises:
        ValueError: if `levels` is out of range; in `client`, without a key.
        TypeError: in `client`, for a leaf that is not of a float dtype.

    Reference: Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient
        Quantization and Encoding", 2017, section 3.1.
    """
    checks.check_whole(1, 2**15 - 1, levels=levels)
    most = int(levels)

    def encode(x: jax.Array, words: jax.Array | None) -> Quantized:
        return _in_steps(x, most, words, None, pytree.norm(x) / most)

    return _of_each_tensor(encode, name)


@prints_as_its_call
def terngrad(*, name: str = "terngrad") -> Stage:
    """Sends each tensor as its largest size and one of -1, 0, 1 for each entry.

    Rounding is random and unbiased; zeros stay zeros. The paper's clipping at 2.5
    standard deviations, which is biased, is left out. A code takes two bits. A tensor
    with a NaN or an infinity in it becomes NaN throughout.

    Args:
        name: what errors call this stage.

    Raises:
        ValueError: in `client`, without a key to draw with.
        TypeError: in `client`, for a leaf that is not of a float dtype.

    Reference: Wen et al., "TernGrad: Ternary Gradients to Reduce Communication in
        Distributed Deep Learning", 2017, section 3.1.
    """

    def encode(x: jax.Array, words: jax.Array | None) -> Quantized:
        return _in_steps(x, 1, words, None, pytree.norm(x, jnp.inf))

    return _of_each_tensor(encode, name)


def _of_each_tensor(encode: Callable, name: str, draws: bool = True) -> Stage:
    """The stage whose client encodes each leaf with random words of its own."""

    def client(update: Update, key: jax.Array | None):
        checks.check_floating(update.value, name)
        key = checks.check_key(key, name, "random numbers") if draws else None
        value = map_seeded(encode, key, update.value)
        return update._replace(value=value), ()

    return Stage.stateless(client, traits=Traits(name, codes=True))


def _in_steps(
    x: jax.Array,
    levels: int,
    words: jax.Array | None,
    low: jax.Array | None,
    step: jax.Array,
) -> Quantized:
    """Rounds to whole steps, from `low` on or `levels` to either side of zero."""
    zero = 0 if low is not None else levels
    bits = (levels + zero).bit_length()
    fraction = min(16, 31 - bits)  # bits after the point, for fixed-point numbers
    step = jnp.where(step > _LEAST, step, 0.0 * step)  # a NaN stays
    is_one = step == 0.0
    per_step = jnp.where(is_one, 0.0, 2**fraction / jnp.where(is_one, 1.0, step))
    away = x.astype(jnp.float32).ravel()
    away = (away if low is None else away - low) * per_step
    away = jnp.clip(away, -zero * 2.0**fraction, levels * 2.0**fraction)
    if words is None:
        codes = jnp.round(away / 2**fraction).astype(jnp.int32)
    else:
        up = (random_bits(words, x.size) >> (32 - fraction)).astype(jnp.int32)
        codes = (away.astype(jnp.int32) + up) >> fraction
    packed = pack(codes + zero, bits)
    return Quantized(packed, step, low, bits, zero, x.shape)
