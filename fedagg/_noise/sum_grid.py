"""The grid of integers that clipped values are summed on at the server, and its noise.

A clip is a power of two of steps. Sums of integers neither round nor depend on the way
to sum, so that one client moves them by one clip and not by what rounding adds to it.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._messages.marks import NoisedModulo
from fedagg._noise.integer_laws import discrete_gaussian
from fedagg._noise.integer_noise import LARGEST_STDDEV, draw, table_of
from fedagg._trees import pytree
from fedagg._trees.loops import in_steps
from fedagg._trees.reductions import cut
from fedagg._types import PyTree

# Sums are made modulo a power of two, after which noise hides no less than before.
BITS = 32

# Clips below this are refused: squares of smaller norms leave the range of float32.
LEAST_CLIP = 1e-10

# The deviation, in steps, of what rounds Gaussian noise to the discrete Gaussian.
ROUNDED = 2.0

_FEWEST = 1024  # clients that there is always room for
_LARGEST_FACTOR = 1024

# Steps of a deviation: as many as two draws make, or more where those of a clip would
# be few, while there is room for 32 deviations.
_USUAL_NOISE, _LARGEST_NOISE = LARGEST_STDDEV * _LARGEST_FACTOR, 2.0**26
_MANY_STEPS = 2.0**17


class SumGrid(NamedTuple):
    """Integers that stand for values. Sizes are in steps."""

    steps: float  # of the clip, a power of two
    deviation: float  # of the noise on the sum, which moves by a clip at most

    @classmethod
    def of(cls, multiplier: float, clients_per_round: float) -> "SumGrid":
        """The finest grid on which sums of twice the clients expected have room.

        Room in every entry, whatever the clients hold; and for noise of 2**26 steps.
        """
        steps = 2.0 ** (BITS - 1) / max(_FEWEST, 2.0 * clients_per_round)
        if multiplier > 0.0:
            steps = min(steps, max(_USUAL_NOISE / multiplier, _MANY_STEPS))
            steps = min(steps, _LARGEST_NOISE / multiplier)
        steps = 2.0 ** math.floor(math.log2(max(1.0, steps)))
        return cls(steps, multiplier * steps)

    def largest_norm(self, value: PyTree, name: str, spare: float = 0.0) -> float:
        """The measured norm, in clips, that a value is scaled down to.

        With it the exact norm of the integers is at most one clip, less the steps to
        spare. To round `size` entries to the nearest adds `sqrt(size) / 2` steps at
        most, and the norm has an error of its own. For 1,000,000 entries and noise of
        one clip 5e-4 of a clip are taken off for the first, and 3e-5 for the second.

        Raises:
            ValueError: if more than a half would be taken off.
        """
        size = pytree.count(value)
        rounding = (math.sqrt(size) / 2.0 + spare) / self.steps
        if rounding > 0.5:
            raise ValueError(
                f"{name}: a clip has {self.steps:.0f} steps, too few for {size} "
                "entries: expect fewer clients in a round, or take less noise."
            )
        return (1.0 - rounding) * (1.0 - pytree.error_of_norm(value))

    def integers(self, value: PyTree, factor: jax.Array) -> NoisedModulo:
        """The value times a factor `[]`, which makes steps of it, to the nearest."""
        scaled = pytree.scale(factor, value)
        return NoisedModulo(
            jax.tree.map(lambda x: jnp.round(x).astype(jnp.int32), scaled), BITS
        )


def accounted(grids: tuple[SumGrid, ...]) -> float:
    """The multiplier of Gaussian noise that draws of the discrete Gaussian round.

    Take a normal draw `x` of deviation `s` and then an integer `z` with a chance in
    proportion to `exp(-(z - x)**2 / (2 r**2))`. These sum over `z` to `r sqrt(2 pi)`
    for every `x`, to a relative `2 exp(-2 pi**2 r**2)` (Poisson), so that `z` has the
    discrete Gaussian's law with a variance of `s**2 + r**2`, to twice that. So the
    mechanism with a deviation of `sqrt(s**2 + r**2)` is what comes after a Gaussian one
    with `s`, and is as private, whatever the accountant: in total variation to
    `2**-110` an entry with the `r = 2` that is taken here. Of a multiplier of one and a
    clip of `2**20` steps that is a part in `2**39`. Noise of two steps or less counts
    as none.

    Reference: Micciancio and Walter, "Gaussian Sampling over the Integers: Efficient,
        Generic, Constant-Time", 2017, section 2; Canonne, Kamath and Steinke, "The
        Discrete Gaussian for Differential Privacy", 2020, section 2.
    """
    squares = [max(0.0, x.deviation**2 - ROUNDED**2) / x.steps**2 for x in grids]
    return sum(1.0 / x if x > 0.0 else math.inf for x in squares) ** -0.5


def draw_error(deviation: float) -> float:
    """How far `discrete_gaussian_draws` are from what `accounted` rounds, at most.

    In total variation: what tables are off by, `2**-85` for each sum of two draws, and
    `2**-110` for a rounding of Gaussian noise.
    """
    if deviation == 0.0:
        return 0.0
    if deviation <= LARGEST_STDDEV:
        return discrete_gaussian(max(0.5, deviation)).error + 2.0**-110
    _, wide, narrow = parted(deviation)
    return draw_error(wide) + draw_error(narrow) + 2.0**-85


def noised(total: NoisedModulo, noise: PyTree) -> PyTree:
    """A sum of integers with noise in whole steps, as float32.

    Both wrap around alike, and to round this sum is to round what is private already.
    """
    both = pytree.add(total.wrapped(), noise)
    return jax.tree.map(lambda x: x.astype(jnp.float32), both)


def no_noise(template: PyTree) -> PyTree:
    """Noise of no steps, like a value."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.int32), template)


