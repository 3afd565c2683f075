"""What the server sees, for messages of every kind."""

import jax.numpy as jnp
import optax
import pytest

import fedagg
from tests.helpers import first_now

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


@first_now("mechanism", ["skellam", "discrete_gaussian"])
@first_now("zeroing", [True, False])
def test_of_the_distributed_recipe_nothing_is_in_the_clear(mechanism, zeroing):
    recipe = fedagg.distributed_dp_aggregator(
        1.0,
        50,
        18,
        zeroing=zeroing,
        without_guarantee=zeroing,
        mechanism=mechanism,
    )

    seen = how(recipe)

    # Values and the count with noise, zeroing's count and quantile, and who is there.
    assert set(seen.values()) == {"secure sum modulo 2**18"}
    assert {"value.vector", "value.count"} <= set(seen)
    assert len(seen) == 2 + 3 * zeroing + 1 + 2
    parts = fedagg.server_view(recipe, TEMPLATE).parts
    hidden = {"value.vector", "value.count"}
    assert {x.part for x in parts if x.noised} == (set() if zeroing else hidden)
    assert {x.part for x in parts if x.follows} == (hidden if zeroing else set())


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


def test_notes_that_a_clients_value_is_undone_with_are_in_the_clear():
    rounded = fedagg.discretization(0.1, stochastic=False)

    seen = how(fedagg.combining(fedagg.median(), fedagg.clipping(1.0), rounded))

    assert seen["note[0].count"] == "plain sum"
    assert seen["note[1].largest"] == "in the clear"


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
def test_all_that_a_bound_learnt_without_noise_acts_on_is_not_noised(name):
    bound = fedagg.quantile_bound(1.0, 0.9, 0.2)
    told = fedagg.without_guarantee(fedagg.zeroing(bound))
    aggregator = fedagg.aggregator(told, PRIVATE[name])

    parts = fedagg.server_view(aggregator, TEMPLATE).parts

    bare = {"note[0].count", "note[0].bound.below", "note[0].bound.count"}
    assert not any(x.noised for x in parts)
    assert {x.part for x in parts if not x.follows} == bare


def test_what_a_count_or_a_fixed_bound_does_not_act_on_stays_noised():
    told = fedagg.without_guarantee(fedagg.zeroing(2.0))
    aggregator = fedagg.aggregator(told, PRIVATE["adaptive"])

    parts = fedagg.server_view(aggregator, TEMPLATE).parts

    assert {x.part for x in parts if not x.noised} == {"note[0].count"}
    assert not any(x.follows for x in parts)


def test_what_comes_before_a_bound_without_noise_stays_noised():
    bound = fedagg.quantile_bound(
        1.0, 0.9, 0.2, below_estimate_stddev=2.0, expected_num_clients=9
    )
    bare = fedagg.zeroing(fedagg.quantile_bound(1.0, 0.9, 0.2), name="bare")
    aggregator = fedagg.aggregator(
        fedagg.zeroing(bound, counted=False),
        fedagg.without_guarantee(bare),
        PRIVATE["fixed"],
    )

    parts = fedagg.server_view(aggregator, TEMPLATE).parts

    assert [x.part for x in parts if x.noised] == ["note[0].bound.below"]
    assert {x.part for x in parts if x.follows} == {"value['w']", "value['b']"}


@pytest.mark.parametrize("zeroing", [False, 3.0])
@pytest.mark.parametrize(
    "make",
    [fedagg.dp_aggregator, fedagg.distributed_dp_aggregator],
)
def test_of_private_recipes_only_who_is_there_is_not_noised(make, zeroing):
    view = fedagg.server_view(make(0.5, 20, zeroing=zeroing), TEMPLATE)

    bare = [x.part for x in view.parts if not x.noised]
    secret = make is fedagg.distributed_dp_aggregator
    at = f"note[0].stage[{1 if zeroing else 0}]"
    expected = [at, "note[0].left_out", "note[0].present"]
    assert bare == (expected if secret else [])


def noting_work(variables, row, key):
    return variables, {"training/loss": jnp.sum(row), "accuracy": jnp.float32(1.0)}


def test_a_view_of_a_training_has_a_row_for_each_metric_that_is_sent():
    template, sgd = {"w": jnp.zeros(2)}, optax.sgd(1.0)
    takes = fedagg.noised_metrics(2.0, {"training/loss": 5.0}, 20)
    stages = {
        "open": (fedagg.mean(),),
        "private": (PRIVATE["fixed"],),
        "noised": (takes, PRIVATE["fixed"]),
        "meant": (takes, fedagg.without_guarantee(PRIVATE["fixed"])),
    }

    rows = {}
    for name, chosen in stages.items():
        training = fedagg.federated_averaging(
            noting_work, sgd, fedagg.aggregator(*chosen)
        )
        view = fedagg.server_view(training, template, row=jnp.zeros(3))
        rows[name] = {
            x.part: x.noised
            for x in view.parts
            if "accuracy" in x.part or "/" in x.part
        }

    bare = {f"metrics['accuracy'][{i}]": False for i in (0, 1)}
    loss = {f"metrics['training/loss'][{i}]": False for i in (0, 1)}
    noised = {"note[0]['training/loss']": True}
    assert rows["open"] == bare | loss
    assert rows["private"] == {}
    assert rows["noised"] == noised
    assert rows["meant"] == noised | bare


def test_a_private_view_prints_what_is_released_without_noise():
    recipe = fedagg.dp_aggregator(0.5, 20.0, zeroing=True, without_guarantee=True)

    view = fedagg.server_view(recipe, {"w": jnp.zeros(2)})

    assert str(view).splitlines() == [
        "part                 shape  dtype    the server sees  released with noise",
        "value['w']           [2]    int32    plain sum        "
        "NO: a bound without noise",
        "note[0].count        []     float32  plain sum        NO",
        "note[0].bound.below  []     float32  plain sum        NO",
        "note[0].bound.count  []     float32  plain sum        NO",
        "note[1].below        []     int32    plain sum        "
        "NO: a bound without noise",
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
