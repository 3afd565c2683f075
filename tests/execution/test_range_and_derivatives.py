"""Sums over the whole range of floats, and derivatives of a round in every way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import WAYS, every_way

pytestmark = pytest.mark.thorough

N = 8
SIZES = [1e-30, 1e-15, 1.0, 1e15, 1e30]


def clipped_mean(values, weights, bound):
    """In float64, straight from the formula."""
    present = weights > 0.0
    values, weights = values[present].astype(np.float64), weights[present]
    weights = weights.astype(np.float64)
    norms = np.linalg.norm(values, axis=1)
    factors = np.where(norms <= bound, 1.0, bound / np.where(norms > 0.0, norms, 1.0))
    return (weights * factors) @ values / weights.sum()


@pytest.mark.parametrize("way", ["default", "at_once", "one_by_one"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_and_values_of_any_size_give_the_mean_of_float64(way, dtype):
    draw = np.random.default_rng(3)
    clipped = fedagg.aggregator(
        fedagg.clipping(1.0), fedagg.mean(), sum_over=WAYS[way]()
    )
    next_round = jax.jit(clipped.next)
    unit = draw.normal(size=(N, 5)).astype(dtype)

    for size in (1e-15, 1.0, 1e15):
        for weight in SIZES:
            if not 1e-30 <= min(size, 1.0) * weight <= 1e30:
                continue  # a weighted value is no float32
            values = jnp.asarray(unit * np.asarray(size, dtype))
            weights = jnp.asarray(weight * np.arange(N), jnp.float32)
            got = next_round(clipped.init(None), values, weights).value
            expected = clipped_mean(np.asarray(values), np.asarray(weights), 1.0)
            scale = np.max(np.abs(expected))
            rtol = 1e-5 if dtype == "float32" else 1e-2
            np.testing.assert_allclose(
                np.asarray(got, np.float64), expected, rtol=rtol, atol=rtol * scale
            )


@pytest.mark.parametrize("way", ["default", "at_once", "one_by_one"])
@pytest.mark.parametrize(
    "factors",
    [(1e-30, 1e-30, 1e30), (1e30, 1e30, 1e-30), (1e-20, 1e-25), (1e25, 1e20)],
    ids=str,
)
@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_factors_do_what_they_do_one_after_the_other(way, factors, size):
    def client(shared, update, key):
        value = update.value
        for x in factors:
            value = value * (update.weight * jnp.float32(x))
        return update._replace(value=value), ()

    def server(state, total, note, key):
        return fedagg.Output(state, total, {})

    scaled = fedagg.Stage(lambda template: (), lambda state: (), client, server)
    aggregator = fedagg.aggregator(scaled, sum_over=WAYS[way]())
    values = np.float32(size) * np.linspace(1.0, 2.0, 3 * N, dtype="f").reshape(N, 3)

    got = jax.jit(aggregator.next)(aggregator.init(None), values, jnp.ones(N)).value

    expected = values
    with np.errstate(all="ignore"):
        for x in factors:
            expected = expected * np.float32(x)
            tiny = np.abs(expected) < np.finfo("f").tiny
            expected = np.where(tiny, np.float32(0.0), expected)  # as on a CPU of XLA's
    np.testing.assert_allclose(got, expected.sum(axis=0), rtol=1e-5)


def test_a_norm_of_scaled_values_is_that_of_what_they_are_scaled_to():
    values, factor = jnp.full((N, 4), 1e25), jnp.float32(1e-20)

    def client(shared, update, key):
        return update._replace(value=update.value * (update.weight * factor)), ()

    def server(state, total, note, key):
        return fedagg.Output(state, total, {})

    scaled = fedagg.Stage(lambda template: (), lambda state: (), client, server)
    aggregator = fedagg.aggregator(scaled, fedagg.clipping(2e5), fedagg.mean())

    state = aggregator.init(values[0])
    output = jax.jit(aggregator.next)(state, values, jnp.ones(N))

    assert output.metrics["clipping/count"] == 0.0
    np.testing.assert_allclose(output.value, 1e5, rtol=1e-5)


CHAINS = {
    "clipping": lambda **way: fedagg.aggregator(
        fedagg.clipping(1.0), fedagg.mean(), **way
    ),
    "two bounds": lambda **way: fedagg.aggregator(
        fedagg.zeroing(50.0), fedagg.clipping(1.0), fedagg.mean(weighted=False), **way
    ),
    "L1": lambda **way: fedagg.aggregator(
        fedagg.zeroing(5.0, norm_order=1), fedagg.clipping(1.0), fedagg.mean(), **way
    ),
    "robust": lambda **way: fedagg.robust_aggregator(**way),
}


def clients_with_a_zero(held):
    """The second client is zero, the fourth absent with `held`."""
    draw = np.random.default_rng(5)
    norms = np.array([3.0, 0.0, 0.2, 0.0, 0.5, 7.0, 0.1, 0.9])[:, None]
    values = draw.normal(size=(N, 5))
    values *= norms / np.linalg.norm(values, axis=1, keepdims=True)
    weights = np.array([1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 0.5, 1.5])
    values[3] = held
    return values, weights


@every_way
@pytest.mark.parametrize("held", [0.0, 1.0, np.nan, np.inf])
def test_the_gradient_of_a_clipped_mean_is_that_of_the_formula(way, held):
    values, weights = clients_with_a_zero(held)
    ahead = np.arange(1.0, 6.0)
    aggregator = CHAINS["clipping"](sum_over=WAYS[way]())

    def along(values):
        mean = aggregator.next(
            aggregator.init(None),
            {"w": values[:, 1:], "b": values[:, 0]},
            jnp.asarray(weights, jnp.float32),
        ).value
        return mean["b"] + jnp.dot(mean["w"], jnp.arange(2.0, 6.0))

    got = jax.jit(jax.grad(along))(jnp.asarray(values, jnp.float32))

    expected = np.zeros_like(values)
    for i in np.flatnonzero(weights):
        for j in range(5):
            step = np.zeros_like(values)
            step[i, j] = 1e-6
            ends = [
                clipped_mean(values + x, weights, 1.0) @ ahead for x in (step, -step)
            ]
            expected[i, j] = (ends[0] - ends[1]) / 2e-6
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("way", ["default", "at_once", "one_by_one"])
@pytest.mark.parametrize("held", [0.0, np.nan])
def test_derivatives_of_what_is_dropped_are_zero(name, way, held):
    values, weights = clients_with_a_zero(held)
    aggregator = CHAINS[name](sum_over=WAYS[way]())

    def along(values, weights):
        round_ = aggregator.next(aggregator.init(None), {"w": values}, weights)
        return jnp.sum(jnp.sin(round_.value["w"]))

    arguments = jnp.asarray(values, jnp.float32), jnp.asarray(weights, jnp.float32)
    gradient, by_weight = jax.jit(jax.grad(along, (0, 1)))(*arguments)

    assert np.all(np.isfinite(gradient)) and np.all(np.isfinite(by_weight))
    np.testing.assert_array_equal(gradient[3], 0.0)
    assert np.all(np.asarray(gradient)[[1, 2, 4]] != 0.0)


@pytest.mark.parametrize(
    "stage",
    [fedagg.qsgd(7), fedagg.terngrad(), fedagg.quantization(4, threshold=0)],
    ids=["qsgd", "terngrad", "quantization"],
)
@pytest.mark.parametrize("way", ["default", "at_once", "one_by_one"])
def test_derivatives_of_quantized_values_are_finite(stage, way):
    values, weights = clients_with_a_zero(0.0)
    aggregator = fedagg.aggregator(fedagg.mean(), stage, sum_over=WAYS[way]())

    def along(values):
        key = jax.random.key(0)
        arguments = aggregator.init(None), values, jnp.asarray(weights, jnp.float32)
        return jnp.sum(aggregator.next(*arguments, key).value)

    gradient = jax.jit(jax.grad(along))(jnp.asarray(values, jnp.float32))

    assert np.all(np.isfinite(gradient))
    assert np.any(gradient != 0.0)
