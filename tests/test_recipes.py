"""Recommended compositions against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests import reference
from tests.rounds import (
    TEMPLATE,
    WAYS,
    assert_close,
    assert_same,
    every_way,
    first_round,
    first_round_compiled,
    make_updates,
    with_absent,
)


@every_way
def test_rounds_of_the_robust_aggregator_are_the_reference(way):
    aggregator = fedagg.robust_aggregator(sum_over=WAYS[way]())
    next_round = jax.jit(aggregator.next)
    state, estimates, seen = aggregator.init(TEMPLATE), (10.0, 1.0), []

    for i in range(4):
        updates = with_absent(make_updates(seed=i), math.nan, [i])
        state, value, metrics = next_round(state, *updates)

        values = reference.unstack(updates.value)
        expected = reference.robust_round(
            *estimates, values, np.asarray(updates.weight)
        )
        seen.append((expected.zeroed > 0, expected.clipped > 0))
        assert_close(value, expected.value)
        assert metrics["zeroing/count"] == expected.zeroed
        assert metrics["clipping/count"] == expected.clipped
        assert metrics["mean/weight"] == expected.weight
        assert_close(metrics["zeroing/bound"], np.float64(2.0 * estimates[0] + 1.0))
        assert_close(metrics["clipping/bound"], np.float64(estimates[1]))
        estimates = expected.zeroing_estimate, expected.clipping_estimate
        assert_close(state[0], np.float64(estimates[0]))
        assert_close(state[1], np.float64(estimates[1]))
    assert np.any(seen, axis=0).all()


def broken_cohort() -> fedagg.Update:
    """Two good clients, of norms 0.5 and 5, among one of every kind of bad one."""
    nan = [math.nan, 0.1, 0.1]
    rows = [
        *([0.3, 0.4, 0.0], nan, [0.0, 0.0, 0.0], [9.0, 9.0, 9.0]),
        *([1e30, 0.0, 0.0], [0.0, 3.0, 4.0], nan, [math.inf, 0.0, 0.0]),
    ]
    weights = [1.0, 2.0, 3.0, 0.0, 4.0, 5.0, 0.0, 6.0]
    stacked = jnp.asarray(rows, jnp.float32)
    value = {"b": stacked[:, 0], "w": stacked[:, 1:]}
    return fedagg.Update(value, jnp.asarray(weights, jnp.float32))


@every_way
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_few_broken_clients_do_not_spoil_the_robust_aggregator(way, dtype):
    aggregator = fedagg.robust_aggregator(sum_over=WAYS[way]())
    updates = broken_cohort()
    value = jax.tree.map(lambda x: x.astype(dtype), updates.value)

    output = first_round_compiled(aggregator, value, updates.weight)

    # Kept: weight 1 as it is, weight 5 clipped to a norm of one; 21 is all the weight.
    expected = {
        "b": np.float64(0.3 / 21.0),
        "w": np.asarray([0.4 + 5.0 * 0.6, 5.0 * 0.8]) / 21.0,
    }
    rtol = 1e-5 if dtype == "float32" else 1e-2
    assert_close(output.value, expected, rtol)
    assert {k: float(x) for k, x in output.metrics.items()} == {
        "zeroing/bound": 21.0,
        "zeroing/count": 3.0,
        "clipping/bound": 1.0,
        "clipping/count": 1.0,
        "mean/weight": 21.0,
    }
    # Of six present clients, three are at most 10; three have a norm of zero and one
    # of a half.
    states = [10.0 * 10 ** (0.98 - 3 / 6), math.exp(0.2 * (0.8 - 5 / 6))]
    assert_close(list(output.state[:2]), [np.float64(x) for x in states])


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("zeroing", [True, False])
@pytest.mark.parametrize("clipping", [True, False])
def test_each_part_of_the_robust_aggregator_can_be_left_out(
    zeroing, clipping, weighted
):
    aggregator = fedagg.robust_aggregator(
        zeroing=zeroing, clipping=clipping, weighted=weighted
    )
    updates = fedagg.Update(
        {"x": jnp.asarray([[30.0], [0.5]])}, jnp.asarray([1.0, 3.0])
    )

    output = first_round(aggregator, *updates)

    first = 0.0 if zeroing else (1.0 if clipping else 30.0)
    shares = [0.25, 0.75] if weighted else [0.5, 0.5]
    assert_close(output.value, {"x": np.asarray([first * shares[0] + 0.5 * shares[1]])})
    names = {"mean": True, "zeroing": zeroing, "clipping": clipping}
    used = {name for name, is_used in names.items() if is_used}
    assert {x.split("/")[0] for x in output.metrics} == used
    assert output.metrics["mean/weight"] == (4.0 if weighted else 2.0)


def test_a_cohort_of_broken_clients_alone_gives_zeros():
    updates = broken_cohort()
    weights = jnp.where(jnp.abs(updates.value["b"]) < 1.0, 0.0, updates.weight)

    output = first_round(fedagg.robust_aggregator(), updates.value, weights)

    assert_same(output.value, {"b": jnp.float32(0.0), "w": jnp.zeros(2)})
    assert output.metrics["zeroing/count"] == 3.0


def test_the_bound_follows_clients_of_any_size_within_a_few_rounds():
    aggregator = fedagg.robust_aggregator(clipping=False)
    value = {"x": jnp.asarray([[1e6], [2e6], [3e6]])}
    next_round = jax.jit(aggregator.next)
    state = aggregator.init({"x": jnp.zeros(1)})

    for _ in range(8):
        state, mean, metrics = next_round(state, value)

    assert metrics["zeroing/count"] == 0.0
    assert_close(mean, {"x": np.asarray([2e6])})
