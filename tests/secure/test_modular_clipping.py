"""Wrapping within a range, against NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import first_round


@pytest.mark.parametrize(
    "lower, upper", [(-8, 8), (0, 16), (5, 9), (-100, -90), (-(2**30), 2**30 - 1)]
)
def test_the_sum_is_the_sum_wrapped_once(lower, upper):
    rows = np.random.default_rng(2).integers(-(2**31), 2**31, (5, 40), dtype=np.int64)
    aggregator = fedagg.aggregator(fedagg.modular_clipping(lower, upper))

    value = first_round(aggregator, jnp.asarray(rows.astype(np.int32))).value

    width = upper - lower
    expected = (rows - lower) % width
    expected = (expected + lower).sum(axis=0)
    if abs(expected).max() < 2**31:  # else the sum itself is modulo 2**32
        np.testing.assert_array_equal(value, (expected - lower) % width + lower)
    assert np.all((lower <= np.asarray(value)) & (np.asarray(value) < upper))


def test_what_is_within_stays():
    x = jnp.array([[-8, -1, 0, 3, 7]], jnp.int32)
    aggregator = fedagg.aggregator(fedagg.modular_clipping(-8, 8))

    np.testing.assert_array_equal(first_round(aggregator, x).value, x[0])


@pytest.mark.parametrize("stddev", [3.0, 20.0])
@pytest.mark.deep
def test_the_estimated_deviation_is_that_before_wrapping(stddev):
    x = np.rint(
        np.random.default_rng(2).normal(scale=stddev, size=(1, 100_000))
    ).astype(np.int32)
    stage = fedagg.modular_clipping(-32, 32, estimate_stddev=True)

    metrics = first_round(fedagg.aggregator(stage), jnp.asarray(x)).metrics

    # Of a mean cosine of 100,000; the variance of rounding is 1/12.
    expected = math.sqrt(stddev**2 + 1 / 12)
    np.testing.assert_allclose(metrics["modular/estimated_stddev"], expected, rtol=0.02)


def test_floats_are_refused():
    with pytest.raises(TypeError, match="modular takes leaves of integers"):
        first_round(fedagg.aggregator(fedagg.modular_clipping(0, 4)), jnp.ones((2, 3)))


@pytest.mark.parametrize("ends", [(4, 4), (5, 4), (-(2**31), 2**31 - 1), (0, 2**32)])
def test_ends_out_of_range_are_refused(ends):
    with pytest.raises(ValueError, match="must be (below upper|a whole number)"):
        fedagg.modular_clipping(*ends)


def test_a_compiled_round_is_the_same():
    x = jnp.asarray(np.random.default_rng(2).integers(-50, 50, (6, 9)), jnp.int32)
    aggregator = fedagg.aggregator(fedagg.modular_clipping(-8, 8))

    compiled = jax.jit(aggregator.next)(aggregator.init(x[0]), x).value

    np.testing.assert_array_equal(compiled, first_round(aggregator, x).value)
