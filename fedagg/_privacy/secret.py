"""Keys that nobody can guess."""

import secrets

import jax
import jax.numpy as jnp
import numpy as np


def secret_key() -> jax.Array:
    """A key `[]` for private noise, from the operating system's randomness.

    Who knows the key knows the noise, and subtracts it. Such a key is:

    - secret. It is not printed or kept, and no seed is: `jax.random.key(seed)` has 32
      bits of its seed, which one core tries in half a day.
    - fresh, for each run and each party. From it, private stages make another key in
      each round, by the number of rounds in their state. A run that goes on from an
      earlier state, or that begins anew, takes a new one.
    - of 64 bits with JAX's default generator, `threefry2x32`: 2**32 such half days. It
      is as long as the generator of `jax_default_prng_impl` takes, 128 bits for "rbg".

    Epsilon takes the noise for random. It is no more than pseudorandom, by a generator
    that passes statistical tests and was not made to be secure against who looks for
    its key in another way than by trying all.

    Reference: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011,
        section 4.
    """
    shape = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
    words = np.frombuffer(secrets.token_bytes(4 * int(np.prod(shape))), np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words.reshape(shape)))
