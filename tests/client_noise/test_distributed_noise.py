"""Noise at the clients: its scale, its bounds, its clip, and what is refused."""

import inspect
import math
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from fedagg._client_noise.grid import grid_for
from fedagg._client_noise.mechanism import Settings
from tests.helpers import (
    TEMPLATE,
    assert_close,
    assert_same,
    extreme_clients,
    first_now,
    first_round,
    first_round_compiled,
    make_updates,
    recorded_cases,
    with_absent,
)

CASES = recorded_cases("tff_privacy.json")
STAGES = {
    "skellam_noise": fedagg.skellam_noise,
    "discrete_gaussian_noise": fedagg.discrete_gaussian_noise,
}
MECHANISMS = {
    "skellam_noise": fedagg.skellam,
    "discrete_gaussian_noise": fedagg.discrete_gaussian,
}
CURVES = {
    "skellam_noise": fedagg.skellam_curve,
    "discrete_gaussian_noise": fedagg.discrete_gaussian_curve,
}
KEY = jax.random.key(5)
every_mechanism = pytest.mark.parametrize("name", STAGES)


def made(mechanism: str, *arguments: Any, **options: Any) -> fedagg.Aggregator:
    return fedagg.aggregator(STAGES[mechanism](*arguments, **options))


def secured(stage: fedagg.Stage, bits: int, cohort: int) -> fedagg.Aggregator:
    return fedagg.aggregator(
        fedagg.secure_modular_sum(stage, bits=bits, largest_cohort=cohort)
    )


def test_recorded_rounds_without_noise_give_the_recorded_sums():
    case = CASES["ddp_sum_noise0_distributed_skellam"]
    params = case["params"]
    n, bits = params["expected_clients_per_round"], params["bits"]
    stage = fedagg.skellam_noise(0.0, params["l2_clip"], n, bits=bits, beta=0.0)
    aggregator = secured(stage, bits, n)
    next_round = jax.jit(aggregator.next)
    state = None

    for i, recorded in enumerate(case["rounds"]):
        clients = recorded["client_values"]
        value = {
            leaf: jnp.asarray(np.asarray([x[leaf] for x in clients], np.float32))
            for leaf in clients[0]
        }
        if state is None:
            state = aggregator.init(jax.tree.map(lambda x: x[0], value))
        state, mean, metrics = next_round(state, value, None, jax.random.key(i))

        step = 1.0 / recorded["measurements"]["scale_factor"]
        for leaf, expected in recorded["result"].items():
            # Two randomly rounded sums: each entry has a deviation of a half a step
            # for each client at most.
            error = np.asarray(mean[leaf]) * n - np.asarray(expected)
            assert np.max(np.abs(error)) < 6.0 * step * math.sqrt(2 * n) / 2
        assert_close(metrics["skellam_noise/clip"], params["l2_clip"])


@every_mechanism
@first_now("present", [4, 7])
def test_the_sum_has_the_declared_noise_of_the_smallest_cohort_or_more(name, present):
    z, clip, n = 0.8, 3.0, 7
    aggregator = made(
        name, z, clip, n, bits=18, smallest_cohort=4, largest_cohort=8, rotation="dft"
    )
    value = {"a": jnp.zeros((8, 150_000)), "b": jnp.zeros((8, 50_000))}
    weights = jnp.asarray(np.arange(8) < present, jnp.float32)

    output = first_round_compiled(aggregator, value, weights, KEY)

    declared = z * clip / n
    expected = declared * math.sqrt(present / 4)
    x = np.concatenate([output.value[k] for k in "ab"]).astype(np.float64)
    # Deviations of the statistics at 200,000 entries: 0.16 % of the scale and less.
    assert x.std() >= 0.995 * declared
    assert abs(x.std() / expected - 1.0) < 0.01
    x = x / expected
    assert abs(x.mean()) < 0.01
    assert abs((x**3).mean()) < 0.03
    assert abs((x**4).mean() - 3.0) < 0.06
    assert abs(np.mean(x[:-1] * x[1:])) < 0.01
    # Of those present it would tell how many they are.
    np.testing.assert_allclose(output.metrics[f"{name}/stddev"], declared, rtol=1e-5)


