"""A round whose clients add noise, through the real protocol, is the round in jit."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from fedagg import secagg
from tests.rounds import assert_same, make_updates, with_rows

CLIENTS, BITS, CLIENT_STAGES = 7, 18, 2**32 - 2
NOISES = {
    "skellam": fedagg.skellam_noise,
    "discrete_gaussian": fedagg.discrete_gaussian_noise,
}


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("drop", [{}, {2: "vectors", 5: "shares"}, {0: "openings"}])
def test_the_protocol_gives_the_round_in_jit_to_the_bit(name, drop):
    noise = NOISES[name](
        0.2, 1.0, CLIENTS, bits=BITS, smallest_cohort=5, target_quantile=0.5
    )
    bound = fedagg.quantile_bound(2.0, 0.8, 0.5)
    stage = fedagg.secure_modular_sum(
        fedagg.chain(fedagg.zeroing(bound), noise), bits=BITS, largest_cohort=CLIENTS
    )
    updates = make_updates(CLIENTS)
    state = stage.init(jax.tree.map(lambda x: x[0], updates.value))

    @jax.jit
    def message(update: fedagg.Update, i: jax.Array) -> Any:
        """What client `i` would send, on a machine of its own."""
        stages = jax.random.fold_in(jax.random.key(4), CLIENT_STAGES)
        key = jax.random.fold_in(stages, i)
        # As in a chain of the one stage.
        sent, note = stage.client(
            stage.broadcast(state), update, jax.random.split(key, 1)[0]
        )
        return sent.value, note

    messages = [
        message(jax.tree.map(lambda x, i=i: x[i], updates), jnp.uint32(i))
        for i in range(CLIENTS)
    ]
    leaves, structure = jax.tree.flatten(messages[0])
    vectors = [
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(y)]) for y in messages
    ]
    plan = secagg.Plan.complete(CLIENTS, len(vectors[0]), bits=BITS, threshold=3)
    plan = dataclasses.replace(plan, quorum=3)
    total, survivors = secagg.simulate(plan, vectors, drop=drop)
    ends = np.cumsum([x.size for x in leaves])[:-1]
    parts = [
        jnp.asarray(x.reshape(y.shape))
        for x, y in zip(np.split(total, ends), leaves, strict=True)
    ]
    value, note = jax.tree.unflatten(structure, parts)
    real = jax.jit(lambda value, note: stage.server(state, value, note, None))(
        value, note
    )

    gone = np.setdiff1d(np.arange(CLIENTS), survivors)
    weights = with_rows(jnp.ones(CLIENTS), gone, 0.0)
    aggregator = fedagg.aggregator(stage)
    in_jit = jax.jit(aggregator.next)(
        (state,), updates.value, weights, jax.random.key(4)
    )

    assert len(survivors) >= 5
    assert all(np.all(x < 2**BITS) for x in vectors)
    expected = sum(vectors[i].astype(np.uint64) for i in survivors) % 2**BITS
    np.testing.assert_array_equal(total, expected)
    assert real.metrics[f"{name}_noise/is_released"] == 1.0
    assert_same(in_jit.value, real.value)
    assert_same(in_jit.metrics, real.metrics)
    assert_same(in_jit.state[0], real.state)
