"""A round step by step, as machines of their own would run it, is the round in one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from tests.helpers import (
    TEMPLATE,
    N,
    assert_close,
    assert_same,
    assert_same_round,
    first_now,
    make_updates,
    take,
)
from tests.test_laws import build, examples_now_and_everything_later

KEY = 5


def step_by_step(steps, state, rows, weights, key, memory=None) -> Any:
    """What a server and clients on machines of their own do; the absent do nothing."""
    client = jax.jit(steps.client)
    shared, total = steps.broadcast(state), None
    kept = {} if memory is None else {i: take(memory, i) for i in range(len(weights))}
    for i, weight in enumerate(weights):
        if weight > 0.0:
            row, key_of_client = take(rows, i), jax.random.fold_in(key, i)
            if memory is None:
                message = client(shared, row, weight, key_of_client)
            else:
                message, kept[i] = client(shared, row, weight, key_of_client, kept[i])
            total = steps.add(total, message)
    key_of_server = jax.random.fold_in(key, 2**32 - 1)
    output = jax.jit(steps.server)(state, total, key_of_server)
    return output if memory is None else (output, [kept[i] for i in sorted(kept)])


@examples_now_and_everything_later
def test_steps_are_the_round(name):
    aggregator, updates = build(name), make_updates()
    weights = np.array(updates.weight)
    weights[[1, 7]] = 0.0
    state = aggregator.init(TEMPLATE)

    whole = jax.jit(lambda s, x, w: aggregator.next(s, x, w, jax.random.key(KEY)))(
        state, updates.value, jnp.asarray(weights)
    )
    parts = step_by_step(
        aggregator.steps, state, updates.value, weights, jax.random.key(KEY)
    )

    assert_same_round(parts, whole)
    if "secure" in name or "skellam" in name or "discrete_gaussian" in name:
        # Messages are integers, so that sums have no order.
        assert_same(jax.tree.leaves(parts.state), jax.tree.leaves(whole.state))
        assert_close(parts.value, whole.value, rtol=1e-6)


@first_now("dtype", ["bfloat16", "float16", "float32"])
def test_the_value_comes_back_in_the_dtypes_of_the_template(dtype):
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), TEMPLATE)
    updates = make_updates(template=template)
    aggregator = fedagg.aggregator(fedagg.mean())
    state = aggregator.init(template)

    whole = aggregator.next(state, *updates)
    parts = step_by_step(
        aggregator.steps,
        state,
        jax.device_get(updates.value),
        jax.device_get(updates.weight),
        jax.random.key(0),
    )

    assert {x.dtype.name for x in jax.tree.leaves(parts.value)} == {dtype}
    assert_close(parts, whole, rtol=2e-3 if dtype != "float32" else 1e-5)


def test_a_client_that_sends_nothing_that_counts_changes_nothing():
    aggregator = fedagg.robust_aggregator()
    state, updates = aggregator.init(TEMPLATE), make_updates(3)
    shared = aggregator.steps.broadcast(state)
    messages = [
        aggregator.steps.client(shared, take(updates.value, i), weight, None)
        for i, weight in enumerate([2.0, 0.0, 3.0])
    ]

    both, three = None, None
    for message in messages:
        three = aggregator.steps.add(three, message)
    for message in messages[::2]:
        both = aggregator.steps.add(both, message)

    assert_same(three, both)


def test_a_training_has_steps_too():
    def work(model, row, key, memory):
        noise = jax.random.normal(key, (), jnp.float32)
        change = row - model["params"] + noise
        return {"params": change}, {"loss": jnp.abs(row)}, memory + row

    training = fedagg.federated_averaging(
        work, optax.sgd(0.5, momentum=0.9), fedagg.robust_aggregator()
    )
    state = training.init({"params": jnp.float32(0.5)})
    rows, memory = jnp.arange(float(N)), jnp.ones(N)
    weights = np.ones(N, np.float32)
    weights[4] = 0.0

    for seed in range(2):
        key = jax.random.key(seed)
        whole, kept = training.next(state, rows, weights, key, memory=memory)
        key = jax.random.key(seed)
        parts, kept_of_each = step_by_step(
            training.steps, state, rows, weights, key, memory
        )

        assert_close(parts, whole)
        np.testing.assert_array_equal(kept_of_each, kept)
        state, memory = whole.state, kept


@first_now("name", ["mean", "robust_aggregator", "median", "eden"])
def test_a_round_without_messages_is_one_without_clients(name):
    aggregator, updates = build(name), make_updates()
    state = aggregator.init(TEMPLATE)

    whole = aggregator.next(state, updates.value, jnp.zeros(N), jax.random.key(0))
    parts = aggregator.steps.server(state, None, jax.random.key(1))

    assert_same(parts, whole)


def test_a_state_that_does_not_remember_says_so_where_nothing_was_added():
    aggregator = fedagg.robust_aggregator()
    state = tuple(aggregator.init(TEMPLATE))

    with pytest.raises(ValueError, match="total: nothing was added"):
        aggregator.steps.server(state, None)
