"""Where noise comes from, whatever it is added to.

`independent_noise` draws anew in each round, which is DP-FedAvg's. Those of a binary
tree, of bands and of a privatizer remember earlier draws, and their noise cancels over
rounds.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._mechanism import Mechanism
from fedagg._messages.marks import NoisedModulo
from fedagg._noise.sum_grid import (
    SumGrid,
    accounted,
    draw_error,
    integer_noise,
    noised,
)
from fedagg._trees import pytree
from fedagg._types import PyTree


def _nothing(size: int) -> float:
    del size
    return 0.0


class NoiseSource(NamedTuple):
    """Noise for a sum in each round, independent of earlier rounds' or not.

    Attributes:
        init: `(template) -> state`. The template is a client's value, and the state
            secret.
        add: `(state, total, grid, key) -> (state, total, stddev)`: the sum of integers
            on the grid with its noise, in steps, as float32; and the deviation `[]` of
            this round's noise in an entry, in deviations of the grid, or None where
            nobody knows.
        mechanism: `(noise_multiplier, grids) -> Mechanism`, what the noise on the sums
            of these grids, together, is to an accountant, or None where nobody knows.
        draw_error: `(grid) -> float`, of an entry's draws in a round, on average over
            rounds. None where these are floats, of which no error is known.
        shift: `(size) -> float`, the steps by which rounding may add to what a client
            moves, of so many entries in the L2 norm.
    """

    init: Callable[[PyTree], PyTree]
    add: Callable[
        [PyTree, NoisedModulo, SumGrid, jax.Array],
        tuple[PyTree, PyTree, jax.Array | None],
    ]
    mechanism: Callable[[float, tuple[SumGrid, ...]], Mechanism | None]
    draw_error: Callable[[SumGrid], float] | None = None
    shift: Callable[[int], float] = _nothing


def independent_noise() -> NoiseSource:
    """A draw of the discrete Gaussian for each entry and round."""

    def add(state: PyTree, total: NoisedModulo, grid: SumGrid, key: jax.Array):
        integers = total.wrapped()
        noise = pytree.zeros(integers)
        if grid.deviation > 0.0:
            noise = integer_noise(grid.deviation, key, integers)
        return state, noised(total, noise), jnp.float32(1.0)

    def mechanism(noise_multiplier: float, grids: tuple[SumGrid, ...]) -> Mechanism:
        del noise_multiplier
        return Mechanism.gaussian(accounted(grids))

    return NoiseSource(
        lambda template: (),
        add,
        mechanism,
        draw_error=lambda grid: draw_error(grid.deviation),
    )
