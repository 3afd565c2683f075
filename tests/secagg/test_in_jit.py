"""The secure sum in jit is the real protocol, to the bit."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from fedagg import secagg
from tests.helpers import assert_same, make_updates
from tests.secagg.rounds import CONTEXT

CLIENTS = 7
BITS = 26
STEPS = ["keys", "shares", "vectors", "openings"]

stage = fedagg.secure_sum(
    fedagg.chain(fedagg.clipping(fedagg.quantile_bound(1.0, 0.8, 0.2)), fedagg.mean()),
    fedagg.quantile_bound(5.0, 0.9, 0.5),
    largest_cohort=CLIENTS,
    largest_weight=20.0,
    bits=BITS,
)
aggregator = fedagg.aggregator(stage)
next_round = jax.jit(aggregator.next)
message = jax.jit(aggregator.steps.client)  # of a client on a machine of its own
opened = jax.jit(aggregator.steps.server)  # what is made of the sum of messages


@st.composite
def rounds(draw):
    degree = draw(st.sampled_from([2, 4, CLIENTS - 1]))
    who = draw(st.sets(st.integers(0, CLIENTS - 1), max_size=3))
    drop = {i: draw(st.sampled_from(STEPS)) for i in sorted(who)}
    return degree, drop, draw(st.integers(0, 2**32 - 1))


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(rounds())
@pytest.mark.deep
def test_the_simulated_protocol_gives_the_round_in_jit(drawn):
    degree, drop, seed = drawn
    updates = make_updates(CLIENTS, seed)
    template = jax.tree.map(lambda x: x[0], updates.value)
    state = aggregator.init(template)

    shared = aggregator.steps.broadcast(state)
    messages = [
        message(shared, *jax.tree.map(lambda x, i=i: x[i], updates))
        for i in range(CLIENTS)
    ]
    plan = secagg.Plan.for_aggregator(
        aggregator, template, CLIENTS, CONTEXT, complete=True, threshold=2
    )
    plan = dataclasses.replace(plan, degree=degree, quorum=2)
    vectors = [secagg.vector_of(x) for x in messages]
    try:
        total, survivors = secagg.simulate(plan, vectors, drop=drop)
    except secagg.TooFewClientsError:
        assert drop
        return
    real = opened(state, secagg.total_of(aggregator, template, total))

    alive = np.isin(np.arange(CLIENTS), survivors)
    weights = jnp.where(alive, updates.weight, 0.0)
    simulated = next_round(state, updates.value, weights)

    assert_same(simulated.value, real.value)
    assert_same(simulated.metrics, real.metrics)
    assert_same(simulated.state, real.state)
