"""Measurements of a round, against float64 NumPy and the formulas of TFF."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import (
    WAYS,
    assert_close,
    assert_same,
    first_round_compiled,
    make_updates,
    take,
    with_absent,
)


def vectors(value: Any) -> np.ndarray:
    """The values of all clients `[n, d]`, in float64."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(value)]
    return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)


def expected_of(x: np.ndarray, w: np.ndarray) -> dict[str, float]:
    """By their definitions; the deviation as `tff.learning` has it."""
    mean, norms = w @ x / w.sum(), np.linalg.norm(x, axis=1)
    average = w @ norms / w.sum()
    a, b = w.sum(), (w**2).sum()
    variance = a**2 / (a**2 - b) * (w @ norms**2 / a - average**2) if a**2 > b else 0.0
    along = x @ mean / np.linalg.norm(mean)
    return {
        "clients": len(w),
        "effective_clients": a**2 / b,
        "average_client_norm": average,
        "std_dev_client_norm": math.sqrt(variance),
        "server_update_norm": float(np.linalg.norm(mean)),
        "server_update_min": mean.min(),
        "server_update_max": mean.max(),
        "spread": math.sqrt(w @ np.square(x - mean).sum(axis=1) / a),
        "cosine": float(w @ along / (w @ norms)),
        "mean_cosine": float(w @ (along / np.where(norms > 0, norms, 1)) / a),
    }


def round_of(*stages: fedagg.Stage, updates: fedagg.Update, way: Any = None) -> Any:
    aggregator = fedagg.aggregator(*stages, sum_over=way)
    return first_round_compiled(aggregator, *updates)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("way", ["default", "at_once", "across"])
def test_measurements_are_those_of_numpy(weighted, way):
    updates = with_absent(make_updates(), math.nan, [1, 4])
    mean = fedagg.mean(weighted=weighted)
    stage = fedagg.with_measurements(mean, directions=True)

    metrics = round_of(stage, updates=updates, way=WAYS[way]()).metrics

    here = [i for i in range(len(updates.weight)) if i not in (1, 4)]
    present = take(updates, np.array(here))
    weights = np.asarray(present.weight, np.float64)
    expected = expected_of(
        vectors(present.value), weights if weighted else np.ones(len(here))
    )
    assert metrics.keys() == {"mean/weight"} | {f"measurements/{x}" for x in expected}
    for name, x in expected.items():
        np.testing.assert_allclose(metrics[f"measurements/{name}"], x, rtol=2e-5)


def test_what_is_measured_is_what_comes_to_the_mean():
    updates = make_updates()
    bounds = fedagg.zeroing(30.0), fedagg.clipping(1.0)

    measured = round_of(
        fedagg.with_measurements(*bounds, fedagg.mean()), updates=updates
    )
    plain = round_of(*bounds, fedagg.mean(), updates=updates)

    assert_close(measured.value, plain.value)
    assert_same(
        {x: y for x, y in measured.metrics.items() if x in plain.metrics},
        plain.metrics,
    )
    x = vectors(updates.value)
    x = np.where(np.abs(x).max(axis=1, keepdims=True) <= 30.0, x, 0.0)
    x /= np.maximum(1.0, np.linalg.norm(x, axis=1, keepdims=True))
    expected = expected_of(x, np.asarray(updates.weight, np.float64))
    for name in ("average_client_norm", "spread", "cosine", "std_dev_client_norm"):
        np.testing.assert_allclose(
            measured.metrics[f"measurements/{name}"], expected[name], rtol=2e-5
        )


def test_counts_come_as_shares_of_the_clients_present():
    value = jnp.array([[1.0], [9.0], [0.1], [3.0], [jnp.nan]])
    weights = jnp.array([5.0, 1.0, 1.0, 2.0, 0.0])
    bounds = fedagg.chain(fedagg.zeroing(5.0), fedagg.clipping(0.5))
    stage = fedagg.with_measurements(bounds, fedagg.mean())
    groups = fedagg.with_measurements(fedagg.grouped({"*": bounds}), fedagg.mean())

    metrics = round_of(stage, updates=fedagg.Update(value, weights)).metrics
    of_groups = round_of(groups, updates=fedagg.Update(value, weights)).metrics

    assert float(metrics["zeroing/share"]) == 0.25
    assert float(metrics["clipping/share"]) == 0.5
    assert float(of_groups["*/clipping/share"]) == 0.5


