"""Metrics that are sums over examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedagg._trees import checks
from fedagg._trees.kinds import check_function
from fedagg._types import PyTree

Metric = tuple[Callable[[Any, Any], PyTree], Callable[[PyTree], jax.Array]]
_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def accuracy() -> Metric:
    """The share of targets that have the largest of the outputs.

    Outputs `[b, ..., classes]`, targets `[b, ...]` of integers: a target each, or one
    for each token. An output with a NaN is wrong.
    """

    def sums(outputs: Any, targets: Any) -> PyTree:
        return _each(_is_right(outputs, targets))

    return sums, _mean


def mean_loss(loss: Callable[[Any, Any], jax.Array]) -> Metric:
    """The mean of a loss.

    Args:
        loss: `(outputs, targets) -> [b, ...]`, such as
            `optax.softmax_cross_entropy_with_integer_labels`.

    Raises:
        TypeError: if `loss` is no function of that.
    """
    check_function("(outputs, targets)", loss=loss)
    return lambda outputs, targets: _each(loss(outputs, targets)), _mean


def perplexity() -> Metric:
    """The exponential of the mean cross entropy of targets, one for each token, say.

    Outputs `[b, ..., classes]` are logits, targets `[b, ...]` integers.
    """
    return mean_loss(_cross_entropy)[0], lambda total: jnp.exp(_mean(total))


def confusion_matrix(classes: int) -> Metric:
    """How often which class was taken for which, `[target, largest output]`.

    Outputs `[b, ..., classes]`, targets `[b, ...]`. A target that is no class, and an
    output with a NaN, are not counted.

    Args:
        classes: how many there are.

    Raises:
        ValueError: if `classes` is no positive integer.
    """
    checks.check_whole(1, classes=classes)

    def sums(outputs: Any, targets: Any) -> PyTree:
        named = jax.nn.one_hot(_flat(targets), classes)
        guessed = jax.nn.one_hot(_flat(jnp.argmax(outputs, axis=-1)), classes)
        is_known = _flat(~jnp.isnan(jnp.max(outputs, axis=-1)))
        guessed = jnp.where(is_known[..., None], guessed, 0.0)
        return jnp.einsum("bit,big->btg", named, guessed)

    return sums, lambda total: total


def calibration(bins: int = 15) -> Metric:
    """How sure a model is, and how right, in bins of its confidence: `[bins, 3]`.

    In each row: how many outputs had a largest probability in this bin, its mean, and
    the share of them that was right; the latter two are zero in an empty bin. Outputs
    `[b, ..., classes]` are logits, targets `[b, ...]` integers.

    Args:
        bins: how many, of equal width.

    Raises:
        ValueError: if `bins` is no positive integer.

    Reference: Guo et al., "On Calibration of Modern Neural Networks", 2017, section 2.
    """

    def finalize(total: jax.Array) -> jax.Array:
        count = total[:, :1]
        return jnp.concatenate(
            [count, total[:, 1:] / jnp.where(count > 0.0, count, 1.0)], axis=1
        )

    return _confidence(bins), finalize


def calibration_error(bins: int = 15) -> Metric:
    """The expected calibration error: how far confidence is from being right.

    Args:
        bins: of confidence, of equal width.

    Raises:
        ValueError: if `bins` is no positive integer.

    Reference: Guo et al., "On Calibration of Modern Neural Networks", 2017, section 2,
        equation 3.
    """

    def finalize(total: jax.Array) -> jax.Array:
        gaps = jnp.abs(total[:, 1] - total[:, 2])
        return jnp.sum(gaps) / jnp.sum(total[:, 0])

    return _confidence(bins), finalize


def auc(bins: int = 200) -> Metric:
    """The area under the ROC curve of two classes, from histograms of their scores.

    It is the chance that a positive example has a larger score than a negative one; a
    pair in one bin counts for one half, so that the error is at most half the share of
    such pairs. NaN with one class alone, as many a client is. Outputs `[b]` are logits,
    and targets `[b]` are one or zero.

    Args:
        bins: of the probability, of equal width.

    Raises:
        ValueError: if `bins` is no positive integer.

    Reference: Fawcett, "An Introduction to ROC Analysis", 2006, section 7.
    """
    checks.check_whole(1, bins=bins)

    def sums(outputs: Any, targets: Any) -> PyTree:
        place = _in_bins(jax.nn.sigmoid(outputs), bins)
        is_positive = jnp.asarray(targets) > 0
        return jnp.where(is_positive[:, None], place, 0.0), jnp.where(
            is_positive[:, None], 0.0, place
        )

    def finalize(total: tuple[jax.Array, jax.Array]) -> jax.Array:
        positive, negative = (x / jnp.sum(x) for x in total)
        below = jnp.cumsum(negative) - negative
        return jnp.sum(positive * (below + negative / 2.0))

    return sums, finalize


def _mean(total: tuple[jax.Array, jax.Array]) -> jax.Array:
    return total[0] / total[1]


def _flat(x: Any) -> jax.Array:
    """What an example has `[b, k]`."""
    x = jnp.asarray(x)
    return x.reshape(x.shape[0], -1)


def _each(x: Any) -> tuple[jax.Array, jax.Array]:
    """The sum of what an example has, and how many there are: `[b]` and `[b]`."""
    x = _flat(x).astype(jnp.float32)
    return jnp.sum(x, axis=1), jnp.full(x.shape[:1], x.shape[1], jnp.float32)


def _is_right(outputs: Any, targets: Any) -> jax.Array:
    is_known = ~jnp.isnan(jnp.max(outputs, axis=-1))
    return (jnp.argmax(outputs, axis=-1) == targets) & is_known


def _in_bins(probability: jax.Array, bins: int) -> jax.Array:
    """Ones in the bin of each number, `[..., bins]`; none for NaN."""
    place = jnp.clip(jnp.floor(probability * bins), 0, bins - 1)
    place = jnp.where(jnp.isnan(probability), -1, place).astype(jnp.int32)
    return jax.nn.one_hot(place, bins)


def _confidence(bins: int) -> Callable[[Any, Any], jax.Array]:
    """For each bin the number of outputs in it, their confidence, how many are right.

    An output with a NaN is in no bin.
    """
    checks.check_whole(1, bins=bins)

    def sums(outputs: Any, targets: Any) -> jax.Array:
        confidence = _flat(jnp.max(jax.nn.softmax(outputs), axis=-1))
        right = _flat(_is_right(outputs, targets)).astype(jnp.float32)
        is_known = jnp.isfinite(confidence)
        place = _in_bins(confidence, bins)
        each = [jnp.ones_like(right), jnp.where(is_known, confidence, 0.0), right]
        return jnp.einsum("bkn,bkj->bnj", place, jnp.stack(each, axis=-1))

    return sums
