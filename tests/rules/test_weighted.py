"""Weighted order statistics: halves of the weight, ties, and who is not there."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from fedagg._rules import ordering
from fedagg._trees.weights import in_parts
from tests.helpers import assert_close, assert_same, first_now, first_round_compiled
from tests.rules import references
from tests.rules.test_selection import entries

MEDIAN = fedagg.median(weighted=True)
sizes = first_now("n", [5, 1, 2, 16, 64, 65, 200], quick=1)
kinds = first_now("kind", ["ties", "normal", "scales"], quick=1)


def combined(rule: fedagg.Rule, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    values = jnp.asarray(x.astype(np.float32))
    aggregator = fedagg.combining(rule)
    return np.asarray(first_round_compiled(aggregator, values, weights).value)


def drawn_weights(n: int, kind: str) -> np.ndarray:
    draw = np.random.default_rng(n + 1)
    whole = draw.integers(1, 8, n)
    return (whole if kind == "ties" else whole * draw.random(n)).astype(np.float32)


@kinds
@sizes
def test_the_weighted_median_is_its_reference(n, kind):
    x, weights = entries(n, kind), drawn_weights(n, kind)

    got = combined(MEDIAN, x, weights)

    expected = references.weighted_median(
        x.astype(np.float64), weights.astype(np.float64)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@kinds
@sizes
def test_the_weighted_trimmed_mean_is_its_reference(n, kind):
    x, weights = entries(n, kind), drawn_weights(n, kind)

    for f in {0, n // 5, (n - 1) // 2}:
        got = combined(fedagg.trimmed_mean(f, weighted=True), x, weights)

        exact = x.astype(np.float64), weights.astype(np.float64)
        expected = references.weighted_trimmed_mean(*exact, f)
        size = np.abs(exact[0]).mean(axis=0)
        allowed = 1e-6 * size + 2e-5 * np.abs(expected)  # zero where entries are
        assert np.all(np.abs(got - expected) <= allowed)


@first_now("n", [6, 7, 64, 65, 100])
def test_equal_weights_give_what_none_do_to_the_last_bit(n):
    x = entries(n, "normal")

    for weight in (0.1, 1 / 3, 7.0, 1e-30, 1e30):
        weights = np.full(n, weight, np.float32)

        assert_same(combined(MEDIAN, x, weights), combined(fedagg.median(), x, weights))


@pytest.mark.parametrize(
    "entries, weights, expected",
    [
        ([0.0, 1.0, 2.0, 9.0], [1.0, 1.0, 1.0, 3.0], 5.5),
        ([0.0, 2.0, 10.0], [1.0, 1e-12, 1.0], 2.0),  # no half is at 0
        ([0.0, 2.0, 10.0], [1.0, 0.0, 1.0], 5.0),
        ([math.nan, 2.0, 10.0, 11.0], [1e30, 1.0, 1.0, 1.0], 10.0),
        ([math.inf, 2.0, -math.inf], [1.0, 3.0, 9.0], 2.0),
        ([math.nan, 1.0], [1.0, 0.0], 0.0),
        ([3e38, 3e38], [1.0, 1.0], 3e38),
        ([-0.0, 0.0, 4.0], [2e9, 2e9, 1.0], 0.0),
    ],
)
def test_a_weighted_median_by_hand(entries, weights, expected):
    got = combined(MEDIAN, np.array(entries)[:, None], np.array(weights, np.float32))

    np.testing.assert_allclose(got, [np.float32(expected)], rtol=1e-6)


def test_what_is_absent_or_no_number_has_no_weight():
    x, weights = entries(70, "normal"), drawn_weights(70, "ties")
    weights[::3] = 0.0
    x[0], x[1, 2], x[2, 3], x[4, 4] = np.nan, np.nan, np.inf, -np.inf

    got = (
        combined(MEDIAN, x, weights),
        combined(fedagg.trimmed_mean(3, weighted=True), x, weights),
    )

    for column, (middle, mean) in enumerate(zip(*got, strict=True)):
        given = (weights > 0.0) & np.isfinite(x[:, column])
        left, of_each = (
            x[given][:, [column]].astype(np.float64),
            weights[given].astype(np.float64),
        )
        found = int((weights > 0.0).sum() - given.sum())
        assert_close(middle, references.weighted_median(left, of_each)[0])
        expected = references.weighted_trimmed_mean(left, of_each, 3 - found)
        assert_close(mean, expected[0], rtol=2e-5)


def test_of_equal_entries_that_are_trimmed_none_is_the_first():
    x, weights = np.array([[1.0], [1.0], [5.0], [9.0]]), np.array([2.0, 6.0, 4.0, 1.0])
    rule = fedagg.trimmed_mean(1, weighted=True)

    got = combined(rule, x, weights), combined(rule, x[::-1], weights[::-1])

    assert_close(got[0], np.array([(4.0 * 1.0 + 4.0 * 5.0) / 8.0]))
    assert_same(*got)


@pytest.mark.deep
def test_columns_that_are_sorted_give_what_counting_does():
    x, weights = jnp.asarray(entries(33, "ties")), jnp.asarray(drawn_weights(33, "t"))
    given = (weights > 2.0)[:, None] & (x > -2.0)
    held = jnp.where(given, x, math.nan)
    trimmed = jnp.full(x.shape[1], 0, jnp.int32)

    got = (
        ordering.weighted_median_of(x, given, weights),
        ordering.weighted_trimmed_mean_of(x, given, trimmed, weights),
    )

    rules = MEDIAN, fedagg.trimmed_mean(0, weighted=True)
    for of_sorted, rule in zip(got, rules, strict=True):
        assert_close(of_sorted, combined(rule, np.asarray(held), np.asarray(weights)))


def test_a_weighted_trimmed_mean_follows_entries_and_weights():
    x, weights = jnp.asarray([[1.0], [2.0], [4.0], [9.0]]), jnp.asarray([1.0, 1, 3, 1])
    aggregator = fedagg.combining(fedagg.trimmed_mean(1, weighted=True))
    state = aggregator.init(x[0])

    def mean(x: jax.Array, weights: jax.Array) -> jax.Array:
        return aggregator.next(state, x, weights).value[0]

    of_entries, of_weights = jax.grad(mean, (0, 1))(x, weights)

    assert_close(of_entries[:, 0], np.array([0.0, 0.25, 0.75, 0.0]))
    assert_close(of_weights, np.array([0.0, -0.375, 0.125, 0.0]))


def test_parts_of_weights_are_whole_and_in_proportion():
    weights = jnp.asarray([1.0, 2.0, 3.0, 0.0, 1e-20])

    parts = np.asarray(in_parts(weights))

    assert parts.dtype == np.int32 and parts[3] == 0 and parts[4] == 1
    np.testing.assert_array_equal(parts[1:3], parts[0] * np.array([2, 3]))
    assert 2**29 <= parts.sum() <= 2**30
    assert not np.asarray(in_parts(jnp.zeros(3))).any()


@pytest.mark.deep
def test_doubles_are_weighed_as_they_are():
    x, weights = (
        entries(9, "ties").astype(float) + 2.0**-40,
        drawn_weights(9, "ties").astype(float),
    )

    with jax.enable_x64(True):
        for rule, expected in (
            (MEDIAN, references.weighted_median(x, weights)),
            (
                fedagg.trimmed_mean(2, weighted=True),
                references.weighted_trimmed_mean(x, weights, 2),
            ),
        ):
            aggregator = fedagg.combining(rule)
            got = first_round_compiled(aggregator, jnp.asarray(x), weights).value

            assert got.dtype == jnp.float64
            np.testing.assert_allclose(got, expected, rtol=1e-12)