def test_clients_that_are_alike_have_no_spread_and_one_direction():
    row = np.random.default_rng(3).normal(size=1000)
    updates = fedagg.Update(jnp.asarray(np.tile(row, (9, 1)), jnp.float32), jnp.ones(9))

    metrics = round_of(
        fedagg.with_measurements(fedagg.mean(), directions=True), updates=updates
    ).metrics

    norm = np.linalg.norm(row)
    assert 0.0 <= float(metrics["measurements/spread"]) < 1e-3 * norm
    assert 0.0 <= float(metrics["measurements/std_dev_client_norm"]) < 1e-3 * norm
    for name in ("cosine", "mean_cosine"):
        np.testing.assert_allclose(metrics[f"measurements/{name}"], 1.0, rtol=1e-5)


def test_one_client_of_seven_that_points_elsewhere_shows_in_the_directions_alone():
    rows = np.zeros((7, 3), np.float32)
    rows[:6, 0], rows[6, 1] = 1e-3, 50.0
    updates = fedagg.Update(jnp.asarray(rows), jnp.ones(7))

    metrics = round_of(
        fedagg.with_measurements(fedagg.mean(), directions=True), updates=updates
    ).metrics

    assert float(metrics["measurements/cosine"]) > 0.99
    np.testing.assert_allclose(metrics["measurements/mean_cosine"], 1 / 7, rtol=1e-2)


@pytest.mark.parametrize("weight", [1.0, 7.3, 1e-12, 1e15])
def test_a_single_client_has_a_norm_without_deviation(weight):
    updates = fedagg.Update(jnp.array([[3.0, 4.0], [1.0, 1.0]]), jnp.array([weight, 0]))

    metrics = round_of(fedagg.with_measurements(fedagg.mean()), updates=updates).metrics

    found = {x.removeprefix("measurements/"): float(y) for x, y in metrics.items()}
    assert found["std_dev_client_norm"] == 0.0 and found["spread"] < 0.01
    np.testing.assert_allclose(found["average_client_norm"], 5.0, rtol=1e-6)
    np.testing.assert_allclose(found["effective_clients"], 1.0, rtol=1e-6)


def test_values_of_zero_and_nobody_measure_as_zero():
    stage = fedagg.with_measurements(fedagg.mean(), directions=True)
    zeros = jnp.zeros((3, 2))

    some = round_of(stage, updates=fedagg.Update(zeros, jnp.ones(3))).metrics
    nobody = round_of(stage, updates=fedagg.Update(zeros + 1, jnp.zeros(3))).metrics

    counts = {"mean/weight", "measurements/clients", "measurements/effective_clients"}
    assert {x: float(y) for x, y in some.items() if y != 0.0}.keys() == counts
    assert all(float(x) == 0.0 for x in nobody.values())


def test_a_nan_shows():
    value = jnp.array([[1.0], [jnp.nan]])
    stage = fedagg.with_measurements(fedagg.mean())

    metrics = round_of(stage, updates=fedagg.Update(value, jnp.ones(2))).metrics

    for name in ("average_client_norm", "std_dev_client_norm", "spread", "cosine"):
        assert math.isnan(metrics[f"measurements/{name}"]), name


def test_directions_are_what_doubles_a_message():
    template = jnp.zeros(1000)
    plain = fedagg.message_bits(fedagg.mean(), template)

    few = fedagg.message_bits(fedagg.with_measurements(fedagg.mean()), template)
    many = fedagg.message_bits(
        fedagg.with_measurements(fedagg.mean(), directions=True), template
    )

    assert few == plain + 5 * 32 and many == few + 1000 * 32


def test_what_has_no_mean_or_hides_a_bound_in_it_is_refused():
    with pytest.raises(ValueError, match="measurements: .* as mean.*there is none"):
        fedagg.with_measurements(fedagg.clipping(1.0))
    inner = fedagg.chain(fedagg.clipping(1.0), fedagg.mean())
    with pytest.raises(ValueError, match="chain.* bounds it, too. Give the stages"):
        fedagg.with_measurements(inner)


@pytest.mark.deep
def test_measurements_go_neither_with_noise_nor_in_a_secure_sum():
    measured = fedagg.with_measurements(fedagg.mean(weighted=False))

    with pytest.raises(ValueError, match="secure_sum: .* notes sizes without a bound"):
        fedagg.secure_sum(measured, 1.0, largest_cohort=10)
    with pytest.raises(ValueError, match="mean.* divides"):
        fedagg.chain(measured, fedagg.gaussian_noise(1.0, 1.0, 10.0))
    secret = fedagg.secure_sum(fedagg.mean(weighted=False), 200.0, largest_cohort=20)
    beside = round_of(fedagg.with_measurements(secret), updates=make_updates())
    plain = round_of(measured, updates=make_updates())
    name = "measurements/spread"
    np.testing.assert_allclose(beside.metrics[name], plain.metrics[name], rtol=1e-4)
