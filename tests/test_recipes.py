"""Recommended compositions against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests import reference
from tests.helpers import (
    TEMPLATE,
    WAYS,
    assert_close,
    assert_same,
    every_way,
    first_now,
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


@first_now("weighted", [True, False])
@first_now("zeroing", [True, False])
@first_now("clipping", [True, False])
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


LARGE = {
    "large": jax.ShapeDtypeStruct((20_001,), jnp.float32),
    "small": jax.ShapeDtypeStruct((20_000,), jnp.float32),
}


def large_updates() -> fedagg.Update:
    """Norms about 0.4, 2, 80 and 4, a client with an entry of 50, and an absent one."""
    draw = np.random.default_rng(0)
    sizes = np.asarray([0.002, 0.01, 0.4, 0.02, 0.01, math.nan])
    rows = {
        leaf: (draw.normal(size=(6, *x.shape)) * sizes[:, None]).astype(np.float32)
        for leaf, x in LARGE.items()
    }
    rows["small"][4, 7] = 50.0
    weights = jnp.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 0.0])
    return fedagg.Update(jax.tree.map(jnp.asarray, rows), weights)


@every_way
def test_the_compression_aggregator_is_the_robust_one_but_for_its_rounding(way):
    updates = large_updates()
    sum_over = WAYS[way]()

    coded = first_round_compiled(
        fedagg.compression_aggregator(sum_over=sum_over), *updates, jax.random.key(1)
    )
    plain = first_round_compiled(
        fedagg.robust_aggregator(sum_over=sum_over), *updates, jax.random.key(1)
    )

    assert set(coded.metrics) == {
        *("zeroing/bound", "zeroing/count", "clipping/bound", "clipping/count"),
        "mean/weight",
    }
    assert_close(coded.metrics, plain.metrics)
    assert_close(coded.state[:3], plain.state)
    assert_close(coded.value["small"], plain.value["small"])
    # A step is a 255th of the range of what is sent: the bounded value times weight.
    steps = 0.0
    for value, weight in zip(
        reference.unstack(updates.value), np.asarray(updates.weight), strict=True
    ):
        if weight > 0.0:
            kept, _ = reference.zero(value, 21.0)
            bounded, _ = reference.clip(kept, 1.0)
            steps += np.ptp(bounded["large"] * weight) / 255.0
    off = np.abs(coded.value["large"] - plain.value["large"])
    bound = steps / np.sum(np.asarray(updates.weight))
    assert 0.3 * bound < np.max(off) < bound * (1.0 + 1e-5)


@pytest.mark.deep
def test_the_compression_aggregator_has_no_bias():
    aggregator = fedagg.compression_aggregator()
    updates, n = large_updates(), 40
    next_round = jax.jit(aggregator.next)
    state = aggregator.init(LARGE)
    plain = first_round_compiled(fedagg.robust_aggregator(), *updates)

    off = np.zeros(20_001)
    squares = 0.0
    for seed in range(n):
        value = next_round(state, *updates, jax.random.key(seed)).value["large"]
        off += np.asarray(value, np.float64) - np.asarray(plain.value["large"])
        squares += np.sum((value - plain.value["large"]) ** 2) / 20_001

    # Errors of independent rounds average out: to 1 / n of the square of one.
    np.testing.assert_allclose(np.mean((off / n) ** 2), squares / n / n, rtol=0.05)


@first_now("weighted", [True, False])
@first_now("zeroing", [True, False])
@first_now("clipping", [True, False])
def test_each_part_of_the_compression_aggregator_can_be_left_out(
    zeroing, clipping, weighted
):
    parts = {"zeroing": zeroing, "clipping": clipping, "weighted": weighted}
    updates = fedagg.Update(
        {"x": jnp.asarray([[30.0], [0.5]])}, jnp.asarray([1.0, 3.0])
    )

    coded = first_round_compiled(
        fedagg.compression_aggregator(**parts), *updates, jax.random.key(2)
    )
    plain = first_round_compiled(fedagg.robust_aggregator(**parts), *updates)

    # A tensor of one entry is not coded.
    assert_close(coded.value, plain.value)
    assert_close(coded.metrics, plain.metrics)


def test_the_compression_aggregator_needs_a_key():
    with pytest.raises(ValueError, match="quantization draws .* key=None"):
        first_round(fedagg.compression_aggregator(), *make_updates())


def test_a_message_of_the_compression_aggregators_takes_a_byte_an_entry():
    stages = (
        fedagg.zeroing(fedagg.quantile_bound(10.0, 0.98, 1.0)),
        fedagg.clipping(fedagg.quantile_bound(1.0, 0.8, 0.2)),
        fedagg.mean(),
        fedagg.quantization(),
    )

    bits = fedagg.message_bits(fedagg.chain(*stages), LARGE)

    # Beside the notes of three stages.
    values = 8 * (20_001 + 8 + 4 * 20_000)
    assert values < bits <= values + 32 * 8


@first_now("bound", [0.1, fedagg.quantile_bound(0.1, 0.5, 0.2)])
def test_a_recipe_takes_a_bound_where_it_bounds(bound):
    updates = make_updates()
    recipe = fedagg.robust_aggregator(zeroing=False, clipping=bound)
    by_hand = fedagg.aggregator(fedagg.clipping(bound), fedagg.mean())
    zeroing = fedagg.dp_aggregator(0.5, 20.0, zeroing=3.0)

    got = first_round(recipe, *updates)

    assert_same(got, first_round(by_hand, *updates))
    assert got.metrics["clipping/bound"] == jnp.float32(0.1)
    assert first_round(zeroing, *updates, jax.random.key(0)).metrics[
        "zeroing/bound"
    ] == jnp.float32(3.0)


@pytest.mark.parametrize(
    "make",
    [
        fedagg.robust_aggregator,
        fedagg.compression_aggregator,
        fedagg.secure_aggregator,
        lambda **x: fedagg.dp_aggregator(0.5, 20.0, zeroing=x["clipping"]),
        lambda **x: fedagg.distributed_dp_aggregator(0.5, 20, zeroing=x["clipping"]),
    ],
)
def test_a_recipe_refuses_what_is_no_choice(make):
    for other in ("yes", None, [1.0]):
        with pytest.raises(TypeError, match="expected True, False, a number or a Boun"):
            make(clipping=other)
    for other in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="bound must be positive"):
            make(clipping=other)
