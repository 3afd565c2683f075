"""A round whose clients add noise, through the real protocol, is the round in jit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fedagg
from fedagg import secagg
from tests.helpers import assert_close, make_updates
from tests.secagg.rounds import CONTEXT

CLIENTS, BITS = 7, 18
MECHANISMS = {
    "skellam": fedagg.skellam,
    "discrete_gaussian": fedagg.discrete_gaussian,
}


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("drop", [{}, {2: "vectors", 5: "shares"}])
@pytest.mark.deep
def test_the_protocol_gives_the_round_in_jit_to_the_bit(name, drop):
    clip = fedagg.quantile_bound(1.0, 0.5, 0.2)
    noise = MECHANISMS[name](0.2, clip, CLIENTS, bits=BITS, smallest_cohort=5)
    bound = fedagg.quantile_bound(2.0, 0.8, 0.5)
    told = fedagg.without_guarantee(fedagg.zeroing(bound))
    aggregator = fedagg.aggregator(noise.secure_sum(told))
    updates, key = make_updates(CLIENTS), jax.random.key(4)
    state = aggregator.init(jax.tree.map(lambda x: x[0], updates.value))

    # What each client would send, on a machine of its own.
    message, shared = (
        jax.jit(aggregator.steps.client),
        aggregator.steps.broadcast(state),
    )
    messages = [
        message(
            shared,
            jax.tree.map(lambda x, i=i: x[i], updates.value),
            1.0,
            jax.random.fold_in(key, i),
        )
        for i in range(CLIENTS)
    ]
    again = ravel_pytree(messages[0])[1]
    vectors = [np.asarray(ravel_pytree(x)[0]) for x in messages]
    plan = secagg.Plan.complete(CLIENTS, len(vectors[0]), BITS, CONTEXT, threshold=3)
    plan = dataclasses.replace(plan, quorum=3)
    total, survivors = secagg.simulate(plan, vectors, drop=drop)
    total = again(jnp.asarray(total))
    real = jax.jit(aggregator.steps.server)(state, total)

    alive = np.isin(np.arange(CLIENTS), survivors)
    weights = jnp.asarray(alive, jnp.float32)
    summed = None
    for i in np.flatnonzero(alive):
        summed = aggregator.steps.add(summed, messages[i])
    in_jit = jax.jit(aggregator.next)(state, updates.value, weights, key)

    assert len(survivors) >= 5
    for x, y in zip(jax.tree.leaves(summed), jax.tree.leaves(total), strict=True):
        np.testing.assert_array_equal(np.asarray(x) % 2**BITS, y)
    assert real.metrics[f"{name}_noise/is_released"] == 1.0
    # Floats that the compiler may put together in another order.
    assert_close(in_jit, real, rtol=1e-6)