@every_mechanism
@pytest.mark.deep
def test_clients_and_rounds_have_noise_of_their_own(name):
    stage = STAGES[name](1.0, 1.0, 2, bits=16)
    template = jnp.zeros(2**15)
    shared = stage.broadcast(stage.init(template))
    update = fedagg.Update(template, jnp.float32(1.0))
    send = jax.jit(jax.vmap(lambda key: stage.client(shared, update, key)[0].value))

    sent = np.asarray(
        send(jax.random.split(jax.random.key(6), 3)).value.vector, np.float64
    )

    off = np.corrcoef(sent) - np.eye(3)
    assert np.max(np.abs(off)) < 0.03


def integers_of(stage: fedagg.Stage, held: np.ndarray) -> Any:
    """What clients send of values `[n, d]`, signed."""
    template = {"x": jnp.zeros(held.shape[1])}
    shared = stage.broadcast(stage.init(template))

    def message(x: jax.Array, key: jax.Array):
        update = fedagg.Update({"x": x}, jnp.float32(1.0))
        return stage.client(shared, update, key)[0].value.value

    keys = jax.random.split(jax.random.key(1), len(held))
    return jax.jit(jax.vmap(message))(jnp.asarray(held), keys)


@pytest.mark.parametrize("rotation", ["hadamard", "dft"])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("beta", [0.0, math.exp(-0.5)])
@pytest.mark.deep
def test_no_client_sends_more_than_the_curve_accounts_for(rotation, learns, beta):
    held = extreme_clients(300)
    clip = fedagg.quantile_bound(0.7, 0.5, 0.2) if learns else 0.7
    noise = fedagg.skellam(0.0, clip, 40, bits=14, rotation=rotation, beta=beta)
    grid = grid_for(noise.calibration, 4, "test")

    sent = integers_of(noise.stage(), held)

    x = np.asarray(sent.vector, np.float64)
    assert x.shape == (606, 4)
    assert np.linalg.norm(x, axis=1).max() <= grid.bound
    assert np.abs(x).sum(axis=1).max() <= grid.bound_of_sizes
    apart = np.linalg.norm(x[:, None] - x[None], axis=2).max()
    assert 1.9 * grid.steps <= apart <= 2.0 * grid.bound
    assert np.linalg.norm(x, axis=1).max() >= 0.999 * grid.steps
    if learns:
        assert set(np.asarray(sent.count)) == {grid.count_steps, -grid.count_steps}
        norms = np.linalg.norm(held.astype(np.float64), axis=1)
        sure = ~(np.abs(norms / 0.7 - 1.0) < 1e-5)
        np.testing.assert_array_equal(
            (np.asarray(sent.count) > 0)[sure], (norms <= 0.7)[sure]
        )
    else:
        assert sent.count == ()


@pytest.mark.deep
def test_sums_wrap_as_often_as_declared():
    n, d, bits, chance = 128, 2**14, 12, 0.05
    stage = fedagg.skellam_noise(0.1, 1.0, n, bits=bits, wrap_probability=chance)
    silent = fedagg.skellam_noise(0.0, 1.0, n, bits=24)
    x = np.random.default_rng(0).normal(size=d)
    value = jnp.asarray(
        np.tile(x / np.linalg.norm(x), (n, 1)), jnp.float32
    )  # all alike
    rotation = fedagg.rotation("hadamard")

    noised = first_round_compiled(fedagg.aggregator(stage), value, None, KEY).value
    plain = first_round_compiled(fedagg.aggregator(silent), value, None, KEY).value

    update = fedagg.Update(noised - plain, jnp.float32(1.0))
    shared = rotation.broadcast(rotation.init(plain))
    off = n * np.asarray(rotation.client(shared, update, None)[0].value)
    # What wraps is off by the whole range, which is twice 1.96 deviations of the sum.
    spread = math.sqrt(n**2 / d + 0.1**2)
    wrapped = np.mean(np.abs(off) > 1.96 * spread)
    assert 0.9 * chance < wrapped < 1.1 * chance


@pytest.mark.deep
def test_a_client_that_cannot_be_clipped_counts_as_zero():
    updates = make_updates(6)
    aggregator = made("skellam_noise", 0.0, 4.0, 6, bits=24, beta=0.0)
    broken, zero = (
        jax.tree.map(
            lambda x, a=a, b=b, c=c: x.at[1].set(a).at[2].set(b).at[3].set(c),
            updates.value,
        )
        for a, b, c in ((math.nan, math.inf, 3e38), (0.0, 0.0, 0.0))
    )

    aggregator = aggregator._replace(next=jax.jit(aggregator.next))
    one, other = (first_round(aggregator, x, None, KEY) for x in (broken, zero))

    assert_same(one.value, other.value)