def integer_noise(deviation: float, key: jax.Array, tree: PyTree) -> PyTree:
    """Draws of the discrete Gaussian like the leaves, as int32 modulo 2**32."""
    leaves, structure = pytree.flatten(tree)
    sizes = [x.size for x in leaves]
    half = -(-sum(sizes) // 2)

    def draw_half(carry: tuple, i: jax.Array):
        # JAX's check of keys takes one of a mapped loop for used.
        data = keys[in_steps(i)]
        own = jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))
        return carry, discrete_gaussian_draws(deviation, own, half)

    keys = jax.random.key_data(jax.random.split(key))
    # The results of a loop are written once; else XLA makes half of each draw again
    # for the norm of what is released.
    _, halves = jax.lax.scan(draw_half, (), jnp.arange(len(keys), dtype=jnp.int32))
    drawn = halves.ravel()[: sum(sizes)]
    parts = zip(leaves, cut(drawn, sizes), strict=True)
    return pytree.unflatten(structure, [part.reshape(x.shape) for x, part in parts])


def discrete_gaussian_draws(deviation: float, key: jax.Array, size: int) -> jax.Array:
    """Draws int32 `[size]` of any deviation up to 1800 * 1024**2.

    Wide ones are `K * A + B` with draws `A`, `B` of deviations `a` and `b`. The chance
    of `y` is a sum over `i` of `exp(-i**2 / (2 a**2) - (y - K i)**2 / (2 b**2))`, which
    is `exp(-y**2 / (2 s**2))` with `s**2 = (K a)**2 + b**2`, times a sum of
    `exp(-(i - c)**2 / (2 t**2))` with `t = a b / s`, where `c` depends on `y`. By
    Poisson's formula the latter is `t sqrt(2 pi)` for every `c`, to a relative
    `4 exp(-2 pi**2 t**2)`: with `t` above 1.75, to less than 2**-85.

    Reference: Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential
        Privacy", 2020, definition 1; Micciancio and Walter, "Gaussian Sampling over the
        Integers: Efficient, Generic, Constant-Time", 2017, section 3.
    """
    if deviation <= LARGEST_STDDEV:
        # Below a half of a step tables have one integer; more noise hides no less.
        table = table_of(discrete_gaussian, max(0.5, deviation))
        return draw(table, key, size)
    factor, wide, narrow = parted(deviation)
    wide_key, narrow_key = jax.random.split(key)
    steps = factor * discrete_gaussian_draws(wide, wide_key, size)
    return steps + discrete_gaussian_draws(narrow, narrow_key, size)


def parted(deviation: float) -> tuple[int, float, float]:
    """`K`, `a` and `b` above, for a deviation of more than 1800."""
    narrow = min(LARGEST_STDDEV, deviation / math.sqrt(2.0))
    factor = min(_LARGEST_FACTOR, math.ceil(deviation / LARGEST_STDDEV))
    return factor, math.sqrt(deviation**2 - narrow**2) / factor, narrow
