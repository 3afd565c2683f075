"""Rotations by a public seed, which spread a value over all entries of a vector."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._compression.hadamard import hadamard
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks
from fedagg._trees.template import PublicRound, Template
from fedagg._types import Output, PyTree, Stage, Traits, Update


class _Kind(NamedTuple):
    """A family of rotations of vectors `[length]`."""

    length: Callable[[int], int]  # what so many entries are filled up to
    draw: Callable[[jax.Array, int], jax.Array]  # (key, length) -> turn, one of them
    rotate: Callable[[jax.Array, jax.Array], jax.Array]  # (turn, vector) -> vector
    back: Callable[[jax.Array, jax.Array], jax.Array]  # its inverse


@prints_as_its_call
def rotation(kind: str, *, seed: int = 0, name: str = "rotation") -> Stage:
    """Turns each client's value by a random rotation that all share in a round.

    All entries together are one vector, filled up with zeros and rotated. It keeps its
    norm, and its largest entry falls to about `sqrt(2 log(d) / d)` of that whatever the
    value was, which suits a `quantization` after this. The server rotates the sum back,
    so that without such a stage the sum is the same, to rounding.

    `"hadamard"` flips signs at random and takes the Walsh-Hadamard transform, of a
    length that is a power of two. `"dft"` makes complex numbers of the two halves of
    the vector, turns each by a random angle and takes the Fourier transform: it adds
    one entry at most, and takes longer.

    What stages after this see is one float32 vector `[length]`. A NaN or an infinity
    in one entry of a present client is in all entries of the sum after it: put
    `zeroing` before this. Rotations follow from `seed` and the number of rounds in
    which anyone was present, and hide nothing.

    Args:
        kind: "hadamard" or "dft".
        seed: what rotations are drawn from. Public: clients and server share it.
        name: what errors call this stage.

    Raises:
        ValueError: if `kind` is another; in `client`, for a value unlike the template
            given to `init`.
        TypeError: in `init` and `client`, for a leaf that is not of a float dtype.

    Reference: Suresh et al., "Distributed Mean Estimation with Limited Communication",
        2017, section 3; TensorFlow Federated,
        `tff.aggregators.DiscreteFourierTransformFactory`.
    """
    family = _family(kind)

    def init(template: PyTree) -> PublicRound:
        checks.check_floating(template, name)
        return PublicRound.first(template)

    def broadcast(state: PublicRound) -> tuple[Template, jax.Array]:
        length = family.length(state.template.size)
        return state.template, family.draw(state.key(seed), length)

    def client(shared: tuple, update: Update, key: jax.Array | None):
        del key
        template, turn = shared
        # Else the compiler puts leaves together in an order of its own, at length.
        vector = jax.lax.optimization_barrier(template.ravel(update.value, name))
        return update._replace(value=family.rotate(turn, vector)), jnp.float32(1.0)

    def server(
        state: PublicRound, total: jax.Array, note: jax.Array, key: jax.Array | None
    ):
        del key
        template, turn = broadcast(state)
        vector = family.back(turn, total)[: template.size]
        return Output(state.after(note), template.unravel(vector), {})

    return Stage(init, broadcast, client, server, Traits(name, transforms=True))


def check_rotation(**arguments: str) -> None:
    """Raises a ValueError for what is no kind of rotation."""
    checks.check_choice(tuple(_KINDS), **arguments)


def rotated_length(kind: str, size: int) -> int:
    """The length of the vector that so many entries are rotated in.

    Raises:
        ValueError: if `kind` is another than `rotation` takes.
    """
    return _family(kind).length(size)


def _family(kind: str) -> _Kind:
    check_rotation(kind=kind)
    return _KINDS[kind]


def _power_of_two(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _draw_signs(key: jax.Array, length: int) -> jax.Array:
    """A bit for each entry, in words `[length / 32]`."""
    return jax.random.bits(key, (-(-length // 32),), jnp.uint32)


def _flip(words: jax.Array, x: jax.Array) -> jax.Array:
    """Negates the entries whose bit is one."""
    shifts = jax.lax.broadcasted_iota(jnp.uint32, (32, words.size), 0)
    bits = (words[None] >> shifts) & 1
    return jnp.where(bits.ravel()[: x.size] == 1, -x, x)


def _filled(x: jax.Array, length: int) -> jax.Array:
    return jnp.pad(x, (0, length - x.size))


def _even(size: int) -> int:
    return max(2, size + size % 2)


def _draw_phases(key: jax.Array, length: int) -> jax.Array:
    """Numbers on the unit circle, as complex64 `[length / 2]`."""
    angles = jax.random.uniform(key, (length // 2,), jnp.float32, 0.0, 2.0 * jnp.pi)
    return jax.lax.complex(jnp.cos(angles), jnp.sin(angles))


def _fourier(phases: jax.Array, x: jax.Array) -> jax.Array:
    z = phases * _complex(_filled(x, 2 * phases.size))
    return _real(jnp.fft.fft(z, norm="ortho"))


def _fourier_back(phases: jax.Array, x: jax.Array) -> jax.Array:
    return _real(jnp.conj(phases) * jnp.fft.ifft(_complex(x), norm="ortho"))


def _complex(x: jax.Array) -> jax.Array:
    """The first half of a vector as real parts, the second as imaginary parts."""
    return jax.lax.complex(*jnp.split(x, 2))


def _real(z: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.real(z), jnp.imag(z)])


_KINDS = {
    "hadamard": _Kind(
        _power_of_two,
        _draw_signs,
        lambda turn, x: hadamard(_filled(_flip(turn, x), _power_of_two(x.size))),
        lambda turn, x: _flip(turn, hadamard(x)),
    ),
    "dft": _Kind(_even, _draw_phases, _fourier, _fourier_back),
}
