"""Federated averaging against plain loops, and what it does with absent clients."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from tests.helpers import first_now

TRUE = np.random.default_rng(0).normal(size=(3, 2))


def make_datasets(sizes=(5, 0, 9, 1, 4)):
    draw = np.random.default_rng(1)
    inputs = [draw.normal(size=(m, 3)).astype(np.float32) for m in sizes]
    return [(x, (x @ TRUE + 1.0).astype(np.float32)) for x in inputs]


def squared_error(variables, examples, key):
    del key
    inputs, targets = examples
    outputs = inputs @ variables["params"]["w"] + variables["params"]["b"][None, :]
    return jnp.sum(jnp.square(outputs - targets), axis=-1), {}


def gradient(params, inputs, targets):
    """Of the mean squared error, by hand, in float64."""
    error = inputs @ params["w"] + params["b"] - targets
    return {
        "w": 2.0 * inputs.T @ error / len(inputs),
        "b": 2.0 * np.sum(error, axis=0) / len(inputs),
    }


def start():
    return {"params": {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}}


def train_by_hand(datasets, *, rounds, rate, batch_size, epochs, momentum, mu=0.0):
    """Clients one by one, batches one by one, in float64."""
    server = {"w": np.zeros((3, 2)), "b": np.zeros(2)}
    velocity = {"w": np.zeros((3, 2)), "b": np.zeros(2)}
    for _ in range(rounds):
        change, total = {k: np.zeros_like(x) for k, x in server.items()}, 0
        for inputs, targets in datasets:
            params = dict(server)
            for _ in range(epochs):
                for i in range(0, len(inputs), batch_size):
                    batch = slice(i, i + batch_size)
                    slope = gradient(params, inputs[batch], targets[batch])
                    for k in params:
                        pull = mu * (params[k] - server[k])
                        params[k] = params[k] - rate * (slope[k] + pull)
            for k in params:
                change[k] = change[k] + len(inputs) * (params[k] - server[k])
            total += len(inputs)
        for k in server:
            velocity[k] = momentum * velocity[k] + change[k] / total
            server[k] = server[k] + velocity[k]
    return server


def run(training, datasets, rounds, key=None):
    data, sizes = fedagg.pad_clients(datasets)
    next_round = jax.jit(training.next)
    output = next_round(training.init(start()), data, sizes, key)
    for _ in range(rounds - 1):
        output = next_round(output.state, data, sizes, key)
    return output


def mean_of_work(work, sum_over=None):
    aggregator = fedagg.aggregator(fedagg.mean(), sum_over=sum_over)
    return fedagg.federated_averaging(work, optax.sgd(1.0), aggregator)


@first_now("mu", [0.0, 0.7])
@first_now("batch_size", [2, 4, 100])
def test_it_equals_a_plain_loop_over_clients_and_batches(batch_size, mu):
    datasets = make_datasets()
    work = fedagg.local_training(
        squared_error,
        optax.sgd(0.03),
        batch_size=batch_size,
        epochs=3,
        proximal=mu,
        shuffle=False,
    )
    training = fedagg.federated_averaging(
        work, optax.sgd(1.0, momentum=0.5), fedagg.aggregator(fedagg.mean())
    )

    state, variables, _ = run(training, datasets, rounds=3)

    expected = train_by_hand(
        datasets,
        rounds=3,
        rate=0.03,
        batch_size=batch_size,
        epochs=3,
        momentum=0.5,
        mu=mu,
    )
    for k in expected:
        np.testing.assert_allclose(
            variables["params"][k], expected[k], rtol=1e-4, atol=1e-6
        )
        np.testing.assert_array_equal(
            state.variables["params"][k], variables["params"][k]
        )


@pytest.mark.deep
def test_fedsgd_is_gradient_descent_on_all_examples_together():
    datasets = make_datasets()
    work = fedagg.local_training(squared_error, optax.sgd(1.0))
    training = fedagg.federated_averaging(
        work, optax.sgd(0.1), fedagg.aggregator(fedagg.mean())
    )

    _, variables, _ = run(training, datasets, rounds=4)

    pooled = [np.concatenate(x) for x in zip(*datasets, strict=True)]
    params = {"w": np.zeros((3, 2)), "b": np.zeros(2)}
    for _ in range(4):
        slope = gradient(params, *pooled)
        params = {k: params[k] - 0.1 * slope[k] for k in params}
    for k in params:
        np.testing.assert_allclose(variables["params"][k], params[k], rtol=1e-5)


@pytest.mark.deep
def test_the_loss_reported_is_the_mean_over_all_examples():
    datasets = make_datasets()
    work = fedagg.local_training(squared_error, optax.sgd(0.0), batch_size=2, epochs=2)

    _, _, metrics = run(mean_of_work(work), datasets, 1, jax.random.key(0))

    targets = np.concatenate([y for _, y in datasets])
    expected = np.mean(np.sum(targets**2, axis=-1))
    np.testing.assert_allclose(metrics["training/loss"], expected, rtol=1e-5)


@pytest.mark.deep
def test_an_epoch_meets_each_example_once_in_an_order_of_its_own():
    def product(variables, examples, key):
        # The step -x * w multiplies w by 1 - x, so w ends as a product over examples
        # whatever their order; the sum of all w met depends on the order.
        del key
        (inputs,) = examples
        return 0.5 * inputs[:, 0] * jnp.square(variables["params"]), {}

    inputs = np.linspace(0.1, 0.8, 8, dtype=np.float32)[:, None]
    data, sizes = fedagg.pad_clients([(inputs,), (inputs[:5],)])
    work = fedagg.local_training(product, optax.sgd(1.0), batch_size=1, epochs=2)
    training = mean_of_work(work)
    losses, ends = [], []

    for seed in range(3):
        state = training.init({"params": jnp.float32(1.0)})
        state, variables, metrics = jax.jit(training.next)(
            state, data, jnp.array([0.0, 1.0]), jax.random.key(seed)
        )
        losses.append(float(metrics["training/loss"]))
        ends.append(float(variables["params"]))

    np.testing.assert_allclose(ends, np.prod(1.0 - inputs[:5]) ** 2, rtol=1e-5)
    assert len(set(losses)) == 3


WAYS = {
    "at once": fedagg.at_once(),
    "chunks of 1": fedagg.in_chunks(1),
    "chunks of 2": fedagg.in_chunks(2),
    "8 devices": fedagg.across(jax.make_mesh((8,), ("clients",))),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.deep
def test_every_way_to_sum_trains_the_same_model_over_rounds(way):
    datasets = make_datasets()
    work = fedagg.local_training(squared_error, optax.sgd(0.03), batch_size=2)
    key = jax.random.key(0)

    _, default, metrics = run(mean_of_work(work), datasets, 2, key)
    _, other, other_metrics = run(mean_of_work(work, way), datasets, 2, key)

    for a, b in zip(jax.tree.leaves(default), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert metrics.keys() == other_metrics.keys()
    np.testing.assert_allclose(
        metrics["training/loss"], other_metrics["training/loss"], rtol=1e-5
    )


@pytest.mark.deep
def test_a_round_without_anybody_changes_nothing_in_spite_of_momentum():
    data, sizes = fedagg.pad_clients(make_datasets())
    work = fedagg.local_training(squared_error, optax.sgd(0.03))
    training = fedagg.federated_averaging(
        work, optax.sgd(1.0, momentum=0.9), fedagg.robust_aggregator()
    )
    state = training.next(training.init(start()), data, sizes).state

    after, _, metrics = training.next(state, data, 0.0 * sizes)

    jax.tree.map(np.testing.assert_array_equal, after, state)
    assert np.isnan(metrics["training/loss"])  # which nobody said


@pytest.mark.deep
def test_a_client_with_nan_data_does_not_reach_a_robust_model():
    datasets = make_datasets((4, 5, 6))
    broken = [(datasets[0][0] * np.float32("nan"), datasets[0][1]), *datasets[1:]]
    work = fedagg.local_training(squared_error, optax.sgd(0.03))
    training = fedagg.federated_averaging(
        work, optax.sgd(1.0), fedagg.robust_aggregator()
    )

    _, variables, metrics = run(training, broken, 1)

    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(variables))
    assert metrics["zeroing/count"] == 1.0
    assert np.isfinite(metrics["training/loss"])


def test_any_tree_of_parameters_and_any_work_will_do():
    def towards(variables, row, key):
        del key
        return [row - variables[0]], {"work/row": jnp.sum(row)}

    training = mean_of_work(towards)
    rows, weights = jnp.array([[1.0, 2.0], [5.0, 6.0]]), jnp.array([3.0, 1.0])

    output = training.next(training.init([jnp.zeros(2)]), rows, weights)

    np.testing.assert_allclose(output.value[0], [2.0, 3.0])
    np.testing.assert_allclose(output.metrics["work/row"], (3 * 3.0 + 11.0) / 4)


@pytest.mark.deep
def test_rounds_are_traced_once_and_scan():
    traces = []

    def loss(variables, examples, key):
        traces.append(1)
        return squared_error(variables, examples, key)

    work = fedagg.local_training(loss, optax.sgd(0.03))
    training = fedagg.federated_averaging(
        work, optax.sgd(1.0, momentum=0.5), fedagg.robust_aggregator()
    )
    data, sizes = fedagg.pad_clients(make_datasets())
    next_round = jax.jit(training.next)
    state = next_round(training.init(start()), data, sizes).state
    first = len(traces)

    looped = next_round(next_round(state, data, sizes).state, data, sizes).state
    assert len(traces) == first
    scanned, _ = jax.lax.scan(
        lambda s, _: (training.next(s, data, sizes).state, None), state, length=2
    )

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), looped, scanned
    )


def test_the_state_survives_serialization():
    work = fedagg.local_training(squared_error, optax.sgd(0.03))
    training = fedagg.federated_averaging(
        work, optax.sgd(1.0, momentum=0.5), fedagg.robust_aggregator()
    )
    state, _, _ = run(training, make_datasets(), 2)

    data = flax.serialization.to_bytes(state)
    restored = flax.serialization.from_bytes(training.init(start()), data)

    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_no_stack_of_updates_is_made_in_chunks():
    clients, size = 64, 100_000

    def work(variables, row, key):
        del key
        return {"params": row * variables["params"]}, {}

    def temporary_bytes(sum_over):
        training = mean_of_work(work, sum_over)
        state = training.init({"params": jnp.zeros(size)})
        compiled = jax.jit(training.next).lower(state, jnp.ones(clients)).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporary_bytes(fedagg.in_chunks(1)) < 8 * 4 * size


def test_padding_clients_stacks_masks_and_counts():
    (examples, mask), sizes = fedagg.pad_clients(
        [{"x": np.ones((2, 3))}, {"x": np.zeros((0, 3))}, {"x": np.full((1, 3), 7.0)}]
    )

    assert examples["x"].shape == (3, 2, 3)
    np.testing.assert_array_equal(mask, [[True, True], [False, False], [True, False]])
    np.testing.assert_array_equal(sizes, [2.0, 0.0, 1.0])
    np.testing.assert_array_equal(examples["x"][2], [[7.0] * 3, [0.0] * 3])


@pytest.mark.parametrize(
    "datasets, message",
    [
        ([], "at least one client"),
        ([{"x": np.zeros((0, 1))}], "at least one example"),
        ([{"x": np.zeros((2, 1))}, {"y": np.zeros((2, 1))}], "client 1 has"),
        ([{"x": np.zeros((2, 1)), "y": np.zeros(3)}], "client 0 disagree"),
    ],
)
def test_padding_clients_says_what_is_wrong(datasets, message):
    with pytest.raises(ValueError, match=message):
        fedagg.pad_clients(datasets)


@pytest.mark.deep
def test_memory_does_not_grow_with_the_number_of_clients():
    pool = jnp.asarray(np.random.default_rng(2).normal(size=(500, 3)), jnp.float32)

    def work(variables, index, key):
        # A client is an index; its examples are looked up when its turn comes.
        examples = pool[(index + jnp.arange(20)) % 500]
        row = (examples, examples @ jnp.asarray(TRUE, jnp.float32)), jnp.ones(20, bool)
        return train(variables, row, key)

    train = fedagg.local_training(squared_error, optax.sgd(0.03), batch_size=5)
    training = fedagg.federated_averaging(
        work, optax.sgd(1.0), fedagg.robust_aggregator()
    )

    def temporary_bytes(clients):
        rows = jax.ShapeDtypeStruct((clients,), jnp.int32)
        compiled = (
            jax.jit(training.next)
            .lower(training.init(start()), rows, None, jax.random.key(0))
            .compile()
        )
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    few, many = temporary_bytes(100_000), temporary_bytes(1_000_000)

    # But for a number or two of each client: its index, its weight.
    assert many - few <= 16 * 900_000
