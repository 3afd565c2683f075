"""Gaussian noise at the server: its scale, its clip, and what is refused."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from fedagg._noise.sum_grid import SumGrid
from tests.helpers import (
    assert_close,
    assert_same,
    extreme_clients,
    first_now,
    first_round_compiled,
    make_updates,
    recorded_cases,
    with_absent,
)

CASES = recorded_cases("tff_privacy.json")
SPLITS = CASES["adaptive_clip_noise_params"]["rows"]
KEY = jax.random.key(5)
WIDE = {"a": jnp.zeros((1, 150_000)), "b": jnp.zeros((1, 50_000))}


def fixed(*arguments: Any, **options: Any) -> fedagg.Aggregator:
    return fedagg.aggregator(fedagg.gaussian_noise(*arguments, **options))


def adaptive(*arguments: Any, **options: Any) -> fedagg.Aggregator:
    return fedagg.aggregator(fedagg.adaptive_gaussian_noise(*arguments, **options))


def stacked(clients: list[dict[str, Any]], n: int) -> Any:
    """One array a leaf, filled up to n clients so that all rounds compile once."""
    filled = clients + clients[-1:] * (n - len(clients))
    return {
        leaf: jnp.asarray(np.asarray([x[leaf] for x in filled], np.float32))
        for leaf in filled[0]
    }


@pytest.mark.parametrize("name", ["dp_gaussian_fixed", "dp_gaussian_adaptive"])
@pytest.mark.deep
def test_a_recorded_round_without_noise_gives_the_recorded_result(name):
    case = CASES[f"{name}_noise0"]
    params, learns = case["params"], name.endswith("adaptive")
    if learns:
        aggregator = adaptive(
            params["noise_multiplier"],
            params["clients_per_round"],
            initial_clip=params["initial_l2_norm_clip"],
            target_quantile=params["target_unclipped_quantile"],
            learning_rate=params["learning_rate"],
        )
    else:
        aggregator = fixed(**params)
    n = max(len(x["client_values"]) for x in case["rounds"])
    next_round = jax.jit(aggregator.next)
    first = stacked(case["rounds"][0]["client_values"], n)
    state, clip = aggregator.init(jax.tree.map(lambda x: x[0], first)), 0.1

    for recorded in case["rounds"]:
        clients = recorded["client_values"]
        present = jnp.asarray(np.arange(n) < len(clients), jnp.float32)
        state, value, metrics = next_round(state, stacked(clients, n), present, KEY)

        for leaf, expected in recorded["result"].items():
            assert_close(value[leaf], np.asarray(expected, np.float64))
        assert_close(metrics["gaussian_noise/clip"], clip if learns else 0.7)
        if learns:  # which reports the clip of the next round
            clip = recorded["measurements"]["dp_query_metrics"]["clip"]
            assert_close(state[0].clip, clip)


@first_now("z, clip, n", [(1.0, 1.0, 1.0), (0.5, 3.0, 7.0)])
@first_now("learns", [False, True])
def test_noise_has_the_scale_and_the_shape_of_the_normal_law(z, clip, n, learns):
    if learns:
        aggregator = adaptive(z, n, initial_clip=clip, count_stddev=z)
        scale = clip * z / math.sqrt(0.75) / n  # z**-2 - (2 z)**-2 = 0.75 z**-2
    else:
        aggregator, scale = fixed(z, clip, n), clip * z / n

    output = first_round_compiled(aggregator, WIDE, key=KEY)

    # Deviations of the statistics at 200,000 entries: 0.16 % of the scale and less.
    x = np.concatenate([output.value[k][...] for k in "ab"]).astype(np.float64) / scale
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1.0) < 0.01
    assert abs((x**3).mean()) < 0.03
    assert abs((x**4).mean() - 3.0) < 0.06
    assert abs(np.mean(x[:-1] * x[1:])) < 0.01
    assert abs(np.mean(np.abs(x) > 3.0) - 0.0027) < 0.0005
    assert_close(output.metrics["gaussian_noise/stddev"], np.float64(scale))


@pytest.mark.deep
def test_leaves_and_rounds_have_noise_of_their_own():
    value = {"a": jnp.zeros((1, 40_000)), "b": jnp.zeros((1, 40_000))}
    aggregator = fixed(1.0, 1.0, 1.0)

    one = first_round_compiled(aggregator, value, key=jax.random.key(0)).value
    two = first_round_compiled(aggregator, value, key=jax.random.key(1)).value

    for x, y in ((one["a"], one["b"]), (one["a"], two["a"])):
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.02


def test_half_precision_leaves_get_noise_of_full_precision():
    value = {"a": jnp.zeros((1, 200_000), jnp.bfloat16)}

    noise = first_round_compiled(fixed(1.0, 1.0, 1.0), value, key=KEY).value["a"]

    # Drawn in bfloat16, noise has 128 sizes and none above 2.9.
    assert noise.dtype == jnp.bfloat16
    assert len(np.unique(np.abs(noise.astype(np.float32)))) > 1000
    assert np.max(np.abs(noise.astype(np.float32))) > 4.0


@first_now("row", SPLITS, ids=lambda row: f"{row['noise_multiplier']}")
def test_the_noise_is_split_as_recorded(row):
    stage = (row["noise_multiplier"], row["clients"])
    count_stddev = row["clipped_count_stddev"]
    if not row["out"]["ok"]:
        with pytest.raises(ValueError, match="less than a tenth|more than half"):
            adaptive(*stage, count_stddev=count_stddev)
        return

    aggregator = adaptive(*stage, initial_clip=1.0, count_stddev=count_stddev)
    metrics = first_round_compiled(
        aggregator, {"x": jnp.zeros((1, 2))}, key=KEY
    ).metrics

    stddev = metrics["gaussian_noise/stddev"] * row["clients"]
    assert_close(stddev, np.float64(row["out"]["result"][0]))


@pytest.mark.parametrize("given", [None, 3.0])
@pytest.mark.deep
def test_the_count_is_noised_by_its_part(given):
    n, rate = 100.0, 0.2
    aggregator = adaptive(1.0, n, learning_rate=rate, count_stddev=given)
    state = aggregator.init({"x": jnp.zeros(1)})
    value = {"x": jnp.ones((60, 1))}  # all above the clip

    def step(key: jax.Array) -> jax.Array:
        moved = aggregator.next(state, value, None, key).state[0].clip.estimate
        return -jnp.log(moved / 0.1) / rate + 0.5

    fractions = np.asarray(
        jax.vmap(step)(jax.random.split(jax.random.key(2), 20_000)), np.float64
    )

    # Sixty clients of minus one half are 30 below one half of a hundred.
    stddev = (5.0 if given is None else given) / n
    assert abs(fractions.mean() - 0.2) < 0.05 * stddev
    assert abs(fractions.std() / stddev - 1.0) < 0.02


@pytest.mark.parametrize("start", [0.001, 1000.0])
@pytest.mark.parametrize("quantile", [0.3, 0.8])
@pytest.mark.deep
def test_the_clip_comes_to_the_quantile_from_below_and_from_above(start, quantile):
    norms = np.random.default_rng(0).lognormal(1.0, 1.0, 200)
    value = {"x": jnp.asarray(norms[:, None], jnp.float32)}
    aggregator = adaptive(
        1.0, 200.0, initial_clip=start, target_quantile=quantile, learning_rate=0.3
    )

    def body(state: Any, key: jax.Array):
        output = aggregator.next(state, value, None, key)
        return output.state, output.metrics["gaussian_noise/clip"]

    keys = jax.random.split(jax.random.key(3), 400)
    _, clips = jax.lax.scan(body, aggregator.init({"x": jnp.zeros(1)}), keys)

    settled = [np.mean(norms <= clip) for clip in np.asarray(clips)[200:]]
    assert abs(np.mean(settled) - quantile) < 0.02
    assert np.std(settled) < 0.05


def sums_of(stage: fedagg.Stage, value: Any, weights: Any) -> Any:
    """What is noised: the sum of the clients' messages, by the library itself."""
    shared = stage.broadcast(stage.init({"x": jnp.zeros(3)}))

    def message(x: Any, weight: jax.Array):
        update, note = stage.client(shared, fedagg.Update(x, weight), None)
        return update.value.value, note

    return jax.vmap(message)(value, weights)


