"""Fixed and learnt bounds, driven directly."""

import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests import reference
from tests.helpers import TEMPLATE, assert_close, assert_same, make_updates


def summed_notes(bound: fedagg.Bound, state: Any, sizes: Any) -> Any:
    shared = bound.broadcast(state)
    notes = [bound.note(shared, jnp.float32(x)) for x in sizes]
    return jax.tree.map(lambda *x: jnp.float32(sum(map(float, x))), *notes)


def after(bound: fedagg.Bound, *rounds: Any) -> jax.Array:
    state = bound.init()
    for sizes in rounds:
        state = bound.update(state, summed_notes(bound, state, sizes), None)
    return state


def in_use(bound: fedagg.Bound, state: Any) -> jax.Array:
    return bound.value(bound.broadcast(state))


@pytest.mark.parametrize("geometric", [True, False])
@pytest.mark.parametrize("expected", [None, 7])
@hypothesis.given(
    sizes=st.lists(
        st.sampled_from([0.0, 0.5, 1.0, 1.5, 3.0, 1e30]), min_size=1, max_size=9
    ),
    quantile=st.sampled_from([0.0, 0.3, 1.0]),
    rate=st.sampled_from([0.1, 2.3]),
)
def test_the_estimate_moves_as_the_formula_says(
    geometric, expected, sizes, quantile, rate
):
    bound = fedagg.quantile_bound(
        1.0,
        quantile,
        rate,
        multiplier=2.0,
        increment=1.0,
        expected_num_clients=expected,
        geometric_update=geometric,
    )
    estimate = reference.Estimate(quantile, rate, 2.0, 1.0, expected, geometric)

    state = after(bound, sizes)

    expected_state = reference.quantile_update(1.0, sizes, estimate)
    assert_close(state, np.float64(expected_state))
    reported = max(reference.report(expected_state, estimate), 0.0)
    assert_close(in_use(bound, state), np.float64(reported))


def test_clients_compare_with_the_estimate_and_not_with_the_bound_in_use():
    bound = fedagg.quantile_bound(1.0, 0.5, 0.1, multiplier=3.0, increment=1.0)

    note = bound.note(bound.broadcast(bound.init()), jnp.float32(1.5))

    assert note.below == -0.5
    assert in_use(bound, bound.init()) == 4.0


@pytest.mark.parametrize(
    "size, below",
    [(1.0, 0.5), (1.0000001, -0.5), (0.0, 0.5), (math.nan, -0.5), (math.inf, -0.5)],
)
def test_equal_to_the_estimate_is_below_it_and_nan_is_not(size, below):
    bound = fedagg.quantile_bound(1.0, 0.5, 0.1)

    note = bound.note(bound.broadcast(bound.init()), jnp.float32(size))

    assert note.below == below


def test_the_estimate_follows_a_quantile_of_the_clients():
    sizes = jnp.asarray(np.random.default_rng(0).lognormal(3.0, 1.0, 50), jnp.float32)
    bound = fedagg.quantile_bound(1.0, 0.8, 0.3)

    def body(state: Any, _: None):
        notes = jax.vmap(lambda x: bound.note(bound.broadcast(state), x))(sizes)
        note = jax.tree.map(lambda x: jnp.sum(x, axis=0), notes)
        return bound.update(state, note, None), None

    state, _ = jax.lax.scan(body, bound.init(), length=300)

    at_most = np.mean(np.asarray(sizes) <= float(state))
    assert abs(at_most - 0.8) <= 0.02


def test_a_round_without_clients_leaves_the_estimate():
    bound = fedagg.quantile_bound(3.0, 0.9, 0.5)
    nobody = jax.tree.map(
        jnp.zeros_like, bound.note(bound.broadcast(bound.init()), jnp.float32(1.0))
    )

    state = bound.update(bound.init(), nobody, None)

    assert_same(state, bound.init())


def test_a_round_without_clients_reads_as_one_half_of_an_expected_number():
    bound = fedagg.quantile_bound(3.0, 0.9, 0.5, expected_num_clients=10)
    nobody = jax.tree.map(
        jnp.zeros_like, bound.note(bound.broadcast(bound.init()), jnp.float32(1.0))
    )

    state = bound.update(bound.init(), nobody, None)

    assert_close(state, np.float64(3.0 * math.exp(-0.5 * (0.5 - 0.9))))


def test_a_geometric_estimate_can_always_come_back():
    bound = fedagg.quantile_bound(1.0, 0.5, 100.0)

    far_down = after(bound, *[[0.0]] * 4)
    far_up = after(bound, *[[math.inf]] * 4)

    assert_close(far_down, np.float64(1e-30))
    assert_close(far_up, np.float64(1e30))
    note = summed_notes(bound, far_down, [1.0])
    assert bound.update(far_down, note, None) > far_down


def test_an_arithmetic_bound_in_use_is_never_below_zero():
    bound = fedagg.quantile_bound(0.1, 0.5, 1.0, geometric_update=False)

    state = after(bound, [0.0], [-1.0])

    assert state < 0.0
    assert in_use(bound, state) == 0.0


def test_more_clients_than_expected_count_as_all_below():
    bound = fedagg.quantile_bound(1.0, 0.9, 1.0, expected_num_clients=2)

    state = after(bound, [0.0] * 9)

    assert_close(state, np.float64(math.exp(-0.1)))