@pytest.mark.deep
def test_clients_count_once_whatever_their_weight():
    updates = make_updates()
    aggregator = made("skellam_noise", 1.0, 1.0, 11, bits=16)

    weighted = first_round_compiled(aggregator, *updates, KEY)
    plain = first_round_compiled(aggregator, updates.value, None, KEY)

    assert_same(weighted, plain)


@first_now("absent, hidden", [(3, True), (0, True), (3, False)])
def test_cohorts_too_small_or_too_large_give_zero_and_teach_nothing(absent, hidden):
    stage = fedagg.skellam_noise(
        0.5,
        1.0,
        10,
        bits=18,
        smallest_cohort=9,
        largest_cohort=10,
        target_quantile=0.5,
    )
    aggregator = secured(stage, 18, 12) if hidden else fedagg.aggregator(stage)
    updates = with_absent(make_updates(), math.nan, np.arange(absent))
    enough = with_absent(make_updates(), math.nan, [1])

    void = first_round_compiled(aggregator, *updates, KEY)
    sound = first_round_compiled(aggregator, *enough, KEY)

    fresh = aggregator.init(TEMPLATE)
    of_void = zip(*map(jax.tree.leaves, (void.state, fresh)), strict=True)
    assert [int(a - b) for a, b in of_void if a != b] == [1]  # rounds are counted
    assert not any(np.any(x) for x in jax.tree.leaves(void.value))
    assert void.metrics["skellam_noise/is_released"] == 0.0
    assert sound.metrics["skellam_noise/is_released"] == 1.0
    moved = zip(*map(jax.tree.leaves, (sound.state, fresh)), strict=True)
    assert all(a != b for a, b in moved)


@pytest.mark.parametrize("zeroed", [False, True])
@pytest.mark.deep
def test_without_noise_it_is_the_central_mean_and_learns_the_same_clip(zeroed):
    updates = make_updates(11)
    before = (fedagg.zeroing(30.0, counted=False),) if zeroed else ()
    ours = fedagg.skellam_noise(0.0, 2.0, 11, bits=24, target_quantile=0.4)
    hidden = secured(fedagg.chain(*before, ours), 24, 11)
    central = fedagg.aggregator(
        *before,
        fedagg.adaptive_gaussian_noise(0.0, 11, initial_clip=2.0, target_quantile=0.4),
    )

    got = first_round_compiled(hidden, *updates, KEY)
    expected = first_round_compiled(central, *updates, KEY)

    assert_close(got.value, expected.value, rtol=1e-4)
    assert_close(got.metrics["skellam_noise/clip"], np.float32(2.0))
    assert_close(got.state[0].stage[-1].clip, expected.state[-1].clip)


@pytest.mark.parametrize("given", [None, 3.0])
@pytest.mark.deep
def test_the_count_is_noised_by_its_part(given):
    n, rate = 100, 0.2
    aggregator = made(
        "skellam_noise",
        1.0,
        0.1,
        n,
        bits=20,
        smallest_cohort=64,
        target_quantile=0.5,
        learning_rate=rate,
        count_stddev=given,
    )
    state = aggregator.init({"x": jnp.zeros(1)})
    value = {"x": jnp.asarray([1.0] * 60 + [0.01] * 4)[:, None]}  # 60 above the clip

    def step(key: jax.Array) -> jax.Array:
        moved = aggregator.next(state, value, None, key).state[0].clip
        return -jnp.log(moved / 0.1) / rate + 0.5

    keys = jax.random.split(jax.random.key(2), 10_000)
    fractions = np.asarray(jax.jit(jax.vmap(step))(keys), np.float64)

    # Sixty clients of minus one half and four of plus one half are 28 below one half.
    stddev = (5.0 if given is None else given) / n
    assert abs(fractions.mean() - 0.22) < 0.05 * stddev
    assert abs(fractions.std() / stddev - 1.0) < 0.03


