"""Noise of any correlation over rounds, by an optax-style privatizer.

`banded_noise(1.0, 0.5, 100, bands=10, rounds=500)` is the mechanism of Choquette-Choo et
al. 2023; with a privatizer that draws anew in each round it is `gaussian_noise`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._mechanism import Mechanism
from fedagg._privacy.noise_source import NoiseSource
from fedagg._privacy.private import check_multiplier, check_positive
from fedagg._privacy.private_mean import private_mean
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree
from fedagg._trees.keys import with_keys, without_keys
from fedagg._trees.template import Template
from fedagg._types import PyTree, Stage


class PrivatizerState(NamedTuple):
    """A privatizer's state without its keys, which each round brings."""

    template: Template
    arrays: PyTree


@prints_as_its_call
def matrix_factorization_noise(
    privatizer: Any,
    clip: float,
    clients_per_round: float,
    *,
    mechanism: Mechanism | None = None,
    name: str = "matrix_factorization_noise",
) -> Stage:
    """A mean whose noise is correlated over rounds as a privatizer makes it.

    A privatizer is a pair `(init, update)` as in optax, whose `update(sum, state)`
    returns the sum with noise and its next state; such as `jax-privacy` has for banded
    and for BLT matrices, which take `dtype=jnp.float32`. It is given the sum in units
    of `clip`, in float32, to which one client adds a norm of at most one in a round.
    The server releases the noised sum times `clip / clients_per_round`.

    What its noise is worth follows from the matrix and from who takes part when, and a
    privatizer does not say what it was made with: `guarantee` takes it from
    `mechanism`, `Mechanism.matrix(stddev, strategy)`. `banded_noise` has both from the
    same numbers.

    Where the privatizer's state has typed keys, they are made anew from each round's
    key, and not kept: it must draw fresh noise from them, and remember old noise as
    arrays. One that keeps a key to itself, as `jax-privacy`'s of a dense matrix does,
    draws from that alone, the same in every run: such a key must be new and secret.

    Noise stays at the server; its state must be kept as secret as the sums. Clients
    count once, whatever their weight; NaN, absent clients, the denominator, and what
    must not come after this are as in `gaussian_noise`.

    Reports `{name}/clip` `[]` and `{name}/noised_norm` `[]`, the norm of the noised
    mean. How large the noise is in a round, the privatizer alone knows.

    Args:
        privatizer: the pair above, made for a clip of one.
        clip: the largest norm, over all leaves of a value together. Positive.
        clients_per_round: the denominator, a number that is known beforehand.
        mechanism: what the privatizer was made with. With None, `guarantee` refuses.
        name: what the metrics are filed under.

    Raises:
        ValueError: if a number is out of range; in `server`, without a key.
        TypeError: if `clip` is a `Bound`; in `init` and `client`, for a leaf that is
            not of a float dtype.

    Reference: Choquette-Choo et al., "(Amplified) Banded Matrix Factorization", 2023,
        algorithm 1; Dvijotham et al., "Efficient and Near-Optimal Noise Generation for
        Streaming Differential Privacy", 2024.
    """
    check_positive(clip=clip)
    # The noise multiplier is the privatizer's own.
    source = privatizer_noise(privatizer, name)
    declared = () if mechanism is None else (mechanism,)
    return private_mean(1.0, clip, clients_per_round, source, declared, name=name)


@prints_as_its_call
def banded_noise(
    noise_multiplier: float,
    clip: float,
    clients_per_round: float,
    *,
    bands: int,
    rounds: int,
    name: str = "banded_noise",
) -> Stage:
    """A mean whose noise cancels over the rounds that a client rests.

    Noise `inverse(C) @ draws`, for the banded Toeplitz matrix `C` that makes the errors
    of sums over rounds the smallest on average. Its columns have a norm of one, so that
    a client which is in rounds at least `bands` apart pays for each what it pays for
    one of `gaussian_noise` with the same multiplier, and sums over rounds have less
    noise. With a `cyclic` sampler of a period of at least `bands`, chance amplifies
    that; with `separated` clients it holds without.

    The rest is as in `matrix_factorization_noise`; the state has `bands - 1` values
    like the template in float32.

    Args:
        noise_multiplier: standard deviation of a draw, in units of `clip`.
        clip: the largest norm, over all leaves of a value together. Positive.
        clients_per_round: the denominator, a number that is known beforehand.
        bands: rounds over which noise is correlated, at most those that clients rest.
            One is independent noise.
        rounds: what the matrix is optimized for. More or fewer are as private.
        name: what the metrics are filed under.

    Raises:
        ValueError: if a number is out of range; in `server`, without a key.
        TypeError: as `matrix_factorization_noise`.
        ImportError: if `jax-privacy` is not there.

    Reference: Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A
        Unified Approach to Private Training", 2023, section 4 and algorithm 1.
    """
    check_multiplier(noise_multiplier)
    checks.check_whole(1, rounds=rounds)
    checks.check_whole(1, rounds, bands=bands)
    toeplitz, noise_addition = _library()
    found = toeplitz.optimize_banded_toeplitz(n=int(rounds), bands=int(bands))
    # In float64, what is accounted is what runs in float32, to its rounding.
    column = np.asarray(found, np.float64)
    column /= np.linalg.norm(column)
    privatizer = noise_addition.matrix_factorization_privatizer(
        toeplitz.inverse_as_streaming_matrix(jnp.asarray(column, jnp.float32)),
        stddev=float(noise_multiplier),
        prng_key=0,  # replaced in each round
        dtype=jnp.float32,
    )
    return matrix_factorization_noise(
        privatizer,
        clip,
        clients_per_round,
        mechanism=Mechanism.matrix(noise_multiplier, column),
        name=name,
    )


def _library() -> Any:
    try:
        from jax_privacy import noise_addition
        from jax_privacy.matrix_factorization import toeplitz
    except ImportError as error:
        raise ImportError(
            "banded_noise needs jax-privacy: pip install 'fedagg[privacy]'."
        ) from error
    return toeplitz, noise_addition


def privatizer_noise(privatizer: Any, name: str) -> NoiseSource:
    """The noise of a privatizer that was made for sums in units of the clip."""

    def fresh(template: Template) -> PyTree:
        zeros = template.unravel(jnp.zeros(template.size, jnp.float32))
        return privatizer.init(zeros)

    def init(template: PyTree) -> PrivatizerState:
        checks.check_floating(template, name)
        made = Template.of(template)
        return PrivatizerState(made, without_keys(fresh(made)))

    def add(state: PrivatizerState, total: PyTree, scale: jax.Array, key: jax.Array):
        state.template.check(total)
        like = jax.eval_shape(lambda: fresh(state.template))
        whole = with_keys(state.arrays, like, key)
        sums = jax.tree.map(lambda x: x.astype(jnp.float32) / scale, total)
        noised, whole = privatizer.update(sums, whole)
        state = state._replace(arrays=without_keys(whole))
        return state, pytree.scale(scale, noised), None

    return NoiseSource(init, add)