@first_now("learns", [False, True])
@first_now("largest_weight", [None, 4.0])
def test_no_neighbour_moves_the_sum_further_than_the_noise_is_made_for(
    learns, largest_weight
):
    held = extreme_clients(400)
    weights = jnp.asarray(np.resize([1.0, 0.5, 4.0, 9.0, 1e30], len(held)), jnp.float32)
    options = {"largest_weight": largest_weight}
    if learns:
        stage = fedagg.adaptive_gaussian_noise(1.0, 50.0, initial_clip=0.7, **options)
    else:
        stage = fedagg.gaussian_noise(1.0, 0.7, 50.0, **options)

    values, notes = sums_of(stage, {"x": jnp.asarray(held)}, weights)

    # Add or remove: one client's message. Replace one: the difference of two.
    left = (1.0 - (2.0 * 0.05 * 50.0) ** -2) ** -0.5 if learns else 1.0
    steps = SumGrid.of(left, 50.0).steps
    x = np.asarray(values["x"]).astype(np.float64) * 0.7 / steps
    sizes = np.linalg.norm(x, axis=1)
    apart = np.linalg.norm(x[:, None] - x[None], axis=2)
    assert 0.7 * (1 - 1e-5) <= sizes.max() <= 0.7
    assert 1.38 <= apart.max() <= 1.4
    if learns:
        steps = SumGrid.of(2.0 * 0.05 * 50.0, 50.0).steps
        assert set(np.asarray(notes.value.below)) == {steps, -steps}
        assert notes.value.count is None