@pytest.mark.deep
def test_noise_on_the_count_has_the_stated_deviation():
    bound = fedagg.quantile_bound(
        10.0,
        0.5,
        2.0,
        below_estimate_stddev=1.5,
        expected_num_clients=30,
        geometric_update=False,
    )
    note = summed_notes(bound, bound.init(), [0.0] * 9 + [11.0] * 3)
    keys = jax.random.split(jax.random.key(0), 4000)

    states = np.asarray(
        jax.vmap(lambda key: bound.update(bound.init(), note, key).estimate)(keys)
    )

    # p - q = 3 / 30, with a deviation of 1.5 / 30; the steps are twice that. The
    # bounds are five standard errors wide.
    assert abs(states.mean() - 9.8) < 5 * 0.1 / math.sqrt(4000)
    assert abs(states.std() - 0.1) < 5 * 0.1 / math.sqrt(2 * 4000)


def test_noise_on_the_count_needs_a_key():
    bound = fedagg.quantile_bound(
        1.0, 0.5, 0.2, below_estimate_stddev=1.0, expected_num_clients=9
    )

    with pytest.raises(ValueError, match="quantile_bound draws .* got key=None"):
        after(bound, [1.0])


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"initial_estimate": 0.0},
            "initial_estimate must be positive and finite, got initial_estimate=0.0",
        ),
        (
            {"initial_estimate": -1.0},
            "initial_estimate must be positive and finite, got initial_estimate=-1.0",
        ),
        (
            {"initial_estimate": math.nan},
            "initial_estimate must be positive and finite, got initial_estimate=nan",
        ),
        (
            {"initial_estimate": math.inf},
            "initial_estimate must be .* got initial_estimate=inf",
        ),
        (
            {"target_quantile": -0.1},
            r"target_quantile must be in \[0, 1\], got target_quantile=-0.1",
        ),
        (
            {"target_quantile": 1.1},
            r"target_quantile must be in \[0, 1\], got target_quantile=1.1",
        ),
        (
            {"target_quantile": math.nan},
            "target_quantile must be .* got target_quantile=nan",
        ),
        (
            {"learning_rate": 0.0},
            "learning_rate must be positive and finite, got learning_rate=0.0",
        ),
        (
            {"learning_rate": math.nan},
            "learning_rate must be positive and finite, got learning_rate=nan",
        ),
        ({"learning_rate": math.inf}, "learning_rate must be .* got learning_rate=inf"),
        (
            {"multiplier": 0.0},
            "multiplier must be positive and finite, got multiplier=0.0",
        ),
        (
            {"multiplier": math.nan},
            "multiplier must be positive and finite, got multiplier=nan",
        ),
        (
            {"increment": -1.0},
            "increment must be finite and not negative, got increment=-1.0",
        ),
        (
            {"increment": math.nan},
            "increment must be finite and not negative, got increment=nan",
        ),
        (
            {"below_estimate_stddev": -1.0, "expected_num_clients": 9},
            "below_estimate_stddev must be .* not negative, got .*=-1.0",
        ),
        (
            {"below_estimate_stddev": math.nan, "expected_num_clients": 9},
            "below_estimate_stddev must be .* not negative, got .*=nan",
        ),
        ({"below_estimate_stddev": 1.0}, "needs expected_num_clients"),
        (
            {"expected_num_clients": 0},
            "expected_num_clients must be positive and finite, got .*=0",
        ),
        (
            {"expected_num_clients": -3},
            "expected_num_clients must be positive and finite, got .*=-3",
        ),
        (
            {"expected_num_clients": math.nan},
            "expected_num_clients must be .* got expected_num_clients=nan",
        ),
    ],
)
def test_an_argument_out_of_range_is_refused_by_name(changed, message):
    arguments = {"initial_estimate": 1.0, "target_quantile": 0.5, "learning_rate": 0.2}

    with pytest.raises(ValueError, match=message):
        fedagg.quantile_bound(**(arguments | changed))


@pytest.mark.parametrize("stage", [fedagg.zeroing, fedagg.clipping])
@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, 0])
def test_a_fixed_bound_must_be_positive(stage, bound):
    with pytest.raises(ValueError, match=f"bound must be positive, got bound={bound}"):
        stage(bound)


@pytest.mark.parametrize("stage", [fedagg.zeroing, fedagg.clipping])
@pytest.mark.parametrize("bound", [None, "much", (1.0, 2.0)])
def test_a_bound_of_another_type_is_refused(stage, bound):
    with pytest.raises(TypeError, match="bound must be a positive number or a Bound"):
        stage(bound)


@pytest.mark.parametrize(
    "bound", [2, 2.0, np.float32(2.0), np.float64(2.0), jnp.float32(2.0)]
)
@pytest.mark.deep
def test_any_number_is_a_fixed_bound(bound):
    updates = make_updates()
    aggregator = fedagg.aggregator(fedagg.clipping(bound))

    output = aggregator.next(aggregator.init(TEMPLATE), *updates)

    assert output.metrics["clipping/bound"] == 2.0
    assert output.metrics["clipping/bound"].dtype == jnp.float32
    assert jax.tree.leaves(output.state) == []


def test_a_bound_of_a_user_is_a_bound():
    doubling = fedagg.Bound(
        init=lambda: jnp.float32(1.0),
        broadcast=lambda state: state,
        value=lambda shared: shared,
        note=lambda shared, x: jnp.where(x > shared, 1.0, 0.0).astype(jnp.float32),
        update=lambda state, note, key: jnp.where(note > 0.0, 2.0 * state, state),
    )
    aggregator = fedagg.aggregator(fedagg.clipping(doubling))
    state = aggregator.init(TEMPLATE)

    for expected in (1.0, 2.0, 4.0):
        state, _, metrics = aggregator.next(state, *make_updates())

        assert metrics["clipping/bound"] == expected
