"""One bit an entry, and a majority vote."""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from fedagg._compression.random import map_seeded, random_bits
from fedagg._messages.packing import pack, unpack
from fedagg._payload import Payload
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree
from fedagg._types import PyTree, Stage, Traits, Update


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Signs(Payload):
    """The signs of a tensor, as they go on the wire."""

    packed: tuple[jax.Array, ...]  # a bit an entry: one for positive
    vote: jax.Array  # [] one, or zero for a tensor that does not vote
    shape: tuple[int, ...] = field(metadata={"static": True})

    def decode(self) -> jax.Array:
        """One, minus one, or zero throughout, as float32."""
        bits = unpack(self.packed, 1, math.prod(self.shape))
        return ((2 * bits - 1).astype(jnp.float32) * self.vote).reshape(self.shape)


@prints_as_its_call
def sign(*, name: str = "sign") -> Stage:
    """Sends the sign of each entry; the value is the sign of what most clients sent.

    Entries of the value are 1, -1, or 0 where votes are equal; the learning rate gives
    them their size, so no `mean` goes with it. An entry that is zero votes by a fair
    coin, and a tensor that is zero throughout, as that of a client which `zeroing` took
    out, does not vote; neither does one with a NaN in it.

    Args:
        name: what errors call this stage.

    Raises:
        ValueError: in `client`, without a key to draw with.
        TypeError: in `client`, for a leaf that is not of a float dtype.

    Reference: Bernstein et al., "signSGD: Compressed Optimisation for Non-Convex
        Problems", 2018, algorithm 1, "majority vote".
    """

    def encode(x: jax.Array, words: jax.Array) -> Signs:
        vector = x.ravel()
        coin = random_bits(words, vector.size) >> 31
        bits = jnp.where(vector == 0.0, coin == 1, vector > 0.0)
        votes = pytree.norm(x, jnp.inf) > 0.0  # which NaN is not
        return Signs(pack(bits, 1), votes.astype(jnp.float32), x.shape)

    def client(update: Update, key: jax.Array | None):
        checks.check_floating(update.value, name)
        value = map_seeded(
            encode, checks.check_key(key, name, "random numbers"), update.value
        )
        return update._replace(value=value), ()

    def server(total: PyTree, note: PyTree, key: jax.Array | None):
        del note, key
        return jax.tree.map(jnp.sign, total), {}

    return Stage.stateless(client, server, Traits(name, codes=True))