@first_now("learns", [False, True])
def test_a_client_that_cannot_be_clipped_counts_as_zero(learns):
    make = adaptive if learns else fixed
    aggregator = make(0.0, 0.1, 4.0) if not learns else make(0.0, 4.0)
    updates = make_updates(6)
    gone = with_absent(updates, 0.0, [1, 2, 3])
    value = jax.tree.map(
        lambda x: x.at[1].set(math.nan).at[2].set(math.inf).at[3].set(3e38),
        updates.value,
    )

    broken = first_round_compiled(aggregator, value, key=KEY)
    without = first_round_compiled(aggregator, *gone, KEY)

    assert_close(broken.value, without.value)


def test_clients_count_once_whatever_their_weight():
    updates = make_updates()
    aggregator = fixed(0.0, 1.0, 5.0)

    weighted = first_round_compiled(aggregator, *updates, KEY)
    plain = first_round_compiled(aggregator, updates.value, None, KEY)

    assert_same(weighted, plain)


def test_weights_count_up_to_the_largest():
    value = {"x": jnp.asarray([[3.0, 0.0], [0.0, 0.5]])}
    aggregator = fixed(0.0, 1.0, 10.0, largest_weight=8.0)

    output = first_round_compiled(aggregator, value, jnp.asarray([100.0, 2.0]), KEY)

    assert_close(output.value, {"x": np.asarray([1.0, 0.5 / 4.0]) / 10.0})


def test_the_denominator_does_not_follow_the_clients():
    aggregator = fixed(0.0, 1.0, 10.0)
    value = {"x": jnp.full((4, 1), 0.5)}

    some = first_round_compiled(
        aggregator, value, jnp.asarray([1.0, 1.0, 0.0, 0.0]), KEY
    )
    all_of_them = first_round_compiled(aggregator, value, None, KEY)

    assert_close(some.value, {"x": np.asarray([0.1])})
    assert_close(all_of_them.value, {"x": np.asarray([0.2])})


@first_now("signal", [0.0, 0.5, 5.0])
def test_the_signal_to_noise_is_that_of_the_mean(signal):
    d, n = 90_000, 10
    value = {"x": jnp.full((n, d), signal / n)}

    metrics = first_round_compiled(fixed(0.01, 1e4, 4.0), value, key=KEY).metrics

    # The sum has a norm of signal * 300, and its noise one of 100 * 300.
    assert metrics["gaussian_noise/stddev"] == 25.0
    got = metrics["gaussian_noise/signal_to_noise"]
    assert abs(got - signal / 100.0) < 0.1
    strong = {"x": jnp.full((n, d), 3.0)}
    metrics = first_round_compiled(fixed(0.001, 1e4, 4.0), strong, key=KEY).metrics
    np.testing.assert_allclose(
        metrics["gaussian_noise/signal_to_noise"], 3.0, rtol=0.01
    )


def test_metrics_tell_no_more_of_the_clients_than_the_value_does():
    one = {"x": jnp.asarray([[1.0, 0.0], [0.5, 0.0], [0.0, 0.0]])}
    other = {"x": jnp.asarray([[0.75, 0.0], [0.75, 0.0]])}
    aggregator = fixed(1.0, 2.0, 3.0)

    first, second = (first_round_compiled(aggregator, x, key=KEY) for x in (one, other))

    assert_same(first, second)


@pytest.mark.parametrize(
    "stage",
    [
        fedagg.gaussian_noise(1.0, 1.0, 10.0),
        fedagg.adaptive_gaussian_noise(0.5, 10.0),
    ],
    ids=["fixed", "adaptive"],
)
@pytest.mark.parametrize(
    "after",
    [
        fedagg.mean(),
        fedagg.mean(weighted=False),
        fedagg.quantization(4, threshold=0),
        fedagg.clipping(1.0),
        fedagg.gaussian_noise(1.0, 1.0, 2.0, name="twice"),
    ],
    ids=lambda stage: stage.traits.name,
)
def test_what_would_change_clipped_values_is_refused(stage, after):
    with pytest.raises(ValueError, match=f"{after.traits.name} comes after gaussian_n"):
        fedagg.chain(stage, after)


@pytest.mark.parametrize("weighted", [True, False])
def test_a_mean_before_private_noise_is_refused(weighted):
    stages = fedagg.mean(weighted=weighted), fedagg.gaussian_noise(1.0, 1.0, 10.0)

    with pytest.raises(ValueError, match="weights, which no noise hides"):
        fedagg.aggregator(*stages)
    with pytest.raises(ValueError, match="weights, which no noise hides"):
        fedagg.aggregator(stages[0], fedagg.chain(stages[1]))