@first_now("row", CASES["adaptive_clip_noise_params"]["rows"][:4], ids=str, quick=2)
def test_the_noise_is_split_as_recorded(row):
    n = math.ceil(row["clients"])
    options: dict[str, Any] = {"bits": 24, "target_quantile": 0.5}
    arguments = row["noise_multiplier"], 1.0, n
    options["count_stddev"] = row["clipped_count_stddev"]
    if not row["out"]["ok"]:
        with pytest.raises(ValueError, match="less than a tenth|more than half"):
            made("skellam_noise", *arguments, **options)
        return

    aggregator = made("skellam_noise", *arguments, **options)
    value = {"x": jnp.zeros((n, 2))}
    metrics = first_round_compiled(aggregator, value, key=KEY).metrics

    stddev = metrics["skellam_noise/stddev"] * n
    assert_close(stddev, np.float64(row["out"]["result"][0]), rtol=1e-4)


@first_now("start, quantile", [(0.01, 0.3), (1000.0, 0.8)])
def test_the_clip_comes_to_the_quantile_from_below_and_from_above(start, quantile):
    norms = np.random.default_rng(0).lognormal(1.0, 1.0, 100)
    value = {"x": jnp.asarray(norms[:, None], jnp.float32)}
    aggregator = made(
        "skellam_noise",
        1.0,
        start,
        100,
        bits=20,
        target_quantile=quantile,
        learning_rate=0.3,
    )

    def body(state: Any, key: jax.Array):
        output = aggregator.next(state, value, None, key)
        return output.state, output.metrics["skellam_noise/clip"]

    keys = jax.random.split(jax.random.key(3), 300)
    _, clips = jax.lax.scan(body, aggregator.init({"x": jnp.zeros(1)}), keys)

    settled = [np.mean(norms <= clip) for clip in np.asarray(clips)[150:]]
    assert abs(np.mean(settled) - quantile) < 0.03


@pytest.mark.parametrize("signal", [0.0, 0.5, 5.0])
@pytest.mark.deep
def test_metrics_follow_from_what_is_released(signal):
    d, n = 40_000, 4
    value = {"x": jnp.full((n, d), signal / n)}

    output = first_round_compiled(
        made("skellam_noise", 0.01, 1e3, n, bits=20), value, key=KEY
    )

    # The sum has a norm of signal * 200, and its noise one of 10 * 200.
    norm = np.linalg.norm(np.asarray(output.value["x"], np.float64))
    np.testing.assert_allclose(
        output.metrics["skellam_noise/noised_norm"], norm, rtol=1e-5
    )
    np.testing.assert_allclose(output.metrics["skellam_noise/stddev"], 2.5, rtol=1e-5)
    ratio = np.sqrt(max(0.0, (norm / (2.5 * 200.0)) ** 2 - 1.0))
    got = output.metrics["skellam_noise/signal_to_noise"]
    np.testing.assert_allclose(got, ratio, rtol=1e-3, atol=1e-2)
    assert abs(got - signal / 10.0) < 0.15


@every_mechanism
def test_the_wrong_modulus_is_refused_with_the_numbers(name):
    stage = STAGES[name](1.0, 1.0, 10, bits=16)

    for hidden in (
        fedagg.secure_modular_sum(stage, bits=18, largest_cohort=10),
        fedagg.secure_modular_sum(stage, bits=12, largest_cohort=10),
    ):
        with pytest.raises(ValueError, match="modulo 65536: put it in .* bits=16"):
            fedagg.aggregator(hidden).init(TEMPLATE)
    bounded = fedagg.secure_sum(stage, 1000, largest_cohort=10)
    with pytest.raises(ValueError, match="secure_sum sums within a bound"):
        fedagg.aggregator(fedagg.without_guarantee(bounded)).init(TEMPLATE)


def test_what_would_change_what_is_sent_is_refused():
    stage = fedagg.skellam_noise(1.0, 1.0, 11, bits=16)

    for after in (
        fedagg.mean(),
        fedagg.clipping(1.0),
        fedagg.discretization(1.0, stochastic=False),
    ):
        with pytest.raises(ValueError, match="comes after skellam_noise"):
            fedagg.aggregator(stage, after)
    with pytest.raises(ValueError, match="weights, which no noise hides"):
        fedagg.aggregator(fedagg.mean(), stage)
    with pytest.raises(TypeError, match="takes leaves of a float dtype"):
        fedagg.aggregator(stage).init({"k": jnp.ones(2, jnp.int32)})


