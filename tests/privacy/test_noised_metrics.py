"""Metrics of work, clipped and noised."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg

TEMPLATE = {"x": jnp.zeros(3)}
CLIPS = {"loss": 5.0, "accuracy": 1.0}


def work(row, key):
    return {"x": row[:3]}, {"loss": row[3], "accuracy": row[4], "other": row[3]}


def rounds_of(*stages: fedagg.Stage, rows, weights=None, rounds=1, key=0):
    """The metrics of rounds that are all given the same key."""
    made = fedagg.aggregator(*stages)

    def body(state, _):
        output = made.next(state, rows, weights, jax.random.key(key), work=work)
        return output.state, output.metrics

    start = made.init(TEMPLATE)
    return jax.jit(lambda x: jax.lax.scan(body, x, None, length=rounds)[1])(start)


def rows_of(losses, accuracies) -> jax.Array:
    both = jnp.asarray([losses, accuracies], jnp.float32).T
    return jnp.concatenate([jnp.zeros((len(losses), 3)), both], axis=1)


@pytest.mark.deep
def test_a_metric_is_the_clipped_sum_over_a_public_number():
    rows = rows_of([3.0, 40.0, -40.0, math.nan, math.inf, 7.0], [0.5, 1.0, 2.0] * 2)
    weights = jnp.asarray([9.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    private = fedagg.gaussian_noise(1.0, 1.0, 4.0)

    metrics = rounds_of(
        fedagg.noised_metrics(0.0, CLIPS, 4.0), private, rows=rows, weights=weights
    )

    # One is absent; what is no number counts as zero.
    np.testing.assert_allclose(metrics["loss"], [(3.0 + 5.0 - 5.0) / 4.0], 1e-6)
    np.testing.assert_allclose(metrics["accuracy"], [4.0 / 4.0], 1e-6)
    assert "other" not in metrics


def test_what_is_not_taken_comes_out_as_before_where_nothing_is_private():
    rows = rows_of([1.0, 3.0], [0.0, 1.0])

    metrics = rounds_of(
        fedagg.noised_metrics(0.0, CLIPS, 4.0), fedagg.mean(), rows=rows
    )

    assert metrics["other"] == 2.0 and metrics["loss"] == 1.0


@pytest.mark.thorough
def test_noise_has_the_deviation_that_the_guarantee_is_of_and_is_fresh_in_each_round():
    rounds, n, z = 20_000, 8.0, 1.5
    rows = rows_of([1.0], [1.0])

    metrics = rounds_of(
        fedagg.noised_metrics(z, CLIPS, n),
        fedagg.mean(),
        rows=rows,
        weights=jnp.zeros(1),
        rounds=rounds,
    )

    drawn = np.stack([np.asarray(metrics[x]) / CLIPS[x] for x in CLIPS])
    # In units of their clips a client moves both by the root of two.
    expected = z * math.sqrt(2.0) / n
    spread = drawn.std(axis=1)
    np.testing.assert_allclose(spread, expected, rtol=5.0 / math.sqrt(2.0 * rounds))
    assert np.abs(drawn.mean(axis=1)).max() < 5.0 * expected / math.sqrt(rounds)
    shifted = np.mean(drawn[0, 1:] * drawn[0, :-1]) / expected**2
    across = np.mean(drawn[0] * drawn[1]) / expected**2
    assert max(abs(shifted), abs(across)) < 5.0 / math.sqrt(rounds)
    np.testing.assert_allclose(metrics["noised_metrics/stddev"], expected, rtol=1e-6)


def test_what_is_wrong_is_told():
    rows = rows_of([1.0], [1.0])

    with pytest.raises(ValueError, match="the work reports no 'f1', but \\['accuracy'"):
        rounds_of(fedagg.noised_metrics(1.0, {"f1": 1.0}, 4.0), rows=rows)
    with pytest.raises(ValueError, match="expected a clip for each metric, got none"):
        fedagg.noised_metrics(1.0, {}, 4.0)
    with pytest.raises(ValueError, match="clips\\['loss'\\]"):
        fedagg.noised_metrics(1.0, {"loss": 0.0}, 4.0)
    taken = fedagg.chain(fedagg.noised_metrics(1.0, CLIPS, 4.0), fedagg.mean())
    with pytest.raises(ValueError, match="put it beside the secure sum"):
        fedagg.secure_sum(taken, 1.0, largest_cohort=9, largest_weight=1.0)


@pytest.mark.deep
def test_a_distributed_round_lets_noised_metrics_out_beside_its_secure_sum():
    hidden = fedagg.skellam(0.5, 1.0, 3, bits=20).secure_sum()
    rows = rows_of([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])

    metrics = rounds_of(fedagg.noised_metrics(0.0, CLIPS, 3.0), hidden, rows=rows)

    np.testing.assert_allclose(metrics["loss"], [2.0], rtol=1e-6)
    assert "other" not in metrics
