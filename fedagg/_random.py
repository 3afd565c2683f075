"""Cheap random bits for rounding: a hash of the position, seeded by a real key.

Drawing from `jax.random` costs more than all else that a compressor does. Rounding
needs draws that are uniform and uncorrelated, not ones that nobody can predict; noise
for privacy needs those, and never comes from here.
"""

import jax
import jax.numpy as jnp


def random_bits(key: jax.Array, size: int) -> jax.Array:
    """Uniform bits `[size]` as uint32, of which the upper 16 are good."""
    return hash_positions(jax.random.bits(key, (2,), jnp.uint32), size)


def hash_positions(words: jax.Array, size: int) -> jax.Array:
    """A hash of each position `[size]`, seeded by two words `[2]`.

    The second word keeps seeds apart whose first words hash the same positions. It
    multiplies twice, which is as little as the tests of its bits allow; the second time
    by the square map x + (x * x | 5), which leaves out and repeats no number.

    Reference: Klimov and Shamir, "A New Class of Invertible Mappings", 2003.
    """
    x = (jnp.arange(size, dtype=jnp.uint32) ^ words[0]) * jnp.uint32(0x7FEB352D)
    x = x ^ (x >> 14) ^ words[1]
    return x + (x * x | jnp.uint32(5))


def round_randomly(x: jax.Array, key: jax.Array) -> jax.Array:
    """Rounds a float32 vector `[d]` down or up, so that each entry's mean is the entry.

    A whole number stays what it is. Chances are multiples of 2**-16.
    """
    below = jnp.floor(x)
    draw = (random_bits(key, x.size) >> 16).astype(jnp.int32).astype(jnp.float32)
    return below + (draw + 0.5 < 2.0**16 * (x - below)).astype(x.dtype)


def check_key(key: jax.Array | None, name: str) -> jax.Array:
    """The key, or a ValueError that names the stage which lacks it."""
    if key is None:
        raise ValueError(f"{name} draws random numbers and needs a key, got key=None.")
    return key
