"""Groups of leaves, against their stages by themselves, NumPy and dp-accounting."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from tests.helpers import WAYS, assert_close, assert_same, first_round_compiled

N = 7
DRAW = np.random.default_rng(4)
SIZES = DRAW.uniform(0.1, 5.0, (N, 1))
WEIGHTS = jnp.asarray(DRAW.integers(1, 9, N), jnp.float32)


def drawn(*shape: int) -> jax.Array:
    values = DRAW.normal(size=(N, math.prod(shape))) * SIZES
    return jnp.asarray(values.reshape(N, *shape), jnp.float32)


VALUES = {
    "embedding": {"table": drawn(5, 2)},
    "layers": [{"bias": drawn(3), "kernel": drawn(2, 3)}, {"kernel": drawn(3, 1)}],
}
TEMPLATE = jax.tree.map(lambda x: x[0], VALUES)


def norms() -> fedagg.Bound:
    return fedagg.quantile_bound(1.0, 0.8, 0.2)


def robust() -> fedagg.Stage:
    return fedagg.chain(
        fedagg.zeroing(4.0, keep_weight=False),
        fedagg.clipping(norms()),
        fedagg.mean(),
    )


def usual() -> fedagg.Stage:
    return fedagg.chain(fedagg.clipping(0.5), fedagg.mean(weighted=False))


def rounds(stage: fedagg.Stage, values: Any, count: int = 2) -> list[fedagg.Output]:
    aggregator = fedagg.aggregator(stage)
    state, outputs = aggregator.init(jax.tree.map(lambda x: x[0], values)), []
    next_round = jax.jit(aggregator.next)
    for i in range(count):
        scaled = jax.tree.map(lambda x, i=i: x * (i + 1.0), values)
        outputs.append(next_round(state, scaled, WEIGHTS))
        state = outputs[-1].state
    return outputs


def value_of(stage: fedagg.Stage, values: Any = VALUES, key: Any = None) -> Any:
    return first_round_compiled(fedagg.aggregator(stage), values, WEIGHTS, key).value


def test_each_group_is_what_its_stage_makes_of_it_alone():
    stage = fedagg.grouped({"embedding/*": robust(), "*": usual()})

    together = rounds(stage, VALUES)

    parts = {"embedding/*": VALUES["embedding"], "*": VALUES["layers"]}
    stages = {"embedding/*": robust(), "*": usual()}
    for name, part in parts.items():
        for got, alone in zip(together, rounds(stages[name], part), strict=True):
            at = "embedding" if name == "embedding/*" else "layers"
            assert_close(got.value[at], alone.value)
            for metric, x in alone.metrics.items():
                assert_close(got.metrics[f"{name}/{metric}"], x)
    assert float(together[0].metrics["embedding/*/zeroing/count"]) > 0


def test_each_layer_has_a_clip_of_its_own():
    clips = {"embedding/*": 0.7, "layers/0/*": 0.2, "layers/1/*": 1.5}
    per_layer = fedagg.grouped({x: fedagg.clipping(c) for x, c in clips.items()})

    value = value_of(fedagg.chain(per_layer, fedagg.mean()))

    layers = [VALUES["embedding"], *VALUES["layers"]]
    got = [value["embedding"], *value["layers"]]
    shares = np.asarray(WEIGHTS, float) / np.asarray(WEIGHTS, float).sum()
    for layer, mine, clip in zip(layers, got, clips.values(), strict=True):
        rows = [np.asarray(x, float).reshape(N, -1) for x in jax.tree.leaves(layer)]
        vectors = np.concatenate(rows, axis=1)
        size = np.linalg.norm(vectors, axis=1, keepdims=True)
        expected = shares @ (vectors * np.minimum(1.0, clip / size))
        flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(mine)])
        np.testing.assert_allclose(flat, expected, rtol=1e-5, atol=1e-6)


def test_a_mean_after_the_groups_is_one_in_each():
    clips = {"embedding/*": fedagg.clipping(0.7), "*": fedagg.clipping(0.2)}
    means = {x: fedagg.chain(clip, fedagg.mean()) for x, clip in clips.items()}

    after = value_of(fedagg.chain(fedagg.grouped(clips), fedagg.mean()))

    assert_close(after, value_of(fedagg.grouped(means)))


def test_what_is_left_out_is_zero_and_not_sent():
    stage = fedagg.grouped({"*/bias": None, "*": fedagg.mean()})
    held = jax.tree.map(lambda x: x, VALUES)
    held["layers"][0]["bias"] = jnp.full_like(held["layers"][0]["bias"], jnp.nan)

    value = value_of(stage, held)

    expected = value_of(fedagg.mean())
    expected["layers"][0]["bias"] = jnp.zeros(3)
    assert_close(value, expected)
    bias = 3 * 32
    whole = fedagg.message_bits(fedagg.grouped({"*": fedagg.mean()}), TEMPLATE)
    assert fedagg.message_bits(stage, TEMPLATE) == whole - bias
    assert not any("bias" in x.part for x in fedagg.server_view(stage, TEMPLATE).parts)


@pytest.mark.deep
def test_a_training_leaves_batch_statistics_out_of_the_norm():
    stage = fedagg.grouped(
        {
            "batch_stats/*": fedagg.mean(),
            "params/*": fedagg.chain(fedagg.clipping(1.0), fedagg.mean()),
        }
    )
    model = {"params": {"w": jnp.zeros(2)}, "batch_stats": {"mean": jnp.zeros(3)}}

    def work(model, row, key):
        return {
            "params": {"w": row},
            "batch_stats": {"mean": jnp.full(3, 100.0)},
        }, {}

    training = fedagg.federated_averaging(
        work, optax.sgd(1.0), fedagg.aggregator(stage)
    )
    data = jnp.array([[3.0, 4.0], [0.0, 0.5]])

    output = training.next(training.init(model), data)

    np.testing.assert_allclose(output.value["params"]["w"], [0.3, 0.65], rtol=1e-6)
    np.testing.assert_allclose(output.value["batch_stats"]["mean"], 100.0, rtol=1e-6)


@pytest.mark.parametrize(
    "labels",
    [
        {"embedding": "a", "layers": [{"bias": "b", "kernel": "b"}, "c"]},
        lambda value: {"embedding": "a", "layers": ["b", "c"]},
    ],
    ids=["tree", "function"],
)
def test_labels_stand_for_patterns(labels):
    clips = [0.7, 0.2, 1.5]
    patterns = dict(zip(["embedding/*", "layers/0/*", "*"], clips, strict=True))
    names = dict(zip("abc", clips, strict=True))

    labelled = fedagg.grouped({x: fedagg.clipping(c) for x, c in names.items()}, labels)

    by_path = fedagg.grouped({x: fedagg.clipping(c) for x, c in patterns.items()})
    assert_same(value_of(labelled), value_of(by_path))


def test_the_first_pattern_that_matches_takes_a_leaf():
    tiny, wide = fedagg.clipping(1e-3), fedagg.clipping(1e3)

    first = value_of(fedagg.grouped({"*/kernel": tiny, "layers/*": wide, "*": wide}))

    assert abs(first["layers"][0]["kernel"]).max() < 0.01
    assert abs(first["layers"][0]["bias"]).max() > 0.1


@pytest.mark.parametrize(
    ("groups", "labels", "message"),
    [
        (
            {"layers/*": fedagg.mean()},
            None,
            "groups: embedding/table is in none; .*'*'",
        ),
        (
            {"x/*": None, "*": fedagg.mean()},
            None,
            r"no leaf is in 'x/\*'; there are emb",
        ),
        ({"*": fedagg.mean(), "layers/*": None}, None, "no leaf is in 'layers"),
        ({"a": fedagg.mean()}, {"embedding": "a", "layers": "b"}, "none but 'b'"),
        ({"a": fedagg.mean()}, {"embedding": "a"}, "labels: expected names in a tree"),
    ],
)
def test_a_leaf_without_a_group_and_a_group_without_a_leaf_are_named(
    groups, labels, message
):
    aggregator = fedagg.aggregator(fedagg.grouped(groups, labels))

    with pytest.raises(ValueError, match=message):
        aggregator.init(TEMPLATE)


def test_what_is_no_group_is_refused():
    number: Any = {1: fedagg.mean()}
    no_stage: Any = {"*": 1.0}

    with pytest.raises(ValueError, match="expected a stage for one of them"):
        fedagg.grouped({"*": None})
    with pytest.raises(TypeError, match="expected strings as names, got 1"):
        fedagg.grouped(number)
    with pytest.raises(TypeError, match="expected a Stage or None, '\\*' has 1.0"):
        fedagg.grouped(no_stage)


def test_a_stage_that_changes_what_the_sum_is_like_is_named():
    longer = fedagg.Stage.stateless(
        lambda update, key: (update, ()), lambda total, note, key: ((total, 1.0), {})
    )

    with pytest.raises(ValueError, match="groups: .* of '\\*' returns another struct"):
        value_of(fedagg.grouped({"*": longer}))


def test_a_client_that_is_set_aside_in_a_sum_adds_nothing_to_it():
    def client(update, key):
        del key
        is_far = update.value["a"] > 5.0
        return update._replace(weight=jnp.where(is_far, 0.0, update.weight)), ()

    strict = fedagg.Stage.stateless(client, traits=fedagg.Traits("strict"))
    aggregator = fedagg.aggregator(fedagg.grouped({"a": strict, "b": fedagg.mean()}))
    updates = {"a": jnp.array([1.0, 9.0, 3.0]), "b": jnp.array([1.0, 2.0, 6.0])}

    value = aggregator.next(aggregator.init({"a": 0.0, "b": 0.0}), updates).value

    assert value == {"a": 4.0, "b": 3.0}


def test_draws_of_groups_are_off_as_those_of_their_own_leaves():
    def off(stage, template):
        aggregator = fedagg.aggregator(stage)
        plan = fedagg.guarantee(aggregator, template, 4, 1e-6, neighbors="zero_out")
        known = [x.draw_error for x in plan.mechanisms if x.draw_error is not None]
        return [draw_error(template) for draw_error in known]

    noise = fedagg.gaussian_noise(2.0, 1.0, 10.0)
    template = {"a": jnp.zeros(30), "b": jnp.zeros((5, 4))}

    errors = off(fedagg.grouped({"a": noise, "b": noise}), template)
    alone = [*off(noise, template["a"]), *off(noise, template["b"])]

    assert errors == alone and errors[0] > errors[1] > 0.0


@pytest.mark.parametrize("compressor", [None, fedagg.top_k(1.0)], ids=["", "coded"])
def test_a_client_that_a_group_sets_aside_stays_in_the_others(compressor):
    dropping = [fedagg.zeroing(2.0, keep_weight=False), fedagg.mean()]
    dropping += [] if compressor is None else [compressor]
    groups = {"embedding/*": fedagg.chain(*dropping), "*": fedagg.mean()}
    held = jax.tree.map(lambda x: x, VALUES)
    held["embedding"]["table"] = held["embedding"]["table"].at[2].set(jnp.nan)

    value = value_of(fedagg.grouped(groups), held)

    table = np.asarray(held["embedding"]["table"], float)
    kept = np.abs(table).max(axis=(1, 2)) <= 2.0
    weights = np.where(kept, np.asarray(WEIGHTS), 0.0)
    expected = np.einsum("n,nij->ij", weights, np.where(kept[:, None, None], table, 0))
    assert 0 < kept.sum() < N - 1
    np.testing.assert_allclose(
        value["embedding"]["table"], expected / weights.sum(), rtol=1e-5
    )
    assert_close(value["layers"], value_of(fedagg.mean())["layers"])


def test_a_client_is_absent_after_the_groups_if_each_set_it_aside():
    dropping = fedagg.zeroing(2.0, keep_weight=False)
    groups = fedagg.grouped({"embedding/*": dropping, "*": dropping})
    clients = {"embedding": {"table": jnp.array([[1.0], [9.0], [9.0]])}}
    clients["layers"] = {"kernel": jnp.array([[1.0], [1.0], [9.0]])}

    output = first_round_compiled(
        fedagg.aggregator(groups, fedagg.mean(weighted=False)), clients
    )

    assert float(output.metrics["mean/weight"]) == 2.0
    assert_close(output.value["embedding"]["table"], jnp.array([0.5]))
    assert_close(output.value["layers"]["kernel"], jnp.array([1.0]))


def noise(multiplier: float, clip: float = 1.0) -> fedagg.Stage:
    return fedagg.gaussian_noise(multiplier, clip, float(N))


@pytest.mark.deep
def test_two_private_groups_cost_what_both_gaussians_cost():
    dp: Any = pytest.importorskip("dp_accounting")
    stage = fedagg.grouped({"embedding/*": noise(1.5, 0.2), "*": noise(3.0, 7.0)})

    got = fedagg.guarantee(stage, TEMPLATE, 20, 1e-5, neighbors="add_or_remove")

    both = dp.ComposedDpEvent([dp.GaussianDpEvent(1.5), dp.GaussianDpEvent(3.0)])
    expected = dp.pld.PLDAccountant().compose(both, 20).get_epsilon(1e-5)
    np.testing.assert_allclose(got.epsilon, expected, rtol=1e-4)


def test_noise_split_over_groups_costs_what_it_cost_in_one():
    pytest.importorskip("dp_accounting")
    names = ["embedding/*", "layers/0/*", "*"]
    split = fedagg.grouped({x: noise(2.0 * 3**0.5, 0.1) for x in names})

    def spent(stage: fedagg.Stage) -> float:
        sampler = fedagg.poisson(0.1)
        return fedagg.guarantee(
            *(stage, TEMPLATE, 20, 1e-5),
            neighbors="add_or_remove",
            participation=sampler,
        ).epsilon

    np.testing.assert_allclose(spent(split), spent(noise(2.0)), rtol=1e-6)


def test_integers_of_groups_are_accounted_by_curves_of_their_parts():
    pytest.importorskip("dp_accounting")

    def noise(multiplier: float) -> fedagg.Stage:
        return fedagg.skellam_noise(
            multiplier, 1.0, 8, bits=16, smallest_cohort=5, largest_cohort=20
        )

    def spent(stage: fedagg.Stage, template: Any) -> float:
        return fedagg.guarantee(stage, template, 10, 1e-5, neighbors="zero_out").epsilon

    template = {"a": jnp.zeros(1000), "b": jnp.zeros(3)}
    of_a = spent(fedagg.grouped({"a": noise(0.5), "b": None}), template)
    of_both = spent(fedagg.grouped({"a": noise(0.5), "b": noise(8.0)}), template)

    np.testing.assert_allclose(of_a, spent(noise(0.5), template["a"]), rtol=1e-6)
    assert of_a < of_both < 1.05 * of_a


@pytest.mark.deep
def test_noise_is_independent_in_groups_and_of_the_size_of_each():
    clients = {"a": jnp.zeros((1, 4000)), "b": jnp.zeros((1, 4000))}
    stage = fedagg.grouped({"a": noise(1.0, 0.7), "b": noise(2.0, 7.0)})

    value = first_round_compiled(
        fedagg.aggregator(stage), clients, None, jax.random.key(5)
    ).value

    for name, deviation in {"a": 0.7 / N, "b": 14.0 / N}.items():
        np.testing.assert_allclose(np.std(value[name]), deviation, rtol=0.05)
    assert abs(np.corrcoef(value["a"], value["b"])[0, 1]) < 0.06


def test_a_group_without_noise_beside_a_private_one_is_refused():
    with pytest.raises(ValueError, match="groups: '\\*' has no noise, and beside 'emb"):
        fedagg.grouped({"embedding/*": noise(1.0), "*": fedagg.mean()})

    left_out = fedagg.grouped({"embedding/*": noise(1.0), "*": None})
    fedagg.aggregator(left_out).init(TEMPLATE)
    meant = fedagg.without_guarantee(fedagg.mean())
    told = fedagg.aggregator(fedagg.grouped({"embedding/*": noise(1.0), "*": meant}))
    told.init(TEMPLATE)
    with pytest.raises(ValueError, match="without_guarantee, so that there is none"):
        fedagg.guarantee(told, TEMPLATE, 1, 1e-5, neighbors="zero_out")


@pytest.mark.parametrize("is_around", [True, False])
@pytest.mark.deep
def test_a_secure_sum_of_groups_or_in_each_is_their_sum(is_around):
    def secret(stage: fedagg.Stage) -> fedagg.Stage:
        return fedagg.secure_sum(stage, 50.0, largest_cohort=20, largest_weight=9.0)

    groups = {"embedding/*": usual(), "*/bias": None, "*": robust()}
    if is_around:
        stage = secret(fedagg.grouped(groups))
    else:
        each = {x: None if y is None else secret(y) for x, y in groups.items()}
        stage = fedagg.grouped(each)

    value = value_of(stage)

    assert_close(value, value_of(fedagg.grouped(groups)), rtol=1e-4)
    view = fedagg.server_view(stage, TEMPLATE)
    assert {x.how for x in view.parts} == {"secure sum modulo 2**32"}


def test_a_rule_combines_what_groups_send():
    stage = fedagg.grouped(
        {"embedding/*": fedagg.clipping(0.5), "*/bias": None, "*": fedagg.clipping(2.0)}
    )

    value = first_round_compiled(
        fedagg.combining(fedagg.median(), stage), VALUES, WEIGHTS
    ).value

    table = np.asarray(VALUES["embedding"]["table"], float)
    size = np.linalg.norm(table.reshape(N, -1), axis=1)[:, None, None]
    expected = np.median(table * np.minimum(1.0, 0.5 / size), axis=0)
    np.testing.assert_allclose(value["embedding"]["table"], expected, rtol=1e-5)
    assert_same(value["layers"][0]["bias"], jnp.zeros(3))


@pytest.mark.deep
def test_error_feedback_keeps_a_memory_of_all_groups():
    stage = fedagg.grouped({"embedding/*": fedagg.top_k(1.0), "*": fedagg.chain()})
    aggregator = fedagg.with_error_feedback(stage, N)

    output = first_round_compiled(
        fedagg.aggregator(fedagg.mean(weighted=False)), VALUES
    )
    fed_back = aggregator.next(aggregator.init(TEMPLATE), (VALUES, jnp.arange(N)))

    assert_close(fed_back.value, output.value)


@pytest.mark.parametrize("name", ["e*", "*"])
def test_a_client_that_a_group_refuses_keeps_its_memory(name):
    groups = {"e*": fedagg.chain(), "*": fedagg.chain()}
    groups |= {name: fedagg.zeroing(1.0)}
    aggregator = fedagg.aggregator(fedagg.grouped(groups))
    rows = {"embedding": jnp.array([0.5, 2.0]), "w": jnp.array([0.5, 2.0])}

    _, kept = first_round_compiled(
        *(aggregator, rows, None),
        work=lambda row, key, memory: (row, {}, memory + 1.0),
        memory=jnp.zeros(2),
    )

    assert_same(kept, jnp.array([1.0, 0.0]))


@pytest.mark.deep
def test_metrics_of_work_come_out_of_a_private_group_with_noise():
    metrics = fedagg.noised_metrics(0.01, {"loss": 1.0}, 2.0)
    stage = fedagg.grouped({"a": fedagg.chain(metrics, noise(1.0)), "b": noise(1.0)})
    rows = {"a": jnp.array([0.2, 0.4]), "b": jnp.zeros(2)}

    output = first_round_compiled(
        *(fedagg.aggregator(stage), rows, None, jax.random.key(0)),
        work=lambda row, key: (row, {"loss": row["a"], "other": row["b"]}),
    )

    np.testing.assert_allclose(output.metrics["a/loss"], 0.3, atol=0.05)
    assert not any("other" in x for x in output.metrics)


@pytest.mark.parametrize("way", ["one_by_one", "across"])
def test_groups_that_code_sum_in_every_way(way):
    stage = fedagg.grouped(
        {
            "embedding/*": fedagg.chain(
                fedagg.zeroing(2.0, keep_weight=False),
                fedagg.mean(),
                fedagg.quantization(4, threshold=0),
            ),
            "*": fedagg.mean(),
        }
    )

    def value(sum_over: Any) -> Any:
        aggregator = fedagg.aggregator(stage, sum_over=sum_over)
        return first_round_compiled(
            aggregator, VALUES, WEIGHTS, jax.random.key(1)
        ).value

    assert_close(value(WAYS[way]()), value(fedagg.at_once()))
