"""What one client can do to a sum before its noise, by search over cohorts.

Cohorts are drawn with values of all sizes, NaN and infinity among them, and weights of
any size; a neighbour has one client more, less, or another in place of one.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from fedagg._noise.sum_grid import SumGrid
from tests.helpers import first_now

N, CLIP = 5, 0.7
NOTHING = optax.GradientTransformation(
    lambda params: (), lambda updates, state, params=None: (updates, state)
)

# Without noise and with a denominator of one, so that a round gives the sum.
STAGES: dict[str, Callable[[], fedagg.Stage]] = {
    "fixed": lambda: fedagg.gaussian_noise(0.0, CLIP, 1.0),
    "weighted": lambda: fedagg.gaussian_noise(0.0, CLIP, 1.0, largest_weight=4.0),
    "adaptive": lambda: fedagg.adaptive_gaussian_noise(0.0, 1.0, initial_clip=CLIP),
    "adaptive, weighted": lambda: fedagg.adaptive_gaussian_noise(
        0.0, 1.0, initial_clip=CLIP, largest_weight=4.0
    ),
    "tree": lambda: fedagg.tree_noise(0.0, CLIP, 1.0, restart_every=4),
    "adaptive tree": lambda: fedagg.adaptive_tree_noise(0.0, 1.0, initial_clip=CLIP),
    "matrix": lambda: fedagg.matrix_factorization_noise(NOTHING, CLIP, 1.0),
    "after zeroing": lambda: fedagg.chain(
        fedagg.zeroing(2.0, counted=False), fedagg.gaussian_noise(0.0, CLIP, 1.0)
    ),
    "after clipping and rotation": lambda: fedagg.chain(
        fedagg.clipping(2.0, counted=False),
        fedagg.rotation("hadamard"),
        fedagg.gaussian_noise(0.0, CLIP, 1.0),
    ),
}

entries = st.one_of(
    st.floats(width=32), st.floats(-1.0, 1.0, width=32), st.sampled_from([0.0, 0.35])
)
cohorts = st.tuples(
    hypothesis.extra.numpy.arrays(np.float32, (N, 3), elements=entries),
    hypothesis.extra.numpy.arrays(
        np.float32, N, elements=st.floats(0.0, 9.0, width=32)
    ),
)


@functools.cache
def summed(name: str) -> Callable[[Any, Any], Any]:
    aggregator = fedagg.aggregator(STAGES[name]())
    state = aggregator.init({"a": jnp.zeros(2), "b": jnp.zeros(())})

    @jax.jit
    def sum_of(values: jax.Array, weights: jax.Array) -> jax.Array:
        tree = {"a": values[:, :2], "b": values[:, 2]}
        value = aggregator.next(state, tree, weights, jax.random.key(0)).value
        return jnp.append(value["a"], value["b"])

    return sum_of


@first_now("name", STAGES, quick=2)
@hypothesis.settings(max_examples=60)
@hypothesis.given(cohort=cohorts, other=cohorts, row=st.integers(0, N - 1))
def test_a_neighbour_is_one_clip_away_or_two(name, cohort, other, row):
    values, weights = cohort
    absent, replaced = weights.copy(), values.copy()
    absent[row], replaced[row] = 0.0, other[0][row]
    weighed = weights.copy()
    weighed[row] = other[1][row]

    whole, without, instead = (
        np.asarray(summed(name)(*x), np.float64)
        for x in ((values, weights), (values, absent), (replaced, weighed))
    )

    rounding = 1e-5 * N * CLIP
    assert np.linalg.norm(whole - without) <= CLIP + rounding
    assert np.linalg.norm(instead - without) <= CLIP + rounding
    assert np.linalg.norm(whole - instead) <= 2.0 * CLIP + rounding


@first_now("name", STAGES)
def test_the_search_would_find_a_client_that_is_not_clipped(name):
    values = np.zeros((N, 3), np.float32)
    values[2] = [1.0, 0.4, 0.2]  # below all bounds but the clip
    weights, absent = np.ones(N, np.float32), np.ones(N, np.float32)
    weights[2], absent[2] = 9.0, 0.0

    moved = summed(name)(values, weights) - summed(name)(values, absent)

    np.testing.assert_allclose(np.linalg.norm(moved), CLIP, rtol=1e-5)


@first_now("held", [0.0, 0.5, 5.0, math.nan, math.inf], quick=2)
@first_now(
    "stage",
    [fedagg.adaptive_gaussian_noise(0.5, 9.0), fedagg.adaptive_tree_noise(0.5, 9.0)],
    ids=["adaptive", "adaptive tree"],
)
def test_a_client_moves_the_count_by_one_half(stage, held):
    update = fedagg.Update(jnp.full(3, held), jnp.float32(7.0))

    _, note = stage.client(stage.broadcast(stage.init(jnp.zeros(3))), update, None)

    # The noise on it is 0.45 on a sensitivity of one half, which is all of the steps.
    steps = SumGrid.of(2.0 * 0.05 * 9.0, 9.0).steps
    assert [abs(int(x)) for x in jax.tree.leaves(note)] == [steps]


@pytest.mark.parametrize("name", ["fixed", "adaptive", "tree", "adaptive tree"])
@pytest.mark.deep
def test_half_precision_leaves_get_noise_of_full_precision(name):
    stages = {
        "fixed": fedagg.gaussian_noise(1.0, 1.0, 1.0),
        "adaptive": fedagg.adaptive_gaussian_noise(1.0, 100.0, initial_clip=100.0),
        "tree": fedagg.tree_noise(1.0, 1.0, 1.0, restart_every=4),
        "adaptive tree": fedagg.adaptive_tree_noise(1.0, 100.0, initial_clip=100.0),
    }
    aggregator = fedagg.aggregator(stages[name])
    value = jnp.zeros((1, 100_000), jnp.bfloat16)

    noise = jax.jit(aggregator.next)(
        aggregator.init(value[0]), value, None, jax.random.key(5)
    ).value

    # Drawn in bfloat16, noise has 128 sizes and none above 2.9.
    assert noise.dtype == jnp.bfloat16
    sizes = np.abs(np.asarray(noise).astype(np.float32))
    assert len(np.unique(sizes)) > 1000
    assert sizes.max() > 4.0
