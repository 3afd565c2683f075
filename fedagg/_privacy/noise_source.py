"""Where noise comes from, whatever it is added to.

`independent_noise` draws anew in each round, which is DP-FedAvg's. Those of a binary
tree and of a privatizer remember earlier draws, and their noise cancels over rounds.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from fedagg._mechanism import Mechanism
from fedagg._privacy.normal import normal
from fedagg._trees import pytree
from fedagg._types import PyTree


class NoiseSource(NamedTuple):
    """Noise for a sum in each round, independent of earlier rounds' or not.

    Attributes:
        init: `(template) -> state`. The template is the sum's, and the state secret.
        add: `(state, total, scale, key) -> (state, total, stddev)`: the sum with its
            noise, in float32 or wider, and the deviation `[]` of this round's noise in
            an entry, or None where nobody knows. The scale `[]` is a multiple of the
            clip, and noise is in units of it.
        mechanism: `(noise_multiplier) -> Mechanism`, what the noise is to an
            accountant, or None where nobody knows.
    """

    init: Callable[[PyTree], PyTree]
    add: Callable[
        [PyTree, PyTree, jax.Array, jax.Array],
        tuple[PyTree, PyTree, jax.Array | None],
    ]
    mechanism: Callable[[float], Mechanism | None]


def independent_noise() -> NoiseSource:
    """A standard normal draw for each entry and round."""

    def add(state: PyTree, total: PyTree, scale: jax.Array, key: jax.Array):
        return state, with_noise(total, scale, normal(key, total)), scale

    return NoiseSource(lambda template: (), add, Mechanism.gaussian)


def with_noise(total: PyTree, scale: jax.Array, draws: PyTree) -> PyTree:
    """The total and draws times a scale, in float32 or wider."""
    return pytree.add(pytree.widen(total), pytree.scale(scale, draws))
