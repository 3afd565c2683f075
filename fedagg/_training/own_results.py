"""What one client's examples say of a model: sums, and what comes of them alone."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._training.batches import batches_of
from fedagg._training.checked import checked_row
from fedagg._training.losses import pair
from fedagg._training.over_clients import in_bins
from fedagg._trees import pytree, rowwise
from fedagg._trees.kinds import check_function, described
from fedagg._types import PyTree

Metric = tuple[Callable[[Any, Any], PyTree], Callable[[PyTree], Any]]


class OwnResult(NamedTuple):
    """One metric of one client, as it is summed over clients. All float32."""

    sums: PyTree  # over its examples; zeros if one is not finite
    spoilt: jax.Array  # [] one if so
    value: Any  # [] what the sums come to alone, zero if not finite; () of an array
    says: jax.Array  # [] one if that is finite
    says_not: jax.Array  # [] one if it is not
    histogram: Any  # [b] of the value, or ()


def check_metrics(metrics: Any, bins: Any) -> None:
    """Raises an error for what are no metrics, or bins that do not rise."""
    if not isinstance(metrics, Mapping) or not metrics:
        raise TypeError(
            "metrics: expected a dict of pairs (sums, finalize), as "
            f"{{'accuracy': fedagg.metrics.accuracy()}}, got {described(metrics)}."
        )
    for name, made in metrics.items():
        if not isinstance(made, tuple) or len(made) != 2:
            raise TypeError(
                f"metrics: expected a pair (sums, finalize) as {name!r}, got "
                f"{described(made)}. fedagg.metrics has some: accuracy()."
            )
        check_function("(outputs, targets)", **{f"metrics[{name!r}][0]": made[0]})
        check_function("(sums)", **{f"metrics[{name!r}][1]": made[1]})
    for name, edges in bins.items():
        if name not in metrics:
            raise ValueError(f"bins: {name!r} is none of the metrics, {[*metrics]}.")
        edges = np.asarray(edges)
        if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
            raise ValueError(
                f"bins: expected edges [b + 1] that rise, of {name!r}, got {edges}."
            )


def sums_of_examples(
    predict: Callable[[PyTree, Any], Any],
    metrics: Mapping[str, Metric],
    batch_size: int,
    variables: PyTree,
    row: Any,
) -> tuple[dict[str, PyTree], jax.Array]:
    """The sums of each metric, and how many examples there are.

    A client alone runs the batches that it has; side by side all wait for the one with
    most.
    """
    examples, place, mask = checked_row(row)
    batches = batches_of(mask, min(batch_size, mask.shape[0]), 1, None)
    # A client without examples may be said to begin after the last.
    places = jnp.minimum(place + batches.places, rowwise.count_rows(examples) - 1)

    def of_batch(i: Any) -> dict[str, PyTree]:
        inputs, targets = pair(rowwise.take(examples, places[i]))
        outputs = predict(variables, inputs)
        return {
            name: jax.tree.map(
                lambda x, name=name: _over_examples(name, x, batches.counts[i]),
                sums(outputs, targets),
            )
            for name, (sums, _) in metrics.items()
        }

    zeros = pytree.zeros(jax.eval_shape(of_batch, 0))
    total = jax.lax.fori_loop(
        0, batches.steps, lambda i, sums: pytree.add(sums, of_batch(i)), zeros
    )
    return total, jnp.sum(mask, dtype=jnp.float32)


def _over_examples(name: str, x: Any, counts: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    if x.shape[:1] != counts.shape:
        raise ValueError(
            f"metrics: expected sums of {name!r} for each example, [{len(counts)}, "
            f"...]; got {list(x.shape)}. Leave the sum over examples out."
        )
    counts = counts.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.sum(jnp.where(counts, x.astype(jnp.float32), 0.0), axis=0)


def finalized(finalize: Callable[[PyTree], Any], sums: PyTree) -> jax.Array:
    """What a metric makes of sums, as an array of float32."""
    return jnp.asarray(finalize(sums)).astype(jnp.float32)


def own_result(metric: Metric, edges: Any, sums: PyTree) -> tuple[OwnResult, jax.Array]:
    """What a client adds of a metric, and the metric of this client alone."""
    alone = finalized(metric[1], sums)
    says = jnp.all(jnp.isfinite(alone))
    is_sound = pytree.is_finite(sums)
    value, histogram = (), ()
    if not alone.ndim:
        value = jnp.where(says, alone, 0.0)
        if edges is not None:
            edges = jnp.asarray(edges, jnp.float32)
            histogram = pytree.keep(says, in_bins(value, edges))
    result = OwnResult(
        pytree.keep(is_sound, sums),
        (~is_sound).astype(jnp.float32),
        value,
        says.astype(jnp.float32),
        (~says).astype(jnp.float32),
        histogram,
    )
    return result, alone
