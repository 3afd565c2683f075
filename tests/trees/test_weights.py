"""Weights at their value, whatever holds them, over the whole range of floats."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from fedagg._trees.weights import as_weights
from tests.helpers import WAYS, assert_close, every_way, first_round

VALUES = jnp.asarray([[1.0, -2.0], [2.0, 5.0], [4.0, 0.5]])


def exact_mean(weights) -> np.ndarray:
    shares = [Fraction(int(w)) / sum(int(w) for w in weights) for w in weights]
    return np.asarray(VALUES, np.float64).T @ [float(x) for x in shares]


@pytest.mark.parametrize(
    "weights",
    [
        np.array([3_000_000_000, 1, 1_000_000_000]),
        np.array([2**32 + 5, 2**32, 5]),
        np.array([2**63, 2**62, 1], np.uint64),
        np.array([2**31, 7, 2**31], np.uint32),
        np.array([200, 100, 1], np.uint8),
        np.array([1000.0, 7.0, 3.0], np.float16),
        np.array([1e12, 7.0, 3e12], np.float64),
        [3_000_000_000, 1, 5],
        (10**30, 10**29, 1),
        [np.int64(2**40), 2.0, True],
        [jnp.float32(3.0), 2, 1.0],
        jnp.asarray([200, 100, 1], jnp.uint8),
        jnp.asarray([2**31 - 1, 100, 1], jnp.int32),
        jnp.asarray([1000.0, 8.0, 4.0], jnp.bfloat16),
        np.array([True, False, True]),
    ],
    ids=str,
)
def test_weights_are_taken_at_their_value(weights):
    output = first_round(fedagg.aggregator(fedagg.mean()), VALUES, weights)

    assert_close(output.value, exact_mean(weights), rtol=1e-6)
    total = float(sum(Fraction(int(w)) for w in weights))
    assert_close(output.metrics["mean/weight"], np.float64(total), rtol=1e-6)


def test_a_list_may_hold_weights_that_jit_does_not_know_yet():
    @jax.jit
    def weights_of(first, second):
        return as_weights([first, 2, second], 3)

    got = weights_of(jnp.float32(0.5), jnp.int32(-1))

    np.testing.assert_array_equal(got, [0.5, 2.0, 0.0])
    with pytest.raises(ValueError, match=r"weights: expected a scalar for each client"):
        weights_of(jnp.ones(2), jnp.int32(1))


@pytest.mark.parametrize("weights", [[1e39, 1.0, 1.0], np.array([1e-50, 1.0, 1.0])])
def test_weights_that_float32_does_not_hold_are_refused(weights):
    with pytest.raises(ValueError, match="weights: .* that float32 holds"):
        first_round(fedagg.aggregator(fedagg.mean()), VALUES, weights)


@pytest.mark.parametrize("weights", [["a", "b", "c"], [None, 1, 2], [{}, 1, 2]])
def test_what_are_no_numbers_is_refused(weights):
    with pytest.raises(TypeError, match="weights: expected real numbers"):
        first_round(fedagg.aggregator(fedagg.mean()), VALUES, weights)


def test_weights_that_are_not_finite_are_absence_from_numpy_too():
    weights = np.array([np.inf, 2.0, np.nan])

    output = first_round(fedagg.aggregator(fedagg.mean()), VALUES, weights)

    assert_close(output.value, np.asarray(VALUES[1], np.float64))


@every_way
def test_a_mean_is_right_over_the_whole_range_of_weights(way):
    aggregator = fedagg.aggregator(fedagg.mean(), sum_over=WAYS[way]())

    @jax.jit
    def next_round(values, weights):
        def work(row, key):
            return row, {"first": row[0]}

        return aggregator.next(aggregator.init(values[0]), values, weights, work=work)

    for weights in (
        [2e38, 2e38, 2e38],
        [3e38, 1e38, 1.0],
        [1e-37, 3e-37, 2e-37],
        [1e38, 1e-37, 1e38],
        [1e25, 3e25, 0.0],
    ):
        for size in (1.0, 1e15, 1e-15):
            values = VALUES * jnp.float32(size)
            output = next_round(values, jnp.asarray(weights, jnp.float32))

            exact = np.asarray(jnp.asarray(weights, jnp.float32), np.float64)
            expected = np.asarray(values, np.float64).T @ (exact / exact.sum())
            np.testing.assert_allclose(output.value, expected, rtol=1e-5)
            np.testing.assert_allclose(output.metrics["first"], expected[0], rtol=1e-5)
            total = np.float32(exact.sum()) if exact.sum() < 3.4e38 else math.inf
            np.testing.assert_allclose(output.metrics["mean/weight"], total, rtol=1e-5)


@pytest.mark.deep
def test_a_largest_weight_is_not_in_other_units():
    # Of weights as large as these a mean works with shares, and noise must not.
    stage = fedagg.gaussian_noise(0.0, 1.0, 1.0, largest_weight=2e30)
    values, weights = jnp.asarray([[0.5], [0.5]]), jnp.asarray([1e30, 4e30])

    output = first_round(fedagg.aggregator(stage), values, weights, jax.random.key(0))

    assert_close(output.value, np.array([0.25 + 0.5]))
