"""Steps that all clients share, and their sum in integers."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import (
    WAYS,
    assert_close,
    assert_same,
    every_way,
    first_now,
    first_round,
    first_round_compiled,
)

both = pytest.mark.parametrize("stochastic", [True, False])


def one_through(
    stage: fedagg.Stage, value: Any, key: jax.Array | None = None
) -> tuple[Any, Any]:
    """What one client sends, and its note."""
    shared = stage.broadcast(stage.init(value))
    update, note = stage.client(shared, fedagg.Update(value, jnp.float32(1.0)), key)
    return update.value, note


def sum_of(
    step: float, *rows: float, stochastic: bool = False, **options: Any
) -> fedagg.Output:
    """A round of clients of one entry each."""
    aggregator = fedagg.aggregator(
        fedagg.discretization(step, stochastic=stochastic), **options
    )
    values = {"x": jnp.asarray(rows, jnp.float32)[:, None]}
    return first_round_compiled(aggregator, values, None, jax.random.key(0))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_nearest_step_is_that_of_numpy_with_halves_to_the_even():
    halves = np.arange(-20, 21, dtype=np.float32) * 0.125
    x = np.concatenate([halves, normal(500)])

    sent, _ = one_through(
        fedagg.discretization(0.25, stochastic=False), {"x": jnp.asarray(x)}
    )

    expected = np.round(x.astype(np.float64) / 0.25).astype(np.int32)
    assert_same(sent["x"], jnp.asarray(expected))


def test_random_rounding_is_unbiased_and_of_the_variance_of_a_coin():
    step, n = 0.3, 20_000
    x = normal(40, seed=1)
    stage = fedagg.discretization(step, stochastic=True)
    keys = jax.random.split(jax.random.key(2), n)

    sent = jax.jit(jax.vmap(lambda key: one_through(stage, jnp.asarray(x), key)[0]))(
        keys
    )

    got = np.asarray(sent, np.float64) * step
    fraction = np.mod(x.astype(np.float64) / step, 1.0)
    deviation = step * np.sqrt(fraction * (1.0 - fraction))
    # Chances are multiples of 2**-16.
    off = np.abs(np.mean(got, axis=0) - x)
    assert np.all(off <= 5.0 * deviation / math.sqrt(n) + step * 2.0**-16)
    np.testing.assert_allclose(np.std(got, axis=0), deviation, atol=0.02 * step)
    assert np.all(np.abs(got - x) < step)


@both
def test_whole_numbers_of_steps_are_exact(stochastic):
    steps = np.asarray([0, 1, -1, 7, -1000, 2**20, -(2**24)], np.int32)
    stage = fedagg.discretization(0.5, stochastic=stochastic)

    sent, note = one_through(
        stage, {"x": jnp.asarray(0.5 * steps, jnp.float32)}, jax.random.key(3)
    )

    assert_same(sent["x"], jnp.asarray(steps))
    assert note.count == 0.0


@first_now("step", [0.01, 0.25, 3.0])
@both
def test_the_error_of_a_mean_is_below_a_step_or_half_of_one(step, stochastic):
    x, weights = normal(6, 200, seed=4), np.asarray([1, 2, 3, 0, 5, 6], np.float32)
    aggregator = fedagg.aggregator(
        fedagg.mean(), fedagg.discretization(step, stochastic=stochastic)
    )

    output = first_round_compiled(
        aggregator, {"x": jnp.asarray(x)}, jnp.asarray(weights), jax.random.key(5)
    )

    expected = weights.astype(np.float64) @ x / weights.sum()
    bound = 5 * step / weights.sum() * (1.0 if stochastic else 0.5)
    # Beside it, float32's rounding.
    assert np.max(np.abs(output.value["x"] - expected)) < bound + 1e-5
    assert_close(output.metrics["mean/weight"], np.float64(weights.sum()))
    assert output.metrics["discretization/count"] == 0.0


def test_a_sum_is_exact_in_any_order():
    # In float32, the small ones would be lost beside the large ones.
    n, draw = 50, np.random.default_rng(6)
    steps = draw.integers(-(2**22), 2**22, (n, 9)) * draw.choice([0, 1], (n, 9))
    steps += draw.integers(-3, 4, (n, 9))
    aggregator = fedagg.aggregator(fedagg.discretization(0.5, stochastic=False))
    next_round = jax.jit(aggregator.next)
    expected = (0.5 * steps.sum(axis=0)).astype(np.float32)

    for seed in range(4):
        order = np.random.default_rng(seed).permutation(n)
        values = jnp.asarray(0.5 * steps[order], jnp.float32)

        assert_same(next_round(((),), values).value, jnp.asarray(expected))


@every_way
def test_a_random_sum_is_the_same_bits_in_every_way(way):
    values = {"x": jnp.asarray(1000.0 * normal(11, 30, seed=7))}
    values["x"] = values["x"].at[3, 4].set(jnp.nan)
    weights = jnp.asarray([1.0] * 10 + [0.0])
    stage = fedagg.discretization(0.001, stochastic=True)

    got, expected = (
        first_round_compiled(
            fedagg.aggregator(stage, sum_over=WAYS[x]()),
            values,
            weights,
            jax.random.key(8),
        )
        for x in (way, "at_once")
    )

    assert_same(got, expected)
    assert got.metrics["discretization/count"] == 1.0


@pytest.mark.deep
def test_what_is_sent_are_integers_in_the_structure_of_the_value():
    value = {"x": jnp.asarray(normal(3, 2)), "y": (jnp.float32(2.0), jnp.zeros((0, 2)))}

    sent, _ = one_through(
        fedagg.discretization(0.1, stochastic=True), value, jax.random.key(9)
    )

    assert jax.tree.structure(sent) == jax.tree.structure(value)
    for a, b in zip(jax.tree.leaves(sent), jax.tree.leaves(value), strict=True):
        assert (a.dtype, a.shape) == (jnp.int32, b.shape)


@both
@first_now("bad", [math.nan, math.inf, -math.inf, 2.0**30, -1e30])
def test_a_client_that_int32_cannot_hold_is_zero_as_a_whole_and_counted(
    bad, stochastic
):
    values = {
        "a": jnp.asarray([[1.0, bad], [2.0, 3.0], [-4.0, 1.0]]),
        "b": jnp.asarray([5.0, 6.0, 7.0]),
    }
    stage = fedagg.discretization(1.0, stochastic=stochastic, name="own")

    output = first_round_compiled(
        fedagg.aggregator(fedagg.mean(weighted=False), stage),
        values,
        None,
        jax.random.key(10),
    )

    # It keeps its weight in the mean.
    expected = {"a": np.asarray([-2.0, 4.0]) / 3.0, "b": np.asarray(13.0 / 3.0)}
    assert_close(output.value, expected)
    assert output.metrics == {"own/count": 1.0, "mean/weight": 3.0}


def test_one_nan_among_thousands_is_seen():
    # XLA's maximum over so many entries leaves a NaN out on a CPU.
    x = np.ones((3, 30_000), np.float32)
    x[1, 777] = math.nan
    aggregator = fedagg.aggregator(fedagg.discretization(1.0, stochastic=False))

    output = first_round_compiled(aggregator, {"x": jnp.asarray(x)})

    assert_same(output.value["x"], jnp.full(30_000, 2.0))
    assert output.metrics["discretization/count"] == 1.0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_sum_that_may_have_wrapped_around_is_nan(sign):
    half, most = 2.0**29, 2.0**30 - 64.0  # the largest float32 below 2**30

    within = sum_of(1.0, sign * half, sign * (half - 1000.0))
    at = sum_of(1.0, sign * half, sign * half)
    wrapped = sum_of(1.0, *[sign * most] * 3)
    alone = sum_of(1.0, sign * most)

    assert within.value["x"] == sign * (2.0 * half - 1000.0)
    assert alone.value["x"] == sign * most
    assert np.isnan(at.value["x"]) and np.isnan(wrapped.value["x"])
    assert wrapped.metrics["discretization/count"] == 0.0


def test_small_clients_beside_a_large_one_cannot_wrap_around_unseen():
    # Each is lost when sizes are added in float32, one by one.
    small = [31.0] * 40
    large = [2.0**30 - 64.0] * 2

    output = sum_of(1.0, *large, *small, sum_over=fedagg.in_chunks(1))
    single = sum_of(1.0, large[0], *small, sum_over=fedagg.in_chunks(1))

    assert np.isnan(output.value["x"])
    exact = large[0] + sum(small)
    assert np.isnan(single.value["x"]) or single.value["x"] == np.float32(exact)


def test_clients_that_cancel_are_nan_where_their_sizes_add_up():
    # In another order of adding, the same clients would wrap around and back.
    output = sum_of(1.0, 2.0**29, -(2.0**29), 5.0)

    assert np.isnan(output.value["x"])


@both
@pytest.mark.deep
def test_zeros_and_nobody_are_zero(stochastic):
    stage = fedagg.discretization(0.1, stochastic=stochastic)
    aggregator = fedagg.aggregator(stage)
    zeros = {"x": jnp.zeros((2, 3))}

    some = first_round(aggregator, zeros, None, jax.random.key(11))
    nobody = first_round(
        aggregator, {"x": jnp.ones((2, 3))}, jnp.zeros(2), jax.random.key(11)
    )

    for output in (some, nobody):
        assert_same(output.value["x"], jnp.zeros(3))
        assert output.metrics == {"discretization/count": 0.0}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_summed_in_integers(dtype):
    # 4096 ones stall at 256 in bfloat16, and at 2048 in float16.
    aggregator = fedagg.aggregator(fedagg.discretization(0.5, stochastic=False))

    output = first_round_compiled(aggregator, {"x": jnp.ones((4096, 1), dtype)})

    assert_same(output.value["x"], jnp.full(1, 4096.0, dtype))


def test_draws_are_those_of_the_key_and_apart_for_clients_and_tensors():
    x = jnp.full(200, 0.5)
    stage = fedagg.discretization(1.0, stochastic=True)
    one = jax.jit(functools.partial(one_through, stage))

    first, again, other = (
        one({"a": x, "b": x}, jax.random.key(i))[0] for i in (12, 12, 13)
    )

    assert_same(first, again)
    for a, b in [(first["a"], other["a"]), (first["a"], first["b"])]:
        assert 50 < np.sum(a != b) < 150  # a hundred, with a deviation of seven


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_a_leaf_of_integers_is_refused_by_its_path(dtype):
    stage = fedagg.discretization(1.0, stochastic=False, name="own")

    with pytest.raises(TypeError, match=rf"own .* \['b'\]\[0\] has dtype {dtype}"):
        one_through(stage, {"a": jnp.ones(3), "b": [jnp.ones(3, dtype)]})


def test_a_missing_key_is_an_error_where_it_draws_and_only_there():
    value = {"x": jnp.ones(3)}

    one_through(fedagg.discretization(1.0, stochastic=False), value)
    with pytest.raises(ValueError, match="^own draws .* key=None"):
        one_through(fedagg.discretization(1.0, stochastic=True, name="own"), value)


@pytest.mark.parametrize(
    "step_size", [0.0, -1.0, math.nan, math.inf, 1e-40, 1e-50, 1e39]
)
def test_a_step_that_is_not_positive_and_finite_in_float32_is_refused(step_size):
    with pytest.raises(ValueError, match="step_size must be positive and finite"):
        fedagg.discretization(step_size, stochastic=False)