@every_mechanism
def test_noise_needs_a_key(name):
    with pytest.raises(ValueError, match="own draws noise and needs a key"):
        first_round(made(name, 1.0, 1.0, 11, bits=16, name="own"), *make_updates())


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": -0.1},
        {"noise_multiplier": math.nan},
        {"clip": 0.0},
        {"clip": math.inf},
        {"clients_per_round": 0},
        {"bits": 1},
        {"bits": 33},
        {"beta": 1.0},
        {"wrap_probability": 0.0},
        {"smallest_cohort": 0},
        {"smallest_cohort": 41, "largest_cohort": 40},
        {"largest_cohort": 39},
        {"count_stddev": 3.0},
        {"target_quantile": 1.5},
        {"target_quantile": 0.5, "learning_rate": 0.0},
    ],
    ids=str,
)
@every_mechanism
def test_arguments_out_of_range_are_refused(name, change):
    arguments = {"noise_multiplier": 1.0, "clip": 1.0, "clients_per_round": 40}
    names = "|".join(change)

    with pytest.raises(ValueError, match=names):
        STAGES[name](**(arguments | change))
    if not {"clip", "learning_rate", "target_quantile"} & change.keys():
        del arguments["clip"]
        if "count_stddev" not in change:
            with pytest.raises(ValueError, match=names):
                CURVES[name](TEMPLATE, **(arguments | change))


@every_mechanism
def test_too_few_bits_a_rotation_and_a_bound_are_refused(name):
    bound: Any = fedagg.quantile_bound(1.0, 0.5, 0.1)

    with pytest.raises(ValueError, match=f"{name}: 6 bits are too few"):
        made(name, 1.0, 1.0, 100, bits=6).init(TEMPLATE)
    with pytest.raises(ValueError, match="6 bits are too few"):
        CURVES[name](TEMPLATE, 1.0, 100, bits=6)
    with pytest.raises(ValueError, match="rotation must be one of hadamard, dft"):
        STAGES[name](1.0, 1.0, 10, rotation="haar")
    with pytest.raises(TypeError, match="clip must be a number"):
        STAGES[name](1.0, bound, 10)


@every_mechanism
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.deep
def test_stage_sum_and_curve_of_one_description_are_those_made_by_hand(name, learns):
    updates = make_updates(20)
    options: dict[str, Any] = {"bits": 18, "smallest_cohort": 12, "largest_cohort": 21}
    options |= {"rotation": "dft", "beta": 0.1, "wrap_probability": 1e-3}
    clip = fedagg.quantile_bound(0.4, 0.3, 0.7) if learns else 0.4
    learnt: dict[str, Any] = {}
    if learns:
        options["count_stddev"] = 2.0
        learnt = {"target_quantile": 0.3, "learning_rate": 0.7}
    noise = MECHANISMS[name](0.5, clip, 20, **options)
    stage = STAGES[name](0.5, 0.4, 20, **options, **learnt)
    before = fedagg.zeroing(30.0, counted=False)

    alone = first_round_compiled(fedagg.aggregator(noise.stage()), *updates, KEY)
    hidden = first_round_compiled(
        fedagg.aggregator(noise.secure_sum(before)), *updates, KEY
    )
    curve = noise.curve(TEMPLATE)

    by_hand = first_round_compiled(fedagg.aggregator(stage), *updates, KEY)
    assert_same(alone, by_hand)
    by_hand = secured(fedagg.chain(before, stage), 18, 21)
    assert_same(hidden, first_round_compiled(by_hand, *updates, KEY))
    learnt.pop("learning_rate", None)
    of_stage = CURVES[name](TEMPLATE, 0.5, 20, **options, **learnt)
    assert all(curve(a, 2.0) == of_stage(a, 2.0) for a in (2, 9, 100))


@every_mechanism
def test_the_options_that_are_passed_on_are_those_of_skellam(name):
    parameters = inspect.signature(fedagg.skellam).parameters
    passed_on = {
        x: p for x, p in parameters.items() if p.kind is p.KEYWORD_ONLY and x != "name"
    }

    types = get_type_hints(Settings)
    assert types == {x: get_type_hints(fedagg.skellam)[x] for x in passed_on}
    misspelt: dict[str, Any] = {"bit": 3}
    for makes in (MECHANISMS[name], STAGES[name], CURVES[name]):
        with pytest.raises(TypeError, match="unexpected keyword argument 'bit'"):
            makes(1.0, 1.0, 40, **misspelt)


