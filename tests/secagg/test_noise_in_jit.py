"""A round whose clients add noise, through the real protocol, is the round in jit."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fedagg
from fedagg import secagg
from tests.helpers import assert_close, make_updates

CLIENTS, BITS, CLIENT_STAGES = 7, 18, 2**32 - 2
MECHANISMS = {
    "skellam": fedagg.skellam,
    "discrete_gaussian": fedagg.discrete_gaussian,
}


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("drop", [{}, {2: "vectors", 5: "shares"}])
def test_the_protocol_gives_the_round_in_jit_to_the_bit(name, drop):
    clip = fedagg.quantile_bound(1.0, 0.5, 0.2)
    noise = MECHANISMS[name](0.2, clip, CLIENTS, bits=BITS, smallest_cohort=5)
    bound = fedagg.quantile_bound(2.0, 0.8, 0.5)
    stage = noise.secure_sum(fedagg.zeroing(bound))
    updates = make_updates(CLIENTS)
    state = stage.init(jax.tree.map(lambda x: x[0], updates.value))

    @jax.jit
    def message(update: fedagg.Update, i: jax.Array) -> Any:
        """What client `i` would send, on a machine of its own."""
        key = jax.random.fold_in(jax.random.key(4), i)
        key = jax.random.fold_in(key, CLIENT_STAGES)
        # As in a chain of the one stage.
        sent, note = stage.client(
            stage.broadcast(state), update, jax.random.split(key, 1)[0]
        )
        return sent.value, note

    messages = [
        message(jax.tree.map(lambda x, i=i: x[i], updates), jnp.uint32(i))
        for i in range(CLIENTS)
    ]
    again = ravel_pytree(messages[0])[1]
    vectors = [np.asarray(ravel_pytree(x)[0]) for x in messages]
    plan = secagg.Plan.complete(CLIENTS, len(vectors[0]), bits=BITS, threshold=3)
    plan = dataclasses.replace(plan, quorum=3)
    total, survivors = secagg.simulate(plan, vectors, drop=drop)
    value, note = again(jnp.asarray(total))
    real = jax.jit(lambda value, note: stage.server(state, value, note, None))(
        value, note
    )

    alive = np.isin(np.arange(CLIENTS), survivors)
    weights = jnp.asarray(alive, jnp.float32)

    def part(client: tuple) -> Any:
        update, i = client
        sent = message(update, i)
        here = update.weight > 0.0
        return jax.tree.map(lambda x: jnp.where(here, x, jnp.uint32(0)), sent), ()

    clients = updates._replace(weight=weights), jnp.arange(CLIENTS, dtype=jnp.uint32)
    summed, _ = jax.jit(lambda clients: fedagg.in_chunks(3)(part, clients))(clients)
    in_jit = jax.jit(fedagg.aggregator(stage).next)(
        (state,), updates.value, weights, jax.random.key(4)
    )

    assert len(survivors) >= 5
    for x, y in zip(
        jax.tree.leaves(summed), jax.tree.leaves((value, note)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(x) % 2**BITS, y)
    assert real.metrics[f"{name}_noise/is_released"] == 1.0
    # Floats that the compiler may put together in another order.
    assert_close(in_jit.value, real.value, rtol=1e-6)
    assert_close(in_jit.metrics, real.metrics, rtol=1e-6)
    assert_close(in_jit.state[0], real.state, rtol=1e-6)
