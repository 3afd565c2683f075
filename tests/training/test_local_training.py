"""Local training of Flax models: collections beside the parameters, dropout, errors."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict

import fedagg
from tests.compiling import jit
from tests.helpers import first_now

LOSS = optax.softmax_cross_entropy_with_integer_labels


def make_clients(sizes=(6, 3)):
    draw = np.random.default_rng(1)
    return fedagg.pad_clients(
        [
            (draw.normal(3.0, 2.0, (m, 4)).astype(np.float32), draw.integers(0, 2, m))
            for m in sizes
        ]
    )


class LinenModel(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(2)(x)


class NNXModel(nnx.Module):
    def __init__(self, rate, rngs):
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.dense = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.dropout(self.norm(x)))


def linen_training(rate=0.0, sum_over=None, **options):
    model = LinenModel(rate)
    work = fedagg.local_training(
        fedagg.linen_loss(model, LOSS, train=True), optax.sgd(0.1), **options
    )
    aggregator = fedagg.aggregator(fedagg.mean(), sum_over=sum_over)
    variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
    return fedagg.federated_averaging(work, optax.sgd(1.0), aggregator), variables


def nnx_training(rate=0.0, sum_over=None, **options):
    model = NNXModel(rate, nnx.Rngs(0))
    model.train()
    variables, loss = fedagg.nnx_loss(model, LOSS)
    work = fedagg.local_training(loss, optax.sgd(0.1), **options)
    aggregator = fedagg.aggregator(fedagg.mean(), sum_over=sum_over)
    training = fedagg.federated_averaging(work, optax.sgd(1.0), aggregator)
    return training, variables, model


@pytest.mark.deep
def test_batch_statistics_move_to_the_mean_over_clients():
    (examples, mask), sizes = make_clients()
    training, variables = linen_training()

    trained = training.next(training.init(variables), (examples, mask), sizes).value

    inputs = examples[0].astype(np.float64)
    means = [inputs[i, : int(m)].mean(axis=0) for i, m in enumerate(sizes)]
    expected = np.average([0.5 * 0.0 + 0.5 * m for m in means], axis=0, weights=sizes)
    np.testing.assert_allclose(
        trained["batch_stats"]["BatchNorm_0"]["mean"], expected, rtol=1e-5
    )


@pytest.mark.deep
def test_what_fills_up_a_short_batch_never_comes_from_another_client_or_padding():
    (examples, mask), sizes = make_clients((5, 2))
    poison = np.where(mask[..., None], examples[0], 1e6).astype(np.float32)
    training, variables = linen_training(batch_size=2, shuffle=False)

    clean = training.next(training.init(variables), (examples, mask), sizes)
    dirty = training.next(
        training.init(variables), ((poison, examples[1]), mask), sizes
    )

    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


@pytest.mark.deep
def test_the_server_optimizer_steps_parameters_only():
    data, sizes = make_clients()
    model = LinenModel()
    work = fedagg.local_training(
        fedagg.linen_loss(model, LOSS, train=True), optax.sgd(0.1)
    )
    aggregator = fedagg.aggregator(fedagg.mean())
    variables = model.init(jax.random.key(0), jnp.ones((1, 4)))

    still, moving = (
        fedagg.federated_averaging(work, optax.sgd(rate), aggregator)
        for rate in (0.0, 1.0)
    )
    still = still.next(still.init(variables), data, sizes).value
    moving = moving.next(moving.init(variables), data, sizes).value

    jax.tree.map(np.testing.assert_array_equal, still["params"], variables["params"])
    jax.tree.map(
        np.testing.assert_array_equal, still["batch_stats"], moving["batch_stats"]
    )
    moved = jax.tree.map(np.array_equal, moving["params"], variables["params"])
    assert not any(jax.tree.leaves(moved))


@pytest.mark.deep
def test_linen_and_nnx_train_the_same_model():
    data, sizes = make_clients()
    options = {"batch_size": 2, "epochs": 2}
    linen, linen_variables = linen_training(**options)
    nnx_one, nnx_variables, model = nnx_training(**options)
    dense = linen_variables["params"]["Dense_0"]
    nnx_variables["params"]["dense"]["kernel"].set_value(dense["kernel"])
    key = jax.random.key(3)

    a = linen.next(linen.init(linen_variables), data, sizes, key).value
    b = nnx_one.next(nnx_one.init(nnx_variables), data, sizes, key).value
    nnx.update(model, b["params"], b["state"])

    np.testing.assert_allclose(
        a["params"]["Dense_0"]["kernel"], model.dense.kernel[...], rtol=1e-5
    )
    np.testing.assert_allclose(
        a["batch_stats"]["BatchNorm_0"]["var"], model.norm.var[...], rtol=1e-5
    )


@pytest.mark.parametrize("train", [linen_training, nnx_training])
@pytest.mark.deep
def test_dropout_draws_anew_from_the_key_and_alike_in_every_way_to_sum(train):
    data, sizes = make_clients((6, 3, 4))

    def train_one(seed, sum_over=None):
        training, variables, *_ = train(0.5, sum_over, batch_size=2)
        state = training.init(variables)
        return training.next(state, data, sizes, jax.random.key(seed)).value

    first, again = train_one(0), train_one(0, fedagg.in_chunks(2))
    other = train_one(1)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), first, again)
    assert not np.allclose(jax.tree.leaves(first)[-1], jax.tree.leaves(other)[-1])


def test_nnx_dropout_differs_from_layer_to_layer():
    class Twice(nnx.Module):
        def __init__(self, rngs):
            self.scale = nnx.Param(jnp.ones(()))
            self.one = nnx.Dropout(0.5, rngs=rngs)
            self.two = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return jnp.sum(self.scale[...] * self.one(x) * self.two(x), axis=-1)

    model = Twice(nnx.Rngs(0))
    model.train()
    variables, loss = fedagg.nnx_loss(model, lambda outputs, targets: outputs)
    batch = jnp.ones((200, 50)), jnp.zeros(200)

    losses, _ = loss(variables, batch, jax.random.key(0))

    # An entry survives both with probability 1/4 and is then 4; 1/2 if they were one.
    mean, deviation = float(jnp.mean(losses)), np.sqrt(50 * 4 * 4 * 3 / 4 / 4 / 200)
    assert abs(mean - 50.0) < 5 * deviation


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more"),
        ({"epochs": 0}, "epochs must be a whole number, 1 or more"),
        ({"proximal": -1.0}, "proximal must be finite and not negative"),
        ({"proximal": float("nan")}, "proximal must be finite and not negative"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fedagg.local_training(
            lambda variables, examples, key: (jnp.zeros(1), {}),
            optax.sgd(0.1),
            **options,
        )


def test_a_missing_key_is_named():
    data, sizes = make_clients()
    training, variables = linen_training(batch_size=2)

    with pytest.raises(ValueError, match="local_training draws .* needs a key"):
        training.next(training.init(variables), data, sizes)


@first_now("epochs", [1, 3])
def test_one_at_a_time_clients_take_no_step_on_padding(epochs):
    sizes, steps = (1, 7, 0, 30, 4), []
    data, weights = make_clients(sizes)

    def loss(variables, examples, key):
        jax.debug.callback(lambda: steps.append(None))
        inputs, _ = examples
        return jnp.sum(jnp.square(inputs - variables["x"][None]), axis=1), {}

    work = fedagg.local_training(
        loss, optax.sgd(0.01), batch_size=4, epochs=epochs, shuffle=False
    )
    mean = fedagg.aggregator(fedagg.mean(), sum_over=fedagg.in_chunks(1))
    training = fedagg.federated_averaging(work, optax.sgd(1.0), mean)
    output = jax.jit(training.next)(
        training.init({"x": jnp.zeros(4)}), data, jnp.ones(len(sizes))
    )
    jax.block_until_ready(output)
    jax.effects_barrier()

    assert len(steps) == epochs * sum(-(-size // 4) for size in sizes)
    assert np.isfinite(output.metrics["training/loss"])


def test_a_round_has_a_derivative_with_respect_to_the_model():
    data, weights = make_clients((5, 2))

    def loss(variables, examples, key):
        inputs, _ = examples
        return jnp.sum(jnp.square(jnp.tanh(inputs) - variables["x"][None]), axis=1), {}

    work = fedagg.local_training(loss, optax.sgd(0.1), batch_size=2, shuffle=False)
    training = fedagg.federated_averaging(
        work, optax.sgd(1.0), fedagg.aggregator(fedagg.mean())
    )

    def end(x):
        return jnp.sum(training.next(training.init({"x": x}), data, weights).value["x"])

    x = jnp.asarray([0.1, -0.3, 0.2, 0.5])
    gradient = jax.jit(jax.grad(end))(x)

    # A step takes a distance by a factor of 1 - 2 * 0.1; three batches and one.
    share = np.asarray(weights) / np.sum(weights)
    expected = share[0] * 0.8**3 + share[1] * 0.8
    np.testing.assert_allclose(gradient, np.full(4, expected), rtol=1e-5)


@pytest.mark.deep
def test_by_default_clients_that_convolve_train_one_at_a_time():
    class Small(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.relu(nn.Conv(2, (3,))(x[..., None])).mean(axis=1))

    model, sizes, steps = Small(), (1, 9, 2), []
    data, weights = make_clients(sizes)
    plain = fedagg.linen_loss(model, LOSS)

    def loss(variables, examples, key):
        jax.debug.callback(lambda: steps.append(None))
        return plain(variables, examples, key)

    work = fedagg.local_training(loss, optax.sgd(0.1), batch_size=2, shuffle=False)
    training = fedagg.federated_averaging(
        work, optax.sgd(1.0), fedagg.aggregator(fedagg.mean())
    )
    variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
    output = jax.jit(training.next)(training.init(variables), data, weights)
    jax.block_until_ready(output)
    jax.effects_barrier()

    # Side by side all would take as many steps as the largest, five.
    assert len(steps) == 1 + 5 + 1


def a_round_with(loss, data=None, variables=None, key=None, **options):
    work = fedagg.local_training(loss, optax.sgd(0.1), shuffle=False, **options)
    training = fedagg.federated_averaging(
        work, optax.sgd(1.0), fedagg.aggregator(fedagg.mean())
    )
    variables = {"x": jnp.zeros(4)} if variables is None else variables
    data = make_clients()[0] if data is None else data
    return training.next(training.init(variables), data, key=key)


def squares(variables, examples, key):
    return jnp.sum(jnp.square(examples[0] - variables["x"][None]), axis=1), {}


@pytest.mark.parametrize(
    "reshape, got",
    [
        (lambda x: x[:, None], r"\[6, 1\]"),
        (lambda x: jnp.stack([x, x], axis=1), r"\[6, 2\]"),
        (jnp.mean, r"\[\]"),
    ],
)
def test_losses_of_another_shape_are_refused(reshape, got):
    def loss(variables, examples, key):
        losses, changed = squares(variables, examples, key)
        return reshape(losses), changed

    with pytest.raises(ValueError, match=rf"of shape \[6\]; got {got}"):
        a_round_with(loss)


def test_losses_alone_are_refused():
    with pytest.raises(TypeError, match=r"expected a pair \(losses, collections\)"):
        a_round_with(lambda *x: squares(*x)[0])


@pytest.mark.parametrize(
    "data",
    [
        jnp.ones((2, 6, 4)),
        (jnp.ones((2, 6, 4)), jnp.ones((2, 6), jnp.int32)),  # labels, and no mask
        (jnp.ones((2, 6, 4)), jnp.ones((2, 6), jnp.int32), jnp.ones((2, 6), bool)),
        {"x": jnp.ones((2, 6, 4))},
    ],
    ids=["inputs", "pairs", "triples", "dict"],
)
def test_client_data_without_a_mask_are_refused(data):
    with pytest.raises(TypeError, match=r"a pair \(examples, mask\)"):
        a_round_with(squares, data)


@pytest.mark.deep
def test_work_runs_by_hand_on_numpy_arrays():
    (examples, mask), _ = make_clients()
    work = fedagg.local_training(squares, optax.sgd(0.1), batch_size=2, shuffle=False)
    variables = {"x": np.zeros(4, np.float32)}
    row = jax.tree.map(lambda x: x[0], (examples, mask))

    change, metrics = jax.jit(work)(variables, row, None)
    by_hand, _ = work(variables, row, None)

    np.testing.assert_allclose(by_hand["x"], change["x"], rtol=1e-6)


@pytest.mark.parametrize("kind", [FrozenDict, collections.OrderedDict])
@pytest.mark.deep
def test_a_model_may_be_of_other_dicts(kind):
    training, variables = linen_training(batch_size=2)
    data, weights = make_clients()
    other = kind({name: kind(x) for name, x in variables.items()})

    expected = training.next(training.init(variables), data, weights, jax.random.key(0))
    got = training.next(training.init(other), data, weights, jax.random.key(0))

    for x, y in zip(
        jax.tree.leaves(got.value), jax.tree.leaves(expected.value), strict=True
    ):
        np.testing.assert_array_equal(x, y)


@pytest.mark.deep
def test_an_nnx_model_that_draws_needs_a_key():
    model = NNXModel(0.5, nnx.Rngs(0))
    model.train()
    variables, loss = fedagg.nnx_loss(model, LOSS)
    model.eval()
    _, still = fedagg.nnx_loss(model, LOSS)

    with pytest.raises(ValueError, match="the model draws.* got key=None"):
        a_round_with(loss, variables=variables)
    a_round_with(still, variables=variables)
    a_round_with(loss, variables=variables, key=jax.random.key(0))


def test_nnx_variables_stay_when_the_model_is_given_others():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    variables, _ = fedagg.nnx_loss(model, LOSS)
    before = jax.tree.map(np.array, variables)

    trained = jax.tree.map(jnp.zeros_like, variables)
    nnx.update(model, trained["params"], trained["state"])

    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_an_nnx_state_alone_is_no_model():
    model = NNXModel(0.0, nnx.Rngs(0))
    _, loss = fedagg.nnx_loss(model, LOSS)

    with pytest.raises(ValueError, match="the first of what nnx_loss returned"):
        a_round_with(loss, variables=nnx.state(model, nnx.Param))


@pytest.mark.parametrize(
    "datasets, error, message",
    [
        (
            [np.ones((2, 3)), np.ones((2, 1))],
            ValueError,
            r"client 1 have shape \[1\], those of client 0 \[3\]",
        ),
        ([np.ones((2, 3)), np.ones(2)], ValueError, r"client 1 have shape \[\]"),
        ([np.float32(1.0)], ValueError, "leading axis of examples"),
        ([np.array(["a", "b"])], TypeError, "expected numbers"),
    ],
)
def test_clients_whose_examples_do_not_fit_are_refused(datasets, error, message):
    with pytest.raises(error, match=message):
        fedagg.pad_clients(datasets)


def test_padding_keeps_the_values_of_every_client():
    whole, halves = np.array([1, 2]), np.array([0.5, 1.5, 2.5])

    (examples, mask), _ = fedagg.pad_clients([whole, halves])

    np.testing.assert_array_equal(examples, [[1.0, 2.0, 0.0], [0.5, 1.5, 2.5]])


@pytest.mark.deep
def test_an_optimizer_that_draws_does_so_for_each_client_and_round_apart():
    noise = optax.chain(optax.scale(0.0), optax.add_noise(1.0, 0.5, key=0))
    work = fedagg.local_training(squares, noise, batch_size=2, shuffle=False)
    (examples, mask), _ = make_clients((2, 2))
    row = jax.tree.map(lambda x: x[0], (examples, mask))

    def change(seed):
        key = None if seed is None else jax.random.key(seed)
        with jax.numpy_dtype_promotion("standard"):  # which optax.add_noise needs
            return np.asarray(jax.jit(work)({"x": jnp.zeros(4)}, row, key)[0]["x"])

    assert np.all(change(0) != change(1))
    np.testing.assert_array_equal(change(0), change(0))
    with pytest.raises(ValueError, match="the client optimizer draws and needs a key"):
        change(None)


def quadratic(variables, examples, key):
    """Half the squared distance to each example, entry by entry times 1, 2, 3."""
    scale = jnp.arange(1.0, 4.0)[None]
    return 0.5 * jnp.sum(scale * (examples - variables[None]) ** 2, axis=-1), {}


POINTS = np.random.default_rng(5).normal(size=(10, 3)).astype(np.float32)


def locally(optimizer, points=POINTS, **options):
    work = fedagg.local_training(quadratic, optimizer, shuffle=False, **options)
    row = jnp.asarray(points), jnp.ones(len(points), bool)
    change, metrics = jit(work)(jnp.zeros(3), row, None)
    return np.asarray(change), metrics


@pytest.mark.parametrize("steps", [1, 4, 7, 100])
def test_a_client_takes_at_most_so_many_steps(steps):
    change, metrics = locally(optax.sgd(0.1), batch_size=4, epochs=2, max_steps=steps)

    w, losses = np.zeros(3), []
    batches = [POINTS[:4], POINTS[4:8], POINTS[8:]] * 2
    for batch in batches[:steps]:
        losses += [*(0.5 * np.sum([1, 2, 3] * (batch - w) ** 2, axis=1))]
        w = w - 0.1 * np.array([1, 2, 3]) * (w - batch.mean(axis=0))
    np.testing.assert_allclose(change, w, rtol=1e-5)
    np.testing.assert_allclose(metrics["training/loss"], np.mean(losses), rtol=1e-5)


@pytest.mark.deep
def test_fewer_steps_have_the_same_derivative():
    def moved(start):
        work = fedagg.local_training(
            quadratic, optax.sgd(0.1), batch_size=4, shuffle=False, max_steps=2
        )
        row = jnp.asarray(POINTS), jnp.ones(10, bool)
        return jnp.sum(work(start, row, None)[0])

    # Each step keeps 1 - 0.1 * scale of what it starts from.
    expected = (1 - 0.1 * np.array([1, 2, 3])) ** 2 - 1
    np.testing.assert_allclose(jax.grad(moved)(jnp.zeros(3)), expected, rtol=1e-5)


@pytest.mark.deep
def test_an_optimizer_that_searches_along_a_line_is_told_the_loss():
    change, _ = locally(optax.lbfgs(), epochs=12)

    np.testing.assert_allclose(change, POINTS.mean(axis=0), atol=1e-4)


def test_an_optimizer_that_waits_for_the_loss_to_fall_is_told_it():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=1.0)
    with jax.numpy_dtype_promotion("standard"):  # which Optax counts on here
        change, _ = locally(optax.chain(optax.sgd(0.1), plateau), epochs=4)

    # With such a tolerance no loss is ever lower by enough: the rate is halved.
    plain, _ = locally(optax.sgd(0.1), epochs=4)
    assert (np.abs(change) < 0.9 * np.abs(plain)).all()


def test_a_rate_of_ones_own_comes_with_the_row():
    def work(variables, row, key):
        data, rate = row
        return fedagg.local_training(quadratic, optax.sgd(rate))(variables, data, key)

    training = fedagg.federated_averaging(
        work, optax.sgd(1.0), fedagg.aggregator(fedagg.mean())
    )
    data = jnp.asarray(POINTS.reshape(2, 5, 3)), jnp.ones((2, 5), bool)
    rates = np.array([0.1, 0.3], np.float32)

    output = training.next(training.init(jnp.zeros(3)), (data, rates))

    means = POINTS.reshape(2, 5, 3).mean(axis=1)
    expected = np.mean(rates[:, None] * np.array([1, 2, 3]) * means, axis=0)
    np.testing.assert_allclose(output.value, expected, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_aggregate_that_is_not_finite_does_not_move_the_model(bad):
    training = fedagg.federated_averaging(
        lambda variables, row, key: (row - variables, {}),
        optax.sgd(0.5, momentum=0.9),
        fedagg.aggregator(fedagg.mean()),
    )
    rows = np.ones((2, 3), np.float32)
    broken = rows.copy()
    broken[1, 2] = bad

    first = training.next(training.init(jnp.zeros(3)), rows)
    second = training.next(first.state, broken)
    third = training.next(second.state, rows)
    without = training.next(first.state, rows)

    counted = [float(x.metrics["training/not_finite"]) for x in (first, second, third)]
    assert counted == [0, 1, 0]
    assert (second.value == first.value).all()
    assert (third.value == without.value).all()
