"""Zeroing and clipping."""

import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests import reference
from tests.helpers import WAYS, assert_close, assert_same, every_way, make_updates

pytestmark = pytest.mark.thorough


ORDERS = [1.0, 2.0, math.inf]


def through(stage: fedagg.Stage, value: Any, weight: float = 2.0) -> Any:
    """What one client sends, and its note."""
    shared = stage.broadcast(stage.init(value))
    return stage.client(shared, fedagg.Update(value, jnp.float32(weight)), None)


def one_client(*entries: float) -> dict[str, jax.Array]:
    """A value of norms that can be read off: a scalar leaf, a vector, an empty leaf."""
    first, *rest = entries
    return {
        "empty": jnp.zeros((2, 0)),
        "first": jnp.float32(first),
        "rest": jnp.asarray(rest, jnp.float32),
    }


shapes = st.lists(
    st.sampled_from([(), (1,), (3, 2), (0,), (2, 0, 3)]), min_size=1, max_size=3
)


@hypothesis.given(shapes=shapes, order=st.sampled_from(ORDERS), seed=st.integers(0, 9))
def test_zeroing_is_the_reference_for_any_shapes(shapes, order, seed):
    template = {
        f"{i}": jax.ShapeDtypeStruct(x, jnp.float32) for i, x in enumerate(shapes)
    }
    updates = make_updates(n=1, seed=seed, template=template)
    (value,) = reference.unstack(updates.value)
    size = reference.norm(value, order)

    for bound in (max(size, 0.1) * 0.99, max(size, 0.1) * 1.01):
        stage = fedagg.zeroing(bound, norm_order=order)
        update, note = through(stage, jax.tree.map(lambda x: x[0], updates.value))

        expected, above = reference.zero(value, bound, order)
        assert_close(update.value, expected)
        assert bool(note.count) == above


@hypothesis.given(
    shapes=shapes,
    seed=st.integers(0, 9),
    relative=st.sampled_from([0.1, 0.9, 1.1, 3.0]),
)
def test_clipping_is_the_reference_for_any_shapes(shapes, seed, relative):
    template = {
        f"{i}": jax.ShapeDtypeStruct(x, jnp.float32) for i, x in enumerate(shapes)
    }
    updates = make_updates(n=1, seed=seed, template=template)
    (value,) = reference.unstack(updates.value)
    bound = max(reference.norm(value), 0.01) * relative

    update, note = through(
        fedagg.clipping(bound), jax.tree.map(lambda x: x[0], updates.value)
    )

    expected, above = reference.clip(value, bound)
    assert_close(update.value, expected)
    assert bool(note.count) == above


