"""Cheap random bits for rounding: a hash of the position, seeded by a real key.

Drawing from `jax.random` costs more than all else that a compressor does. Rounding
needs draws that are uniform and uncorrelated, not ones that nobody can predict; noise
for privacy needs those, and never comes from here.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedagg._trees import pytree
from fedagg._types import PyTree


def map_seeded(
    fn: Callable[[jax.Array, Any], Any],
    key: jax.Array | None,
    tree: PyTree,
) -> PyTree:
    """Applies `fn(leaf, words)` to every leaf, with words `[2]` of its own from `key`.

    All are drawn at once: a draw for each leaf would cost more than the leaf's bits.
    """
    leaves, structure = pytree.flatten(tree)
    words = [None] * len(leaves)
    if key is not None:
        words = list(jax.random.bits(key, (len(leaves), 2), jnp.uint32))
    return pytree.unflatten(structure, list(map(fn, leaves, words)))


def random_bits(words: jax.Array, size: int) -> jax.Array:
    """Uniform bits `[size]` as uint32, of which the upper 16 are good.

    They are a hash of the position, seeded by two words `[2]` of true random bits. The
    second word keeps seeds apart whose first words hash the same positions. It
    multiplies twice, which is as little as the tests of its bits allow; the second time
    by the square map x + (x * x | 5), which leaves out and repeats no number.

    Reference: Klimov and Shamir, "A New Class of Invertible Mappings", 2003.
    """
    x = (jnp.arange(size, dtype=jnp.uint32) ^ words[0]) * jnp.uint32(0x7FEB352D)
    x = x ^ (x >> 14) ^ words[1]
    return x + (x * x | jnp.uint32(5))


def round_randomly(x: jax.Array, words: jax.Array) -> jax.Array:
    """Rounds floats `[d]` down or up, so that each entry's mean is the entry.

    A whole number stays what it is. Chances are multiples of 2**-16.
    """
    below = jnp.floor(x)
    draw = (random_bits(words, x.size) >> 16).astype(jnp.int32).astype(x.dtype)
    return below + (draw + 0.5 < 2.0**16 * (x - below)).astype(x.dtype)
