"""Rounds in a user's own project: whole, with a memory, and taken apart."""

from collections.abc import Sequence
from typing import Any, assert_type

import jax
import jax.numpy as jnp

import fedagg

from .parts import halving, shrinking

PyTree = Any


def rounds(
    template: PyTree, updates: PyTree, weights: jax.Array, key: jax.Array
) -> tuple[PyTree, float]:
    """Two rounds, one after the other; the last value and its mean weight."""
    aggregator = fedagg.aggregator(
        fedagg.zeroing(10.0), shrinking(0.1, most=3.0), fedagg.mean(), halving()
    )
    state: PyTree = aggregator.init(template)
    for _ in range(2):
        state, value, metrics = aggregator.next(state, updates, weights, key)
        assert_type(metrics, dict[str, jax.Array])
    return value, float(metrics["mean/weight"])


def remembering(targets: jax.Array) -> tuple[PyTree, PyTree]:
    """A round of clients that keep how often they took part."""

    def work(
        row: jax.Array, key: jax.Array | None, count: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        return row, {"work/count": count}, count + 1

    aggregator = fedagg.aggregator(fedagg.mean())
    state: PyTree = aggregator.init(targets[0])
    counts = jnp.zeros(len(targets), jnp.int32)
    output, kept = aggregator.next(state, targets, work=work, memory=counts)
    assert_type(output, fedagg.Output)
    return output.value, kept


def by_messages(rows: Sequence[PyTree], aggregator: fedagg.Aggregator) -> PyTree:
    """A round as a server and clients on machines of their own run it."""
    steps = aggregator.steps
    state: PyTree = aggregator.init(rows[0])
    shared: PyTree = steps.broadcast(state)
    total: PyTree = None
    for i, row in enumerate(rows):
        message = steps.client(shared, row, 1.0, jax.random.key(i))
        total = steps.add(total, message)
    return steps.server(state, total, None).value
