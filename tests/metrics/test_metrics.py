"""Metrics as sums over examples, against sklearn and NumPy over all at once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import confusion_matrix, log_loss, roc_auc_score

from fedagg import metrics
from tests.helpers import first_now

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(60, 4)).astype(np.float32)
TARGETS = RANDOM.integers(0, 4, 60)
GUESSES = LOGITS.argmax(axis=1)


def in_parts(metric, outputs, targets):
    """The metric of sums that were made part by part."""
    sums, finalize = metric
    total = None
    for own in (slice(0, 7), slice(7, 30), slice(30, None)):
        each = sums(jnp.asarray(outputs[own]), jnp.asarray(targets[own]))
        part = jax.tree.map(lambda x: jnp.sum(x.astype(jnp.float32), axis=0), each)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    return np.asarray(finalize(total))


def probabilities():
    large = np.exp(LOGITS.astype(np.float64))
    return large / large.sum(axis=1, keepdims=True)


def calibration_by_hand(bins):
    confidence, right = probabilities().max(axis=1), GUESSES == TARGETS
    rows = []
    for i in range(bins):
        own = (confidence >= i / bins) & (confidence < (i + 1) / bins)
        count = own.sum()
        rows.append(
            [count, confidence[own].mean(), right[own].mean()] if count else [0, 0, 0]
        )
    return np.array(rows)


def calibration_error_by_hand(bins):
    count, confidence, right = calibration_by_hand(bins).T
    return np.sum(count * np.abs(confidence - right)) / count.sum()


CROSS_ENTROPY = log_loss(TARGETS, probabilities())

OF_CLASSES = {
    "accuracy": (metrics.accuracy(), np.mean(GUESSES == TARGETS)),
    "mean_loss": (
        metrics.mean_loss(optax.softmax_cross_entropy_with_integer_labels),
        CROSS_ENTROPY,
    ),
    "perplexity": (metrics.perplexity(), np.exp(CROSS_ENTROPY)),
    "confusion_matrix": (
        metrics.confusion_matrix(4),
        confusion_matrix(TARGETS, GUESSES),
    ),
    "calibration": (metrics.calibration(6), calibration_by_hand(6)),
    "calibration_error": (
        metrics.calibration_error(6),
        calibration_error_by_hand(6),
    ),
}


@first_now("name", OF_CLASSES)
def test_a_metric_of_parts_is_that_of_the_whole(name):
    metric, expected = OF_CLASSES[name]

    found = in_parts(metric, LOGITS, TARGETS)

    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_auc_is_that_of_sorted_scores_to_half_the_pairs_in_a_bin():
    scores, labels = LOGITS[:, 0], TARGETS % 2
    scores = scores + labels  # so that they say something

    found = in_parts(metrics.auc(1000), scores, labels)

    place = np.floor(1000 / (1 + np.exp(-scores.astype(np.float64))))
    pairs = place[labels == 1][:, None] == place[labels == 0][None]
    exact = roc_auc_score(labels, scores)
    assert exact > 0.6
    assert abs(found - exact) <= pairs.mean() / 2 + 1e-6


def test_auc_of_one_class_alone_is_not_a_number():
    assert np.isnan(in_parts(metrics.auc(), LOGITS[:, 0], np.ones(60)))


@pytest.mark.parametrize("name", ["accuracy", "perplexity", "confusion_matrix"])
def test_tokens_count_as_so_many_targets(name):
    metric, _ = OF_CLASSES[name]

    tokens = in_parts(
        metric, np.repeat(LOGITS[:, None], 3, 1), np.repeat(TARGETS[:, None], 3, 1)
    )

    times = 3 if name == "confusion_matrix" else 1
    np.testing.assert_allclose(tokens, times * in_parts(metric, LOGITS, TARGETS), 1e-5)


def test_an_output_of_nan_is_wrong_and_of_no_class():
    broken = LOGITS.copy()
    broken[3] = np.nan
    rest = np.arange(60) != 3

    accuracy = in_parts(metrics.accuracy(), broken, TARGETS)
    matrix = in_parts(metrics.confusion_matrix(4), broken, TARGETS)
    table = in_parts(metrics.calibration(6), broken, TARGETS)

    assert accuracy == np.float32((GUESSES == TARGETS)[rest].sum() / 60)
    assert (matrix == confusion_matrix(TARGETS[rest], GUESSES[rest])).all()
    assert table[:, 0].sum() == 59 and np.isfinite(table).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: metrics.confusion_matrix(0),
        lambda: metrics.calibration(0),
        lambda: metrics.calibration_error(-1),
        lambda: metrics.auc(0),
    ],
)
def test_counts_are_positive(make):
    with pytest.raises(ValueError, match="whole number, 1 or more"):
        make()


def test_a_loss_is_a_function_of_outputs_and_targets():
    def of_one(*, outputs: Any) -> Any:
        return outputs

    wrong: Any = of_one

    with pytest.raises(TypeError, match=r"loss: expected a function \(outputs"):
        metrics.mean_loss(wrong)
