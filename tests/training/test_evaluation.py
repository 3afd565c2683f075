"""Evaluation on clients' held-out examples, against NumPy over each client's own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from fedagg import metrics
from tests.compiling import jit

RANDOM = np.random.default_rng(0)
SIZES = [5, 0, 40, 17, 3, 9, 1, 12]
DATA = [
    (RANDOM.normal(size=(m, 4)).astype(np.float32), RANDOM.integers(0, 3, m))
    for m in SIZES
]
MODEL = RANDOM.normal(size=(4, 3)).astype(np.float32)
HAS = np.array(SIZES) > 0
CROSS_ENTROPY = optax.softmax_cross_entropy_with_integer_labels


def predict(variables, inputs):
    return inputs @ variables


def make(names=("accuracy", "loss"), aggregator=None, **options):
    known = {
        "accuracy": metrics.accuracy(),
        "loss": metrics.mean_loss(CROSS_ENTROPY),
        "confusion": metrics.confusion_matrix(3),
        "auc": metrics.auc(),
    }
    asked = {name: known[name] for name in names}
    aggregator = aggregator or fedagg.aggregator()
    return fedagg.federated_evaluation(predict, asked, aggregator, **options)


def table():
    return fedagg.ClientTable.of(DATA)


def evaluated(evaluation, data, model=MODEL, weights=None, key=None):
    return jit(evaluation.next)(evaluation.init((model, data)), data, weights, key)


def accuracy_by_hand(inputs, targets, model=MODEL):
    if not len(targets):
        return np.nan
    return np.mean(np.argmax(inputs.astype(np.float64) @ model, axis=1) == targets)


def loss_by_hand(inputs, targets, model=MODEL):
    logits = inputs.astype(np.float64) @ model
    picked = logits[np.arange(len(targets)), targets]
    losses = np.log(np.sum(np.exp(logits), axis=1)) - picked
    return np.mean(losses) if len(targets) else np.nan


BY_HAND = {"accuracy": accuracy_by_hand, "loss": loss_by_hand}


def spread_by_hand(values):
    values = np.sort(values[np.isfinite(values)])
    tenth = -(-len(values) // 10)
    found = {f"percentile_{q}": np.percentile(values, q) for q in (10, 50, 90)}
    found["lowest_tenth"] = values[:tenth].mean()
    found["highest_tenth"] = values[-tenth:].mean()
    return found | {"by_client": values.mean()}


def test_totals_are_by_example_and_the_rest_is_over_clients():
    evaluation = make(batch_size=8, per_client=True)

    _, value, found = evaluated(evaluation, table())

    together = [np.concatenate(x) for x in zip(*DATA, strict=True)]
    for name, by_hand in BY_HAND.items():
        each = np.array([by_hand(*own) for own in DATA])
        np.testing.assert_allclose(value.clients[name], each, rtol=1e-5)
        np.testing.assert_allclose(found[name], by_hand(*together), rtol=1e-5)
        assert found[name] == value.total[name]
        for statistic, expected in spread_by_hand(each).items():
            np.testing.assert_allclose(found[f"{name}/{statistic}"], expected, 1e-5)
        assert found[f"{name}/not_finite"] == 0
    assert int(found["evaluation/clients"]) == HAS.sum()
    assert found["evaluation/examples"] == sum(SIZES)


WAYS = {
    "at once": fedagg.at_once,
    "chunks": lambda: fedagg.in_chunks(3),
    "devices": lambda: fedagg.across(jax.make_mesh((2,), ("clients",))),
}


@pytest.mark.deep
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_every_way_to_sum_and_padded_rows_say_the_same(way):
    names = ("accuracy", "loss", "confusion")
    data, _ = fedagg.pad_clients(DATA)
    expected = evaluated(make(names, per_client=True), table())

    by_way = make(names, fedagg.aggregator(sum_over=way()), per_client=True)
    found = evaluated(by_way, table())
    padded = evaluated(by_way, data)

    for output in (found, padded):
        for x, y in zip(
            jax.tree.leaves(output), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(x, y, rtol=1e-5)


def test_who_is_absent_or_has_no_examples_says_nothing():
    evaluation = make(per_client=True)
    weights = np.array([3.0, 1.0, 0.0, 2.0, np.nan, 1.0, 0.0, 5.0])
    left = [DATA[i] for i in (0, 3, 5, 7)]

    found = evaluated(evaluation, table(), weights=weights)
    alone = evaluated(evaluation, fedagg.ClientTable.of(left))

    for name, x in alone.metrics.items():
        np.testing.assert_allclose(found.metrics[name], x, rtol=1e-6)
    says = np.isfinite(found.value.clients["loss"])
    assert np.nonzero(says)[0].tolist() == [0, 3, 5, 7]


@pytest.mark.deep
def test_without_anybody_there_is_no_number():
    output = evaluated(make(), table(), weights=np.zeros(8))

    assert np.isnan(output.value.total["loss"])
    assert np.isnan(output.metrics["loss/percentile_50"])
    assert np.isnan(output.metrics["accuracy/lowest_tenth"])
    assert output.metrics["evaluation/clients"] == 0


@pytest.mark.parametrize("is_secure", [False, True])
def test_what_is_not_finite_is_shown_and_counted(is_secure):
    data = [*DATA]
    data[3] = (np.full((17, 4), np.nan, np.float32), DATA[3][1])
    stage = fedagg.secure_sum(fedagg.chain(), 1024.0, largest_cohort=8)
    evaluation = make(
        ("accuracy", "loss"),
        fedagg.aggregator(stage) if is_secure else fedagg.aggregator(),
    )

    output = evaluated(evaluation, fedagg.ClientTable.of(data))

    rest = np.array([loss_by_hand(*own) for i, own in enumerate(data) if i != 3])
    assert np.isnan(output.metrics["loss"])
    assert round(float(output.metrics["loss/not_finite"]), 4) == 1
    np.testing.assert_allclose(
        output.metrics["loss/by_client"], np.nanmean(rest), rtol=1e-4
    )
    # The other metric has a number of this client: all of its outputs are wrong.
    together = [np.concatenate(x) for x in zip(*data, strict=True)]
    right = np.argmax(np.nan_to_num(together[0], nan=0.0) @ MODEL, axis=1)
    right = (right == together[1]) & np.isfinite(together[0][:, 0])
    np.testing.assert_allclose(output.metrics["accuracy"], right.mean(), rtol=1e-4)
    assert not is_secure or output.metrics["secure_sum/left_out_count"] == 0


@pytest.mark.deep
def test_what_has_no_value_for_a_client_alone_has_one_for_all():
    data = [(x[:, 0], (y > 0).astype(int)) for x, y in DATA]
    evaluation = fedagg.federated_evaluation(
        lambda variables, inputs: variables * inputs,
        {"auc": metrics.auc()},
        fedagg.aggregator(),
        per_client=True,
    )

    output = evaluated(evaluation, fedagg.ClientTable.of(data), jnp.float32(2.0))

    of_two_classes = np.array([len(np.unique(y)) == 2 for _, y in data])
    assert (np.isfinite(output.value.clients["auc"]) == of_two_classes).all()
    assert np.isfinite(output.metrics["auc"])
    assert int(output.metrics["auc/not_finite"]) == (HAS & ~of_two_classes).sum() > 0


def test_percentiles_under_a_secure_sum_come_from_histograms():
    stage = fedagg.secure_sum(fedagg.chain(), 1024.0, largest_cohort=8)
    edges = np.linspace(0, 1, 41)
    secure = make(
        aggregator=fedagg.aggregator(stage), bins={"accuracy": edges}, per_client=True
    )

    output = evaluated(secure, table())

    each = np.array([accuracy_by_hand(*own) for own in DATA])[HAS]
    expected = spread_by_hand(each)
    counts, _ = np.histogram(each, edges)
    np.testing.assert_allclose(
        output.value.histograms["accuracy"], counts, rtol=0, atol=1e-4
    )
    # Half of the mass is by half of 7 clients, which is the fourth.
    assert abs(output.metrics["accuracy/percentile_50"] - np.median(each)) < 1 / 40
    for statistic in ("lowest_tenth", "highest_tenth"):
        found = output.metrics[f"accuracy/{statistic}"]
        assert abs(found - expected[statistic]) < 1 / 40
    assert output.value.clients is None
    assert "loss/percentile_50" not in output.metrics
    np.testing.assert_allclose(
        output.metrics["accuracy"],
        accuracy_by_hand(*(np.concatenate(x) for x in zip(*DATA, strict=True))),
        rtol=1e-4,
    )


@pytest.mark.deep
def test_histograms_of_many_clients_are_within_a_bin_of_sorted_ones():
    from fedagg._training.over_clients import in_bins, spread, spread_of_histogram

    values = RANDOM.beta(0.7, 0.4, 500).astype(np.float32)
    edges = np.linspace(0, 1, 51)
    percentiles = (1.0, 10.0, 33.0, 50.0, 90.0, 99.0)

    counts = jnp.sum(jax.vmap(lambda x: in_bins(x, jnp.asarray(edges)))(values), axis=0)
    rough = spread_of_histogram(counts, edges, percentiles)
    exact = spread(jnp.asarray(values), percentiles)

    np.testing.assert_array_equal(counts, np.histogram(values, edges)[0])
    for name, x in exact.items():
        assert abs(rough[name] - x) < 1 / 50
        if name.startswith("percentile"):
            q = float(name.removeprefix("percentile_"))
            np.testing.assert_allclose(x, np.percentile(values, q), rtol=1e-5)


def local(**options):
    return fedagg.local_training(
        lambda variables, examples, key: (
            CROSS_ENTROPY(predict(variables, examples[0]), examples[1]),
            {},
        ),
        optax.sgd(0.5),
        **options,
    )


def trained_by_hand(model, inputs, targets):
    if not len(targets):
        return model
    inputs = inputs.astype(np.float64)
    large = np.exp(inputs @ model)
    wrong = large / large.sum(axis=1, keepdims=True) - np.eye(3)[targets]
    return model - 0.5 * inputs.T @ wrong / len(targets)


def test_before_and_after_training_on_other_examples():
    evaluation = make(after=local(), per_client=True)
    data = {"held_out": table(), "training": table()[::-1]}

    output = evaluated(evaluation, data)

    trained = [trained_by_hand(MODEL, *own) for own in DATA[::-1]]
    before = [loss_by_hand(*own) for own in DATA]
    after = [loss_by_hand(*own, x) for own, x in zip(DATA, trained, strict=True)]
    np.testing.assert_allclose(output.value.clients["before/loss"], before, rtol=1e-5)
    np.testing.assert_allclose(output.value.clients["after/loss"], after, rtol=1e-4)
    np.testing.assert_allclose(
        output.metrics["after/loss/by_client"], np.nanmean(after), rtol=1e-4
    )


def test_personal_models_are_made_of_what_clients_keep():
    evaluation = make(personal=lambda model, own: model + own, per_client=True)
    memory = RANDOM.normal(size=(8, 4, 3)).astype(np.float32)

    output = evaluated(evaluation, {"held_out": table(), "memory": memory})

    expected = [
        loss_by_hand(*own, MODEL + x) for own, x in zip(DATA, memory, strict=True)
    ]
    np.testing.assert_allclose(output.value.clients["loss"], expected, rtol=1e-5)


@pytest.mark.deep
def test_work_that_remembers_trains_from_the_model_and_the_memory():
    def work(variables, row, key, memory):
        change, found = local()(variables + memory, row, key)
        return 0.0 * variables, found, memory + change

    evaluation = make(
        after=fedagg.RememberingWork(lambda x: 0.0 * x, work),
        personal=lambda model, own: model + own,
        per_client=True,
    )
    memory = RANDOM.normal(size=(8, 4, 3)).astype(np.float32)
    data = {"held_out": table(), "training": table(), "memory": memory}

    output = evaluated(evaluation, data)

    expected = [
        loss_by_hand(*own, trained_by_hand(MODEL + x, *own))
        for own, x in zip(DATA, memory, strict=True)
    ]
    np.testing.assert_allclose(output.value.clients["after/loss"], expected, rtol=1e-4)


@pytest.mark.deep
def test_the_steps_say_what_the_round_says():
    evaluation = make(bins={"accuracy": np.linspace(0, 1, 11)})
    state, rows = evaluation.init((MODEL, table())), table()
    whole = evaluated(evaluation, rows)

    shared, total = evaluation.steps.broadcast(state), None
    for i in range(len(rows)):
        message = evaluation.steps.client(shared, rows[i])
        if HAS[i]:  # the others are absent, and send nothing
            total = evaluation.steps.add(total, message)
    output = evaluation.steps.server(state, total)

    assert output.value.clients is None
    for name, x in output.metrics.items():
        np.testing.assert_allclose(x, whole.metrics[name], rtol=1e-5)


def test_a_private_evaluation_tells_of_no_client():
    private = fedagg.gaussian_noise(1e-3, 100.0, 7.0)
    evaluation = make(
        ("accuracy",), fedagg.aggregator(private), per_client=True, batch_size=8
    )

    output = evaluated(evaluation, table(), key=jax.random.key(0))

    assert output.value.clients is None
    assert "accuracy/percentile_50" not in output.metrics
    together = [np.concatenate(x) for x in zip(*DATA, strict=True)]
    assert abs(output.metrics["accuracy"] - accuracy_by_hand(*together)) < 0.05


def test_a_model_is_replaced_in_the_state_and_nothing_is_compiled_again():
    evaluation = make()
    state, data, traces = evaluation.init((MODEL, table())), table(), []

    @jax.jit
    def next(state, data):
        traces.append(1)
        return evaluation.next(state, data)

    next(state, data)
    state, value, _ = next(state._replace(variables=2 * MODEL), data[[2, 0, 3, 7] * 2])

    again = [DATA[i] for i in (2, 0, 3, 7) * 2]
    together = [np.concatenate(x) for x in zip(*again, strict=True)]
    np.testing.assert_allclose(
        value.total["loss"], loss_by_hand(*together, model=2 * MODEL), rtol=1e-5
    )
    assert len(traces) == 1


def test_a_metric_of_ones_own_is_a_few_lines():
    def sums(outputs, targets):
        near = jnp.abs(outputs[:, 0] - targets.astype(jnp.float32)) <= 1.0
        return near, jnp.ones(len(targets))

    evaluation = fedagg.federated_evaluation(
        predict, {"near": (sums, lambda x: x[0] / x[1])}, fedagg.aggregator()
    )

    output = evaluated(evaluation, table())

    inputs, targets = [np.concatenate(x) for x in zip(*DATA, strict=True)]
    near = np.abs((inputs @ MODEL)[:, 0] - targets) <= 1.0
    np.testing.assert_allclose(output.value.total["near"], near.mean(), rtol=1e-6)


def forgetful(variables, row, key, memory):
    return variables, {}, memory


remembering = fedagg.RememberingWork(jnp.zeros_like, forgetful)


def refused(asked: Any) -> None:
    evaluation = fedagg.federated_evaluation(predict, asked, fedagg.aggregator())
    evaluation.init((MODEL, table()))


REFUSED = {
    "no metrics": (lambda: make(()), TypeError, "metrics: expected a dict"),
    "no pair": (
        lambda: refused({"x": metrics.accuracy}),
        TypeError,
        "metrics: expected a pair",
    ),
    "bins of nothing": (
        lambda: make(bins={"other": [0, 1]}),
        ValueError,
        "bins: 'other' is none",
    ),
    "bins that fall": (
        lambda: make(bins={"loss": [1, 0]}),
        ValueError,
        "bins: expected edges",
    ),
    "percentiles": (lambda: make(percentiles=(101,)), ValueError, "percentiles"),
    "a rule": (
        lambda: make(aggregator=fedagg.combining(fedagg.median())),
        ValueError,
        r"aggregator: combining\(median\(\)\) makes no sum: take aggregator\(\)",
    ),
    "memories": (
        lambda: make(after=remembering),
        ValueError,
        "after: work that remembers needs personal=",
    ),
    "data": (
        lambda: make(after=local()).init((MODEL, table())),
        TypeError,
        "client_data: expected a dict of held_out, training",
    ),
    "no pair in init": (lambda: make().init(MODEL), TypeError, "init: expected a pair"),
    "state": (lambda: make().next(MODEL, table()), TypeError, "state: expected"),
    "sums": (
        lambda: refused({"x": (lambda x, y: x.sum(), lambda x: x)}),
        ValueError,
        "metrics: expected sums of 'x' for each example",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_evaluated_is_refused(name):
    call, kind, match = REFUSED[name]

    with pytest.raises(kind, match=match):
        call()