def test_a_rule_in_place_of_the_sum_is_refused():
    stage = fedagg.gaussian_noise(1.0, 1.0, 10.0)

    with pytest.raises(ValueError, match="rule"):
        fedagg.combining(fedagg.median(), stage)


def test_noise_needs_a_key():
    for aggregator in (fixed(1.0, 1.0, 10.0, name="own"), adaptive(0.5, 9, name="own")):
        with pytest.raises(ValueError, match="own draws noise and needs a key"):
            first_round_compiled(aggregator, *make_updates())


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": -0.1},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"clip": 0.0},
        {"clip": math.nan},
        {"clip": math.inf},
        {"clients_per_round": 0},
        {"clients_per_round": math.inf},
        {"largest_weight": 0.0},
        {"largest_weight": math.inf},
    ],
)
def test_arguments_out_of_range_are_refused(change):
    arguments = {"noise_multiplier": 1.0, "clip": 1.0, "clients_per_round": 10.0}
    (name,) = change

    with pytest.raises(ValueError, match=f"{name} must be .*{name}="):
        fedagg.gaussian_noise(**(arguments | change))
    if name == "clip":
        change, arguments = {"initial_clip": change["clip"]}, dict(arguments)
    arguments.pop("clip")
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
        fedagg.adaptive_gaussian_noise(**(arguments | change))


UNNOISED = fedagg.Bound(
    init=lambda: jnp.float32(1.0),
    broadcast=lambda state: state,
    value=lambda shared: shared,
    note=lambda shared, x: x,
    update=lambda state, note, key: note,
)


@pytest.mark.parametrize(
    "bound",
    [
        fedagg.quantile_bound(1.0, 0.5, 0.1),
        fedagg.quantile_bound(1.0, 0.5, 0.1, expected_num_clients=10),
        UNNOISED,
    ],
    ids=["counts clients", "has no noise", "says nothing"],
)
def test_a_clip_that_learns_without_noise_is_refused(bound):
    with pytest.raises(TypeError, match="clip must be a number: a Bound learns"):
        fedagg.gaussian_noise(1.0, bound, 10.0)


def test_a_clip_that_learns_with_too_little_noise_is_refused():
    bound = fedagg.quantile_bound(
        1.0, 0.5, 0.1, below_estimate_stddev=0.5, expected_num_clients=10
    )

    with pytest.raises(ValueError, match="learn with noise of more than 0.5 times"):
        fedagg.gaussian_noise(1.0, bound, 10.0)


@pytest.mark.parametrize("changed", [{"clip": True}, {"noise_multiplier": True}])
def test_a_bool_is_no_number(changed):
    arguments = {"noise_multiplier": 1.0, "clip": 1.0, "clients_per_round": 10.0}

    with pytest.raises(TypeError, match="must be a number, got .*=True"):
        fedagg.gaussian_noise(**(arguments | changed))


def test_integer_leaves_are_refused():
    for aggregator in (fixed(1.0, 1.0, 10.0), adaptive(0.5, 9.0)):
        with pytest.raises(TypeError, match="gaussian_noise takes leaves of a float"):
            first_round_compiled(
                aggregator, {"k": jnp.ones((3, 2), jnp.int32)}, key=KEY
            )


@pytest.mark.deep
def test_the_recipe_is_zeroing_and_adaptive_noise():
    updates = make_updates()
    updates = updates._replace(
        value=jax.tree.map(lambda x: x.at[2].set(math.nan), updates.value)
    )
    recipe = fedagg.dp_aggregator(0.5, 20.0, zeroing=True, without_guarantee=True)
    zeroing = fedagg.zeroing(
        fedagg.quantile_bound(10.0, 0.98, math.log(10.0), multiplier=2.0, increment=1.0)
    )
    zeroing = fedagg.without_guarantee(zeroing)
    noise = fedagg.adaptive_gaussian_noise(
        0.5, 20.0, initial_clip=0.1, target_quantile=0.5, learning_rate=0.2
    )

    got = first_round_compiled(recipe, *updates, KEY)
    expected = first_round_compiled(fedagg.aggregator(zeroing, noise), *updates, KEY)

    assert_close(got, expected)
    assert got.metrics["zeroing/count"] >= 1.0
    assert_close(got.metrics["gaussian_noise/clip"], np.float64(0.1))
    alone = first_round_compiled(fedagg.dp_aggregator(0.5, 20.0), *updates, KEY)
    by_hand = first_round_compiled(fedagg.aggregator(noise), *updates, KEY)
    assert_same(alone, by_hand)


def test_the_recipe_needs_enough_clients():
    with pytest.raises(ValueError, match="a twentieth of clients_per_round"):
        fedagg.dp_aggregator(1.0, 10.0)
