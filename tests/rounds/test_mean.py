"""Sums and means."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests import reference
from tests.helpers import (
    TEMPLATE,
    assert_close,
    assert_same,
    first_round,
    make_updates,
    with_absent,
)

mean = fedagg.aggregator(fedagg.mean())
unweighted_mean = fedagg.aggregator(fedagg.mean(weighted=False))
plain_sum = fedagg.aggregator()


@hypothesis.given(
    n=st.integers(2, 9),
    shape=st.sampled_from([(), (1,), (3, 2), (0,), (2, 0)]),
    weighted=st.booleans(),
    size=st.integers(1, 5),
)
@pytest.mark.deep
def test_the_mean_is_the_reference_for_any_shapes_and_splits(n, shape, weighted, size):
    template = {"x": jax.ShapeDtypeStruct(shape, jnp.float32)}
    updates = with_absent(make_updates(n, n, template), math.nan, [1])
    aggregator = fedagg.aggregator(
        fedagg.mean(weighted=weighted), sum_over=fedagg.in_chunks(size)
    )

    output = first_round(aggregator, *updates)

    weights = np.asarray(updates.weight)
    counted = weights if weighted else np.sign(weights)
    values = reference.unstack(updates.value)
    assert_close(output.value, reference.weighted_mean(values, counted))
    assert output.metrics == {"mean/weight": counted.sum()}


@pytest.mark.deep
def test_a_chain_without_stages_is_a_plain_sum():
    updates = with_absent(make_updates(), math.inf, [2, 7])

    output = plain_sum.next(plain_sum.init(TEMPLATE), *updates)

    values = reference.unstack(updates.value)
    assert_close(output.value, reference.total(values, np.asarray(updates.weight)))
    assert output.metrics == {}
    assert output.state == ()


def test_weights_of_ones_are_the_default():
    value = make_updates().value

    given = mean.next(mean.init(TEMPLATE), value, jnp.ones(11))
    default = mean.next(mean.init(TEMPLATE), value)

    assert_same(given, default)


@pytest.mark.parametrize(
    "weights",
    [
        np.asarray([3, 0, 7]),
        np.asarray([3, 0, 7], np.uint8),
        np.asarray([3.0, 0.0, 7.0], np.float16),
        jnp.asarray([3, 0, 7]),
        [3, 0, 7],
    ],
    ids=["int64", "uint8", "float16", "int32", "list"],
)
def test_weights_may_be_of_any_real_dtype(weights):
    value = {"x": jnp.asarray([1.0, math.nan, 2.0])}

    output = first_round(mean, value, weights)

    assert_close(output.value, {"x": np.float64(1.7)})
    assert output.metrics["mean/weight"] == 10.0


def test_weights_may_be_bool():
    value = {"x": jnp.asarray([1.0, math.nan, 2.0])}

    output = first_round(mean, value, jnp.asarray([True, False, True]))

    assert_close(output.value, {"x": np.float64(1.5)})


@pytest.mark.parametrize("aggregator", [mean, unweighted_mean], ids=["w", "u"])
def test_a_mean_does_not_hide_what_a_present_client_holds(aggregator):
    value = {"x": jnp.asarray([[1.0, 1.0], [math.nan, 1.0], [math.inf, 1.0]])}

    nan = first_round(aggregator, value, jnp.asarray([1.0, 1.0, 0.0])).value["x"]
    infinite = first_round(aggregator, value, jnp.asarray([1.0, 0.0, 1.0])).value["x"]

    assert np.isnan(nan[0]) and nan[1] == 1.0
    assert infinite[0] == math.inf and infinite[1] == 1.0


def test_one_client_is_its_own_mean_whatever_its_weight():
    value = {"x": jnp.asarray([[0.3, -7.0]])}

    output = first_round(mean, value, jnp.asarray([8.0]))

    assert_same(output.value, {"x": value["x"][0]})


@pytest.mark.parametrize("weight", [1e-30, 1e30])
def test_tiny_and_huge_weights_cancel(weight):
    value = {"x": jnp.asarray([1.0, 2.0])}

    output = first_round(mean, value, jnp.asarray([weight, weight]))

    assert_close(output.value, {"x": np.float64(1.5)})


@pytest.mark.parametrize("size", [None, 1, 100])
@pytest.mark.deep
def test_sums_of_half_precision_are_wide(size):
    # Added in bfloat16, 4096 ones are 256, and the sum of weights as well.
    value = {"x": jnp.ones((4096, 2), jnp.bfloat16)}
    sum_over = None if size is None else fedagg.in_chunks(size)

    total = first_round(fedagg.aggregator(sum_over=sum_over), value)
    average = first_round(fedagg.aggregator(fedagg.mean(), sum_over=sum_over), value)

    assert_same(total.value, {"x": jnp.full(2, 4096.0, jnp.bfloat16)})
    assert_same(average.value, {"x": jnp.ones(2, jnp.bfloat16)})
    assert average.metrics["mean/weight"] == 4096.0


def test_a_weighted_mean_of_float16_does_not_overflow_on_its_way():
    value = {"x": jnp.asarray([60000.0, 50000.0], jnp.float16)}

    output = first_round(mean, value, jnp.asarray([1000.0, 1000.0]))

    assert_close(output.value, {"x": np.float64(55000.0)}, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32"])
def test_integers_sum_in_their_own_dtype(dtype):
    value = {"k": jnp.asarray([[100, 1], [27, 2], [99, 3]], dtype)}

    output = first_round(plain_sum, value, jnp.asarray([1.0, 1.0, 0.0]))

    assert_same(output.value, {"k": jnp.asarray([127, 3], dtype)})


def test_integers_sum_to_the_bit_where_float32_would_round():
    value = {"k": jnp.asarray([2**24, 1, 1], jnp.int32)}

    output = first_round(plain_sum, value)

    assert output.value["k"] == 2**24 + 2


def test_float64_stays_float64():
    with jax.enable_x64(True):
        value = {"x": jnp.asarray([1.0, 1e-12], jnp.float64)}

        output = first_round(plain_sum, value)

        assert output.value["x"].dtype == jnp.float64
        assert output.value["x"] == 1.0 + 1e-12


@pytest.mark.parametrize(
    "bounding",
    [fedagg.clipping(4.0), fedagg.zeroing(4.0), fedagg.local_gaussian_noise(1.0, 4.0)],
    ids=str,
)
def test_what_bounds_values_does_not_come_after_what_weighs_them(bounding):
    named = bounding.traits.name

    with pytest.raises(ValueError, match=f"Put {named} before mean"):
        fedagg.aggregator(fedagg.mean(), bounding)
    fedagg.aggregator(fedagg.mean(weighted=False), bounding)  # bounds what it says


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_a_mean_refuses_integers_by_their_path(weighted, dtype):
    updates = {"a": jnp.ones(3), "b": jnp.ones((3, 2), dtype)}
    aggregator = fedagg.aggregator(fedagg.mean(weighted=weighted))

    with pytest.raises(TypeError, match=rf"mean takes .* \['b'\] has dtype {dtype}"):
        first_round(aggregator, updates)


@pytest.mark.parametrize("dtype", ["bool", "complex64"])
def test_a_sum_refuses_what_is_no_number_by_its_path(dtype):
    updates = {"a": jnp.ones(3), "b": jnp.ones((3, 2), dtype)}

    with pytest.raises(TypeError, match=rf"\['b'\] has dtype {dtype}"):
        first_round(plain_sum, updates)
