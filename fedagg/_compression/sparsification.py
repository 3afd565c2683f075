"""A few entries of a value: the largest ones, or some drawn by all clients alike."""

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._messages.packing import pack, unpack
from fedagg._payload import Payload
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks
from fedagg._trees.template import PublicRound, Template
from fedagg._types import Output, PyTree, Stage, Traits, Update


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sparse(Payload):
    """Some entries of a vector, and where they stand, as they go on the wire."""

    values: jax.Array  # [k]
    positions: tuple[jax.Array, ...]  # codes of as many bits as the last position has
    size: int = field(metadata={"static": True})

    def decode(self) -> jax.Array:
        """The vector `[size]`, zero elsewhere."""
        positions = unpack(self.positions, _bits(self.size), self.values.size)
        return jnp.zeros((self.size,), self.values.dtype).at[positions].set(self.values)


@prints_as_its_call
def top_k(fraction: float, *, name: str = "top_k") -> Stage:
    """Sends the entries that are largest in size, with their positions.

    Biased towards them: `with_error_feedback` makes up for it. The entries of all
    leaves compete as one vector `[d]`, of which `k = ceil(fraction * d)` are sent, as
    float32 and a position of as many bits as `d - 1` has. A NaN counts as largest, and
    shows in the sum.

    Positions differ from client to client, so that messages cannot be added: the server
    decodes each first.

    Args:
        fraction: of the entries, above 0 and at most 1.
        name: what errors call this stage.

    Raises:
        ValueError: if `fraction` is out of range; in `client`, for a value unlike the
            template given to `init`.
        TypeError: in `client`, for a leaf that is not of a float dtype.

    Reference: Aji and Heafield, "Sparse Communication for Distributed Gradient
        Descent", 2017, section 3.
    """
    checks.check_within("(0, 1]", fraction=fraction)

    def client(shared: Template, update: Update, key: jax.Array | None):
        del key
        vector = shared.ravel(update.value, name)
        _, positions = jax.lax.top_k(jnp.abs(vector), _count(fraction, vector.size))
        size = vector.size
        packed = pack(positions, _bits(size))
        message = Sparse(vector[positions], packed, size)
        return update._replace(value=message), ()

    def server(state: Template, total: PyTree, note: PyTree, key: jax.Array | None):
        del note, key
        return Output(state, state.unravel(total), {})

    traits = Traits(name, codes=True)
    return Stage(Template.of, lambda state: state, client, server, traits)


@prints_as_its_call
def random_k(fraction: float, *, seed: int = 0, name: str = "random_k") -> Stage:
    """Sends the entries at positions that all clients of a round have in common.

    The vector `[d]` of all entries is cut into `k = ceil(fraction * d)` stretches of
    equal length, give or take one, and from each comes one entry. The server multiplies
    it by the length of its stretch, so that the value is unbiased; its squared error is
    `d / k - 1` times the square of its norm. Positions follow from `seed` and the round
    alone, and are not sent.

    Messages can be added as they are, under secure aggregation too.

    Args:
        fraction: of the entries, above 0 and at most 1.
        seed: what positions are drawn from. Public: clients and server share it.
        name: what errors call this stage.

    Raises:
        ValueError: if `fraction` is out of range; in `client`, for a value unlike the
            template given to `init`.
        TypeError: in `client`, for a leaf that is not of a float dtype.

    Reference: Konečný et al., "Federated Learning: Strategies for Improving
        Communication Efficiency", 2016, section 2, "random mask"; drawn by stretches.
    """
    checks.check_within("(0, 1]", fraction=fraction)

    def stretches(state: PublicRound) -> tuple[jax.Array, jax.Array]:
        """Where each begins, and its length."""
        size = state.template.size
        count = _count(fraction, size)
        ends = np.arange(count + 1) * size // max(1, count)  # a value may be empty
        return jnp.asarray(ends[:-1], jnp.int32), jnp.asarray(np.diff(ends), jnp.int32)

    def positions_of(state: PublicRound) -> jax.Array:
        starts, lengths = stretches(state)
        drawn = jax.random.randint(
            state.key(seed), starts.shape, 0, lengths, starts.dtype
        )
        return starts + drawn

    def broadcast(state: PublicRound) -> tuple[Template, jax.Array]:
        return state.template, positions_of(state)

    def client(shared: tuple, update: Update, key: jax.Array | None):
        del key
        template, positions = shared
        vector = template.ravel(update.value, name)
        return update._replace(value=vector[positions]), jnp.float32(1.0)

    def server(
        state: PublicRound, total: jax.Array, note: jax.Array, key: jax.Array | None
    ):
        del key
        _, lengths = stretches(state)
        vector = jnp.zeros((state.template.size,), jnp.float32)
        vector = vector.at[positions_of(state)].set(total * lengths.astype(jnp.float32))
        return Output(state.after(note), state.template.unravel(vector), {})

    traits = Traits(name, transforms=True)
    return Stage(PublicRound.first, broadcast, client, server, traits)


def _count(fraction: float, size: int) -> int:
    """Entries to send; the small slack is for products such as 0.07 * 100."""
    return math.ceil(fraction * size * (1.0 - 1e-9))


def _bits(size: int) -> int:
    return max(1, (size - 1).bit_length())
