"""The coordinate-wise median."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests import reference
from tests.helpers import TEMPLATE, assert_close, assert_same, make_updates, with_absent

median = fedagg.combining(fedagg.median())


@hypothesis.given(
    n=st.integers(2, 7), shape=st.sampled_from([(), (3, 2), (0,)]), absent=st.booleans()
)
@pytest.mark.deep
def test_the_median_is_the_reference_for_any_shapes(n, shape, absent):
    template = {"x": jax.ShapeDtypeStruct(shape, jnp.float32)}
    updates = make_updates(n, n, template)
    updates = with_absent(updates, math.nan, [0]) if absent else updates

    output = median.next(median.init(template), *updates)

    values = reference.unstack(updates.value)
    weights = np.asarray(updates.weight)
    assert_close(output.value, reference.median(values, weights))


@pytest.mark.parametrize(
    "entries, expected",
    [
        ([5.0], 5.0),
        ([1.0, 2.0], 1.5),
        ([3.0, 1.0, 2.0], 2.0),
        ([4.0, 1.0, 3.0, 2.0], 2.5),
        ([1.0, 1.0, 1.0, 9.0], 1.0),
        ([math.nan, 1.0, 2.0], 1.5),
        ([math.inf, 1.0, 2.0, -math.inf], 1.5),
        ([math.nan, math.inf], 0.0),
        ([-3.0, -1.0, -2.0], -2.0),
        ([3e38, 3e38], 3e38),
        ([-1e30, 1e30, 7.0], 7.0),
    ],
)
def test_a_median_by_hand(entries, expected):
    output = median.next(median.init(jnp.zeros(())), jnp.asarray(entries))

    np.testing.assert_allclose(output.value, np.float32(expected), rtol=1e-6)


@pytest.mark.deep
def test_each_coordinate_counts_its_own_entries():
    value = jnp.asarray([[1.0, math.nan], [2.0, 5.0], [9.0, 7.0]])

    output = median.next(median.init(jnp.zeros(2)), value)

    assert_close(output.value, np.asarray([2.0, 6.0]))


@pytest.mark.deep
def test_every_present_client_counts_the_same():
    value = jnp.asarray([1.0, 2.0, 3.0, 100.0])
    weights = jnp.asarray([1.0, 1.0, 50.0, 0.0])

    output = median.next(median.init(jnp.zeros(())), value, weights)

    assert output.value == 2.0


def test_a_minority_cannot_leave_the_range_of_the_others():
    updates = make_updates()
    honest = {k: np.asarray(x[5:]) for k, x in updates.value.items()}

    for lie in (-1e30, 1e30, math.nan, math.inf):
        lying = jax.tree.map(lambda x, lie=lie: x.at[:5].set(lie), updates.value)
        value = median.next(median.init(TEMPLATE), lying).value

        for leaf, x in value.items():
            assert np.all((honest[leaf].min(0) <= x) & (x <= honest[leaf].max(0)))


def test_stages_stand_before_the_rule_and_keep_their_state():
    bound = fedagg.quantile_bound(1.0, 0.5, 0.5)
    aggregator = fedagg.combining(fedagg.median(), fedagg.clipping(bound))
    value = jnp.asarray([[0.5, 0.0], [0.0, 3.0], [0.0, 8.0]])

    output = aggregator.next(aggregator.init(jnp.zeros(2)), value)

    assert_close(output.value, np.asarray([0.0, 1.0]))
    assert output.metrics["clipping/count"] == 2.0
    expected = reference.quantile_update(
        1.0, [0.5, 3.0, 8.0], reference.Estimate(0.5, 0.5)
    )
    assert_close(output.state[0][0], np.float64(expected))


def test_a_client_that_a_stage_makes_absent_is_absent_for_the_rule():
    value = jnp.asarray([1.0, 2.0, 3.0, 50.0])
    keeping = fedagg.combining(fedagg.median(), fedagg.zeroing(10.0))
    losing = fedagg.combining(fedagg.median(), fedagg.zeroing(10.0, keep_weight=False))

    kept = keeping.next(keeping.init(jnp.zeros(())), value)
    lost = losing.next(losing.init(jnp.zeros(())), value)

    assert (kept.value, lost.value) == (1.5, 2.0)
    assert kept.metrics["zeroing/count"] == lost.metrics["zeroing/count"] == 1.0


def test_half_precision_comes_back_and_does_not_overflow():
    value = jnp.asarray([60000.0, 65000.0], jnp.float16)

    output = median.next(median.init(jnp.zeros((), jnp.float16)), value)

    assert_same(output.value, jnp.asarray(62496.0, jnp.float16))


def test_a_mean_with_a_rule_is_refused():
    with pytest.raises(ValueError, match="mean multiplies by clients' weights, or"):
        fedagg.combining(fedagg.median(), fedagg.mean())


@pytest.mark.parametrize("rule", [fedagg.median, "median", fedagg.mean()])
def test_another_type_of_rule_is_refused(rule):
    with pytest.raises(TypeError, match="rule: expected a Rule, as .*, got"):
        fedagg.combining(rule)


def test_a_median_refuses_integers_by_their_path():
    updates = {"a": jnp.ones(3), "b": jnp.ones((3, 2), jnp.int32)}

    with pytest.raises(TypeError, match=r"median takes .* \['b'\] has dtype int32"):
        median.next(median.init({"a": 0.0, "b": jnp.zeros(2, jnp.int32)}), updates)