@every_mechanism
def test_a_mechanism_prints_as_its_call_and_so_does_what_it_makes(name):
    noise = MECHANISMS[name](1.0, fedagg.quantile_bound(0.1, 0.5, 0.2), 100, bits=18)

    call = f"{name.removesuffix('_noise')}(1.0, quantile_bound(0.1, 0.5, 0.2), 100, "
    assert repr(noise) == f"{call}bits=18)"
    assert repr(noise.stage()) == f"{call}bits=18).stage()"
    hidden = noise.secure_sum(fedagg.zeroing(2.0, counted=False))
    assert repr(hidden) == f"{call}bits=18).secure_sum(zeroing(2.0, counted=False))"
    assert repr(STAGES[name](1.0, 1.0, 10)) == f"{name}(1.0, 1.0, 10)"
    assert noise.stage().traits.is_private and hidden.traits.is_secret


@pytest.mark.deep
def test_a_learnt_clip_is_divided_by_the_public_number_unless_it_has_its_own():
    updates = make_updates(9)
    cohort = {"smallest_cohort": 5, "largest_cohort": 12}

    def clip_after(**own: Any) -> float:
        clip = fedagg.quantile_bound(2.0, 0.5, 1.0, geometric_update=False, **own)
        noise = fedagg.skellam(0.0, clip, 12, bits=24, **cohort)
        aggregator = fedagg.aggregator(noise.stage())
        return float(first_round_compiled(aggregator, *updates, KEY).state[0].clip)

    norms = [
        np.linalg.norm(np.concatenate([np.ravel(x[i]) for x in updates.value.values()]))
        for i in range(9)
    ]
    centred = sum(0.5 if x <= 2.0 else -0.5 for x in norms)
    assert math.isclose(clip_after(), 2.0 - centred / 12, rel_tol=1e-6)
    own = clip_after(expected_num_clients=9)
    assert math.isclose(own, 2.0 - centred / 9, rel_tol=1e-6)


def test_a_clip_that_learns_from_more_than_a_bit_is_refused():
    bound = fedagg.quantile_bound(1.0, 0.5, 0.1)._replace(note=lambda shared, x: x)

    with pytest.raises(ValueError, match="report one bit each"):
        fedagg.skellam(1.0, bound, 40)


@every_mechanism
@pytest.mark.deep
def test_the_recipe_is_zeroing_and_noise_under_a_secure_sum(name):
    updates = make_updates(41)
    updates = updates._replace(
        value=jax.tree.map(lambda x: x.at[2].set(math.nan), updates.value)
    )
    recipe = fedagg.distributed_dp_aggregator(
        0.5,
        40,
        18,
        zeroing=True,
        without_guarantee=True,
        mechanism=name.removesuffix("_noise"),
        rotation="dft",
        smallest_cohort=30,
        largest_cohort=45,
    )
    zeroing = fedagg.zeroing(
        fedagg.quantile_bound(10.0, 0.98, math.log(10.0), multiplier=2.0, increment=1.0)
    )
    noise = STAGES[name](
        0.5,
        0.1,
        40,
        bits=18,
        smallest_cohort=30,
        largest_cohort=45,
        target_quantile=0.5,
        learning_rate=0.2,
        rotation="dft",
    )

    got = first_round_compiled(recipe, *updates, KEY)
    zeroing = fedagg.without_guarantee(zeroing)
    by_hand = secured(fedagg.chain(zeroing, fedagg.chain(), noise), 18, 45)
    expected = first_round_compiled(by_hand, *updates, KEY)

    assert_same(got, expected)
    assert got.metrics["zeroing/count"] >= 1.0
    assert got.metrics[f"{name}/is_released"] == 1.0
    assert_close(got.metrics[f"{name}/clip"], np.float64(0.1))
    alone = fedagg.distributed_dp_aggregator(0.5, 41)
    metrics = jax.eval_shape(
        lambda: first_round(alone, *updates, jax.random.key(0))
    ).metrics
    assert not any(x.startswith("zeroing") for x in metrics)
    assert "skellam_noise/clip" in metrics


def test_the_recipe_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="one of skellam, discrete_gaussian, got mech"):
        fedagg.distributed_dp_aggregator(0.5, 40, mechanism="binomial")
    with pytest.raises(ValueError, match="a twentieth of clients_per_round"):
        fedagg.distributed_dp_aggregator(1.0, 10)
    with pytest.raises(ValueError, match="bits must be a whole number, 2 to 32"):
        fedagg.distributed_dp_aggregator(0.5, 40, 40)
