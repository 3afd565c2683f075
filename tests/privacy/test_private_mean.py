"""Each short name is a clip times a source of noise."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import fedagg
from fedagg._privacy.binary_tree import binary_tree_noise
from fedagg._privacy.matrix_factorization import privatizer_noise
from fedagg._privacy.noise_source import independent_noise
from fedagg._privacy.private_mean import private_mean
from fedagg._privacy.restarts import Restarts, held
from tests.helpers import assert_same, first_now, make_updates

N = 20.0
NOISE = "gaussian_noise"
KEY = jax.random.key(5)


def learnt(stddev: float = 1.0) -> fedagg.Bound:
    return fedagg.quantile_bound(
        0.1, 0.5, 0.2, below_estimate_stddev=stddev, expected_num_clients=N
    )


def fresh_noise() -> Any:
    """A privatizer that draws anew in each round."""

    def update(updates: Any, state: jax.Array, params: Any = None):
        noise, key = jax.random.split(state)
        flat, unravel = ravel_pytree(updates)
        draws = jax.random.normal(noise, flat.shape, flat.dtype)
        return unravel(flat + draws), key

    either: Any = update
    return optax.GradientTransformation(lambda params: jax.random.key(0), either)


class Pair(NamedTuple):
    short: fedagg.Stage
    product: fedagg.Stage


TREE, HELD = Restarts(3, 3), Restarts(2, 3)
PAIRS = {
    "gaussian_noise": Pair(
        fedagg.gaussian_noise(0.5, 0.7, N),
        private_mean(0.5, 0.7, N, independent_noise(), name=NOISE),
    ),
    "gaussian_noise weighted": Pair(
        fedagg.gaussian_noise(0.5, 0.7, N, largest_weight=4.0),
        private_mean(0.5, 0.7, N, independent_noise(), largest_weight=4.0, name=NOISE),
    ),
    "gaussian_noise of a bound": Pair(
        fedagg.gaussian_noise(0.5, learnt(0.6), N),
        private_mean(0.5, learnt(0.6), N, independent_noise(), name=NOISE),
    ),
    "adaptive_gaussian_noise": Pair(
        fedagg.adaptive_gaussian_noise(0.5, N),
        private_mean(0.5, learnt(), N, independent_noise(), name=NOISE),
    ),
    "adaptive_gaussian_noise of a bound": Pair(
        fedagg.adaptive_gaussian_noise(0.5, N), fedagg.gaussian_noise(0.5, learnt(), N)
    ),
    "tree_noise": Pair(
        fedagg.tree_noise(0.5, 0.7, N, restart_every=3),
        private_mean(0.5, 0.7, N, binary_tree_noise(TREE), name="tree_noise"),
    ),
    "adaptive_tree_noise": Pair(
        fedagg.adaptive_tree_noise(0.5, N, restart_warmup=2, restart_every=3),
        private_mean(
            0.5, held(learnt(), HELD), N, binary_tree_noise(HELD), name="tree_noise"
        ),
    ),
    "matrix_factorization_noise": Pair(
        fedagg.matrix_factorization_noise(fresh_noise(), 0.7, N, name="own"),
        private_mean(1.0, 0.7, N, privatizer_noise(fresh_noise(), "own"), name="own"),
    ),
}


def rounds_of(stage: fedagg.Stage) -> Any:
    """Values and metrics of some rounds, long enough for two restarts."""
    aggregator = fedagg.aggregator(stage)
    updates = make_updates()
    next_round = jax.jit(aggregator.next)
    state, seen = aggregator.init(jax.tree.map(lambda x: x[0], updates.value)), []
    for i in range(6):
        state, *rest = next_round(state, *updates, jax.random.key(i))
        seen.append(rest)
    return seen


@first_now("name", PAIRS)
def test_a_short_name_is_a_clip_times_a_source_to_the_bit(name):
    short, product = PAIRS[name]

    assert_same(rounds_of(short), rounds_of(product))


@pytest.mark.deep
def test_noise_is_added_to_the_notes_of_a_learnt_clip_by_its_source():
    zero = fedagg.gaussian_noise(0.0, learnt(2.0), N)
    aggregator = fedagg.aggregator(zero)
    state = aggregator.init({"x": jnp.zeros(1)})
    value = {"x": jnp.ones((4, 1))}

    def moved(key: jax.Array) -> jax.Array:
        clip = aggregator.next(state, value, None, key).state[0].clip.estimate
        return 0.5 - jnp.log(clip / 0.1) / 0.2

    fractions = jax.vmap(moved)(jax.random.split(jax.random.key(0), 10_000))

    # Four clients above the clip are two below one half of twenty.
    stddev = 2.0 / N
    assert abs(np.mean(fractions) - (0.5 - 2.0 / N)) < 0.05 * stddev
    assert abs(np.std(fractions) / stddev - 1.0) < 0.03


def test_a_held_clip_learns_in_every_round_and_moves_at_restarts():
    bound, restarts = learnt(0.0), Restarts(2, 3)
    holding, state, clips = held(bound, restarts), held(bound, restarts).init(), []

    for _ in range(9):
        note = holding.note(holding.broadcast(state), jnp.float32(1e9))
        clips.append(float(holding.value(holding.broadcast(state))))
        state = holding.update(state, note, None)

    # Nobody is below, one of twenty: p = 0.5 - 0.5 / 20.
    grown = 0.1 * np.exp(0.2 * 0.025 * np.asarray([0, 0, 2, 2, 2, 5, 5, 5, 8]))
    np.testing.assert_allclose(clips, grown, rtol=1e-5)


def test_a_bound_of_a_user_that_says_how_it_learns_is_a_clip():
    bound = fedagg.Bound(
        init=lambda: jnp.float32(1.0),
        broadcast=lambda state: state,
        value=lambda shared: shared,
        note=lambda shared, x: jnp.where(x > shared, 1.0, 0.0).astype(jnp.float32),
        update=lambda state, note, key: state + note,
        sensitivity=1.0,
        stddev=2.0,
        update_noised=lambda state, note: state + note,
    )
    aggregator = fedagg.aggregator(fedagg.gaussian_noise(0.5, bound, N))
    output = aggregator.next(
        aggregator.init({"x": jnp.zeros(2)}), {"x": jnp.ones((3, 2))}, None, KEY
    )

    left = (0.5**-2 - 2.0**-2) ** -0.5
    np.testing.assert_allclose(output.metrics["gaussian_noise/stddev"], left / N, 1e-6)
    noise = float(output.state[0].clip) - 1.0 - 3.0  # all three have a norm above one
    assert 0.0 < abs(noise) < 10.0


@pytest.mark.parametrize("said", [{}, {"sensitivity": float("nan"), "stddev": 1.0}])
def test_what_a_bound_does_not_say_is_taken_for_the_worst(said):
    bound = learnt()._replace(sensitivity=float("inf"))._replace(**said)

    for noise_multiplier in (0.0, 0.5):
        with pytest.raises(TypeError, match="clip must be a number: a Bound learns"):
            fedagg.gaussian_noise(noise_multiplier, bound, N)
