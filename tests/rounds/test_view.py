"""What the server sees, for messages of every kind."""

import jax.numpy as jnp
import pytest

import fedagg

TEMPLATE = {"w": jnp.zeros((300, 100)), "b": jnp.zeros(3)}


def how(aggregator) -> dict[str, str]:
    return {x.part: x.how for x in fedagg.server_view(aggregator, TEMPLATE).parts}


@pytest.mark.parametrize("zeroing", [True, False])
@pytest.mark.parametrize("clipping", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_of_the_secure_recipe_nothing_is_in_the_clear(zeroing, clipping, weighted):
    recipe = fedagg.secure_aggregator(
        zeroing=zeroing, clipping=clipping, weighted=weighted
    )

    seen = how(recipe)

    assert set(seen.values()) == {"secure sum modulo 2**32"}
    assert {"value['w']", "value['b']"} <= set(seen)
    notes = 3 * zeroing + 3 * clipping + 1 + 4 + 2  # bounds and counts, weight, values
    assert len(seen) == 2 + notes


@pytest.mark.parametrize("mechanism", ["skellam", "discrete_gaussian"])
@pytest.mark.parametrize("zeroing", [True, False])
def test_of_the_distributed_recipe_nothing_is_in_the_clear(mechanism, zeroing):
    recipe = fedagg.distributed_dp_aggregator(
        1.0, 50, 18, zeroing=zeroing, mechanism=mechanism
    )

    seen = how(recipe)

    # Values and the count with noise, zeroing's count and quantile, and who is there.
    assert set(seen.values()) == {"secure sum modulo 2**18"}
    assert {"value.vector", "value.count"} <= set(seen)
    assert len(seen) == 2 + 3 * zeroing + 1 + 2
    parts = fedagg.server_view(recipe, TEMPLATE).parts
    assert {x.part for x in parts if x.noised} == {
        "value.vector",
        "value.count",
    }


def test_of_the_robust_recipe_all_are_plain_sums():
    assert set(how(fedagg.robust_aggregator()).values()) == {"plain sum"}


def test_what_is_decoded_is_in_the_clear():
    seen = how(fedagg.compression_aggregator())

    assert seen["value['w'].packed[0]"] == "in the clear"
    assert seen["value['w'].low"] == "in the clear"
    assert seen["value['b']"] == "plain sum"


def test_what_a_rule_combines_is_in_the_clear_and_notes_are_not():
    seen = how(fedagg.combining(fedagg.median(), fedagg.clipping(1.0)))

    assert seen["value['w']"] == "in the clear"
    assert seen["note[0].count"] == "plain sum"


def test_what_a_stage_outside_of_the_secure_sum_notes_is_a_plain_sum():
    hidden = fedagg.secure_sum(fedagg.mean(), 1.0, largest_cohort=9, largest_weight=9.0)

    seen = how(fedagg.aggregator(fedagg.zeroing(1.0), hidden))

    assert seen["value['w']"] == "secure sum modulo 2**32"
    assert seen["note[0].count"] == "plain sum"
    assert seen["note[1].present"] == "secure sum modulo 2**32"


PRIVATE = {
    "fixed": fedagg.gaussian_noise(1.0, 1.0, 10.0),
    "weighted": fedagg.gaussian_noise(1.0, 1.0, 10.0, largest_weight=3.0),
    "adaptive": fedagg.adaptive_gaussian_noise(0.5, 10.0),
    "tree": fedagg.tree_noise(1.0, 1.0, 10.0, restart_every=4),
    "adaptive tree": fedagg.adaptive_tree_noise(0.5, 10.0),
}


@pytest.mark.parametrize("name", PRIVATE)
def test_of_a_private_stage_all_is_noised(name):
    view = fedagg.server_view(fedagg.aggregator(PRIVATE[name]), TEMPLATE)

    assert all(x.noised for x in view.parts)
    assert {x.how for x in view.parts} == {"plain sum"}
    assert {"value['w']", "value['b']"} <= {x.part for x in view.parts}


@pytest.mark.parametrize("name", PRIVATE)
def test_what_stages_before_a_private_one_learn_is_named_as_not_noised(name):
    bound = fedagg.quantile_bound(1.0, 0.9, 0.2)
    aggregator = fedagg.aggregator(fedagg.zeroing(bound), PRIVATE[name])

    bare = {x.part for x in fedagg.server_view(aggregator, TEMPLATE).parts} - {
        x.part for x in fedagg.server_view(aggregator, TEMPLATE).parts if x.noised
    }

    assert bare == {"note[0].count", "note[0].bound.below", "note[0].bound.count"}


def test_the_private_recipe_is_noised_throughout_without_zeroing_only():
    noised = {
        zeroing: [
            x.noised
            for x in fedagg.server_view(
                fedagg.dp_aggregator(0.5, 20.0, zeroing=zeroing), TEMPLATE
            ).parts
        ]
        for zeroing in (True, False)
    }

    assert all(noised[False]) and noised[True].count(False) == 3


def test_a_private_view_prints_what_is_released_without_noise():
    recipe = fedagg.dp_aggregator(0.5, 20.0)

    view = fedagg.server_view(recipe, {"w": jnp.zeros(2)})

    assert str(view).splitlines() == [
        "part                 shape  dtype    the server sees  released with noise",
        "value['w']           [2]    int32    plain sum        yes",
        "note[0].count        []     float32  plain sum        NO",
        "note[0].bound.below  []     float32  plain sum        NO",
        "note[0].bound.count  []     float32  plain sum        NO",
        "note[1].below        []     int32    plain sum        yes",
    ]


def test_error_feedback_shows_each_message():
    seen = how(fedagg.with_error_feedback(fedagg.random_k(0.1), 5))

    assert seen["value"] == "in the clear"


def test_a_stage_will_do_and_prints_as_a_table():
    view = fedagg.server_view(fedagg.mean(), {"w": jnp.zeros((2, 3))})

    assert str(view).splitlines() == [
        "part        shape   dtype    the server sees",
        "value['w']  [2, 3]  float32  plain sum",
        "note        []      float32  plain sum",
    ]


@pytest.mark.parametrize("other", [None, fedagg.mean, fedagg.median()])
def test_what_is_neither_is_refused(other):
    with pytest.raises(TypeError, match="expected a Stage, or an Aggregator"):
        fedagg.server_view(other, TEMPLATE)


def test_an_aggregator_made_by_hand_is_refused():
    by_hand = fedagg.Aggregator(
        lambda template: (), lambda *x: fedagg.Output((), x, {})
    )

    with pytest.raises(TypeError, match="or a recipe made"):
        fedagg.server_view(by_hand, TEMPLATE)