@pytest.mark.parametrize("order, size", [(1, 7.0), (2, 5.0), (math.inf, 4.0)])
def test_a_norm_equal_to_the_bound_is_kept_and_one_above_is_not(order, size):
    value = one_client(3.0, 4.0)

    equal, equal_note = through(fedagg.zeroing(size, norm_order=order), value)
    above, above_note = through(fedagg.zeroing(size - 0.001, norm_order=order), value)

    assert_same(equal.value, value)
    assert_same(above.value, one_client(0.0, 0.0))
    assert (equal_note.count, above_note.count) == (0.0, 1.0)
    assert equal.weight == above.weight == 2.0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("entry", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bound", [1e-3, 1e38, math.inf])
def test_zeroing_removes_what_is_not_finite_under_every_bound(order, entry, bound):
    update, note = through(
        fedagg.zeroing(bound, norm_order=order), one_client(1e-4, entry, 1e-4)
    )

    assert_same(update.value, one_client(0.0, 0.0, 0.0))
    assert note.count == 1.0


@pytest.mark.parametrize("entries", [(math.nan, 100.0), (100.0, math.nan)])
def test_zeroing_finds_a_nan_beside_a_large_entry(entries):
    update, note = through(fedagg.zeroing(1e6), one_client(*entries))

    assert_same(update.value, one_client(0.0, 0.0))
    assert note.count == 1.0


def test_zeroing_tells_one_huge_entry_by_its_largest_norm():
    largest, _ = through(fedagg.zeroing(1e31), one_client(1e30, 1.0))
    overflowing, note = through(
        fedagg.zeroing(1e31, norm_order=2.0), one_client(1e30, 1.0)
    )

    assert_same(largest.value, one_client(1e30, 1.0))
    assert_same(overflowing.value, one_client(0.0, 0.0))
    assert note.count == 1.0


def test_a_zeroed_client_keeps_its_weight_unless_told_otherwise():
    value = one_client(5.0, 0.0)

    keeping, _ = through(fedagg.zeroing(1.0), value)
    losing, note = through(fedagg.zeroing(1.0, keep_weight=False), value)
    untouched, _ = through(fedagg.zeroing(5.0, keep_weight=False), value)

    assert (keeping.weight, losing.weight, untouched.weight) == (2.0, 0.0, 2.0)
    assert note.count == 1.0


def test_a_zeroed_client_has_a_norm_of_zero_for_a_clipping_after_it():
    values = {"x": jnp.asarray([[50.0], [0.5], [0.5]])}
    after = {}

    for keep_weight in (True, False):
        aggregator = fedagg.aggregator(
            fedagg.zeroing(10.0, keep_weight=keep_weight),
            fedagg.clipping(fedagg.quantile_bound(0.1, 0.0, 1.0)),
        )
        state = aggregator.init({"x": jnp.zeros(1)})
        after[keep_weight] = aggregator.next(state, values)

    # One of three at most 0.1, against none of two.
    assert_close(after[True].state[1], np.float64(0.1 * math.exp(-1.0 / 3.0)))
    assert_close(after[False].state[1], np.float64(0.1))
    for output in after.values():
        assert output.metrics["zeroing/count"] == 1.0
        assert output.metrics["clipping/count"] == 2.0


def test_zeroing_reports_the_clients_own_norm_to_its_bound():
    bound = fedagg.quantile_bound(1.0, 0.5, 0.1, multiplier=3.0)

    _, note = through(fedagg.zeroing(bound), one_client(0.0, 5.0))

    assert note.bound.below == -0.5


def test_a_norm_within_the_bound_is_not_clipped_by_a_bit():
    value = one_client(3.0, 4.0)

    equal, note = through(fedagg.clipping(5.0), value)
    zero, zero_note = through(fedagg.clipping(5.0), one_client(0.0, 0.0))

    assert_same(equal.value, value)
    assert_same(zero.value, one_client(0.0, 0.0))
    assert note.count == zero_note.count == 0.0


def test_a_norm_above_the_bound_is_clipped_to_it():
    update, note = through(fedagg.clipping(2.5), one_client(3.0, 4.0))

    assert_close(update.value, one_client(1.5, 2.0))
    assert note.count == 1.0
    assert update.weight == 2.0


def test_clipping_alone_does_not_hide_what_is_not_finite():
    nan, nan_note = through(fedagg.clipping(1.0), one_client(math.nan, 1.0))
    infinite, _ = through(fedagg.clipping(1.0), one_client(math.inf, 1.0))

    assert np.isnan(nan.value["first"])
    assert np.isnan(infinite.value["first"])
    assert nan_note.count == 0.0


def test_clipping_scales_a_norm_that_overflows_to_zero():
    update, note = through(fedagg.clipping(1.0), one_client(1e30, 1.0))

    assert_same(update.value, one_client(0.0, 0.0))
    assert note.count == 1.0


def test_norms_of_half_precision_are_taken_in_float32():
    # In bfloat16 the sum of squares would stop at 256, in float16 it would overflow.
    many = {"x": jnp.ones(4096, jnp.bfloat16)}
    large = {"x": jnp.asarray([30000.0, 40000.0], jnp.float16)}

    _, below = through(fedagg.zeroing(63.9, norm_order=2.0), many)
    _, above = through(fedagg.zeroing(64.1, norm_order=2.0), many)
    clipped, _ = through(fedagg.clipping(5.0), large)

    assert (below.count, above.count) == (1.0, 0.0)
    assert_close(clipped.value, {"x": np.asarray([3.0, 4.0])}, rtol=1e-3)


def test_a_value_of_empty_leaves_has_a_norm_of_zero():
    value = {"x": jnp.zeros((0, 3))}

    for stage in (fedagg.zeroing(1e-9), fedagg.clipping(1e-9)):
        update, note = through(stage, value)

        assert_same(update.value, value)
        assert note.count == 0.0


@pytest.mark.parametrize("stage", [fedagg.zeroing, fedagg.clipping])
def test_the_bound_reported_is_the_one_used_this_round(stage):
    aggregator = fedagg.aggregator(
        stage(fedagg.quantile_bound(3.0, 0.5, 0.2, multiplier=2.0), name="own")
    )
    state = aggregator.init(one_client(0.0, 0.0))
    updates = jax.tree.map(lambda x: x[None], one_client(1.0, 1.0))

    first = aggregator.next(state, updates)
    second = aggregator.next(first.state, updates)

    assert set(first.metrics) == {"own/bound", "own/count"}
    assert first.metrics["own/bound"] == 6.0
    assert_close(second.metrics["own/bound"], 2.0 * first.state[0])
    assert second.metrics["own/bound"] < 6.0


@pytest.mark.parametrize("order", [0, 3, -1.0, math.nan, None, "inf"])
def test_another_norm_order_is_refused(order):
    with pytest.raises(ValueError, match="norm_order must be 1, 2 or math.inf, got"):
        fedagg.zeroing(1.0, norm_order=order)


@pytest.mark.parametrize("name", ["zeroing", "clipping"])
@pytest.mark.parametrize("dtype", ["int32", "bool", "uint8"])
def test_a_leaf_that_is_no_float_is_refused_by_its_path(name, dtype):
    stage = {"zeroing": fedagg.zeroing, "clipping": fedagg.clipping}[name](1.0)
    updates = {"a": jnp.ones((3, 2)), "b": [jnp.ones((3, 2), dtype)]}
    path = r"\['b'\]\[0\] has dtype " + dtype

    with pytest.raises(TypeError, match=path) as error:
        aggregator = fedagg.aggregator(stage)
        template = {"a": jnp.zeros(2), "b": [jnp.zeros(2, dtype)]}
        aggregator.next(aggregator.init(template), updates)

    if dtype != "bool":  # which no sum takes either
        assert name in str(error.value)


@every_way
@pytest.mark.parametrize("norm_order", ORDERS)
@pytest.mark.parametrize("entry", [np.nan, np.inf])
def test_one_bad_entry_among_thousands_is_seen(way, norm_order, entry):
    # XLA's maximum over so many entries leaves a NaN out on a CPU.
    updates = {"a": np.full((9, 3000), 1e-6, "f4"), "b": np.zeros((9, 7), "f4")}
    updates["a"][4, 1234] = entry
    stage = fedagg.zeroing(10.0, norm_order=norm_order)
    aggregator = fedagg.aggregator(stage, fedagg.mean(), sum_over=WAYS[way]())

    _, value, metrics = jax.jit(aggregator.next)(aggregator.init(None), updates)

    assert metrics["zeroing/count"] == 1.0
    np.testing.assert_allclose(value["a"], 1e-6 * 8 / 9, rtol=1e-5)
