"""Replicas that keep their optimizer, in few bits, on a mesh, killed and broken."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from fedagg import algorithms
from tests.algorithms.problems import EXAMPLES, START, loss
from tests.algorithms.table import batches
from tests.compiling import jit
from tests.helpers import assert_close, assert_same, mesh_of

N = len(EXAMPLES)
NUMBERS = np.arange(N)
DATA = batches(EXAMPLES, NUMBERS)


def training(aggregator):
    optimizer = optax.sgd(0.1, momentum=0.9)
    return algorithms.diloco(loss, optimizer, aggregator, replicas=N)


def two_rounds(aggregator, data=DATA, weights=None):
    of_replicas = training(aggregator)
    state, next_round = of_replicas.init(START), jit(of_replicas.next)
    states = []
    for number in range(2):
        key = jax.random.key(number)
        state = next_round(state, (data, NUMBERS), weights, key).state
        states.append(state)
    return states


def careful(*more, **options):
    stages = fedagg.zeroing(1e6, keep_weight=False), fedagg.mean(weighted=False)
    return fedagg.aggregator(*stages, *more, **options)


def test_error_feedback_of_what_loses_nothing_is_the_mean():
    whole = fedagg.with_error_feedback(fedagg.chain(), N)

    with_feedback = two_rounds(whole, (DATA, NUMBERS))[-1]

    plain = two_rounds(careful())[-1]
    assert_close(with_feedback.variables, plain.variables)
    assert_close(with_feedback.memories, plain.memories)


@pytest.mark.deep
def test_a_replica_that_is_killed_or_sends_nan_keeps_what_it_had_under_feedback():
    bits = fedagg.with_error_feedback(fedagg.drive(), N)
    broken = jax.tree.map(lambda x: x.copy(), DATA)
    broken[1][3] = np.nan
    of_replicas = training(bits)
    first = two_rounds(bits, (DATA, NUMBERS))[0]
    weights = jnp.ones(N).at[1].set(0.0)

    output = jit(of_replicas.next)(
        first, ((broken, NUMBERS), NUMBERS), weights, jax.random.key(1)
    )

    assert np.all(np.isfinite(output.value))
    assert output.metrics["error_feedback/count"] == 1.0
    for one in (1, 3):
        rows = jax.tree.map(
            lambda x, one=one: x[one], (output.state.memories, first.memories)
        )
        assert_same(*rows)
    moved = (
        jax.tree.leaves(output.state.memories)[0] != jax.tree.leaves(first.memories)[0]
    )
    assert np.any(moved, axis=1).tolist() == [True, False, True, False, True]


@pytest.mark.deep
@pytest.mark.parametrize("stages", [(), (fedagg.quantization(4, 0),)])
def test_a_mesh_gives_what_one_device_gives(stages):
    across = careful(*stages, sum_over=fedagg.across(mesh_of(5)))

    assert_close(two_rounds(across)[-1], two_rounds(careful(*stages))[-1])
