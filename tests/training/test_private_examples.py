"""Training that hides single examples: clips, noise, draws, and what it costs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from tests.helpers import WAYS, assert_close

CLIP, LOT, STEPS, RATE = 1.5, 4.0, 3, 0.2
RANDOM = np.random.default_rng(0)
TARGETS = RANDOM.normal(size=(6, 4)).astype(np.float32) * np.arange(1, 7)[:, None]
TABLE = fedagg.ClientTable.of([TARGETS[:4], TARGETS[4:], TARGETS[:0]])
START = {"x": jnp.zeros(4)}
SEED = 1


def key():
    return jax.random.key(SEED)


def squares(variables, examples, key):
    del key
    return jnp.sum((examples - variables["x"][None]) ** 2, axis=1) / 2, {}


def examples(noise=0.0, **options):
    return fedagg.aggregator(fedagg.gaussian_noise(noise, CLIP, LOT), **options)


def work_of(
    loss: Any = squares, noise=0.0, rate=1.0, steps=STEPS, optimizer=None, **options
):
    optimizer = optimizer or optax.sgd(RATE)
    sampler = fedagg.poisson(rate)
    aggregator = examples(noise, **options)
    return fedagg.private_training(loss, optimizer, aggregator, sampler, steps=steps)


def by_hand(targets, optimizer=lambda g, memory: (g, memory)):
    """Algorithm 1 of Abadi et al. without noise, all examples in a lot, in float64."""
    x, memory = np.zeros(4), np.zeros(4)
    for _ in range(STEPS):
        gradients = x - targets.astype(np.float64)
        norms = np.linalg.norm(gradients, axis=1, keepdims=True)
        clipped = gradients / np.maximum(1.0, norms / CLIP)
        step, memory = optimizer(clipped.sum(axis=0) / LOT, memory)
        x = x - RATE * step
    return x


def test_each_example_is_clipped_and_the_sum_divided_by_a_public_number():
    change, metrics = jax.jit(work_of())(START, TABLE[0], key())

    np.testing.assert_allclose(change["x"], by_hand(TARGETS[:4]), rtol=1e-4)
    assert "training/loss" not in metrics  # which nothing hides


@pytest.mark.deep
def test_the_optimizer_of_a_client_goes_on_over_its_steps():
    work = work_of(optimizer=optax.sgd(RATE, momentum=0.9))

    change, _ = jax.jit(work)(START, TABLE[1], key())

    expected = by_hand(TARGETS[4:], lambda g, m: (0.9 * m + g, 0.9 * m + g))
    np.testing.assert_allclose(change["x"], expected, rtol=1e-4)


def test_an_example_moves_a_step_by_a_clip_whatever_it_holds():
    work = jax.jit(work_of(steps=1))
    row, mask = jnp.asarray(TARGETS[:4]), jnp.ones(4, bool)
    expected, _ = work(START, (row, mask & (jnp.arange(4) != 2)), key())

    for poison, reach in ((1e9, RATE * CLIP / LOT), (jnp.nan, 0.0), (jnp.inf, 0.0)):
        change, _ = work(START, (row.at[2].set(poison), mask), key())
        moved = np.linalg.norm(change["x"] - expected["x"])
        np.testing.assert_allclose(moved, reach, rtol=1e-4, atol=1e-7)


def flat(variables, examples, key):
    """A loss that follows no entry: what moves is noise."""
    del key
    return 0.0 * jnp.sum(variables["x"]) * jnp.sum(examples, axis=1), {}


@pytest.mark.deep
@pytest.mark.parametrize("client", [0, 2])
def test_the_noise_is_that_of_a_clip_also_of_a_client_without_examples(client):
    model, z = {"x": jnp.zeros(20_000)}, 0.8

    change, metrics = jax.jit(work_of(flat, z))(model, TABLE[client], key())

    deviation = RATE * z * CLIP / LOT * np.sqrt(STEPS)
    got = np.asarray(change["x"], np.float64)
    assert abs(got.mean()) < 5 * deviation / np.sqrt(got.size)
    np.testing.assert_allclose(got.std(), deviation, rtol=5 / np.sqrt(2 * got.size))
    np.testing.assert_allclose(metrics["gaussian_noise/stddev"], z * CLIP / LOT)


@pytest.mark.deep
def test_examples_are_drawn_by_themselves_in_each_step():
    def along(variables, examples, key):
        return -jnp.sum(variables["x"]) * jnp.ones(len(examples)) / 2, {}

    rate, m, steps = 0.3, 50, 400
    row = jnp.zeros((60, 2)), jnp.arange(60) < m
    work = work_of(along, rate=rate, steps=steps)

    change, _ = jax.jit(work)({"x": jnp.zeros(1)}, row, key())

    drawn = float(change["x"][0]) * LOT / RATE * 2  # in all steps
    deviation = np.sqrt(steps * m * rate * (1 - rate))
    assert abs(drawn - steps * m * rate) < 4 * deviation
    # Drawing once for all steps would be off by so many times more.
    assert abs(drawn - steps * round(drawn / steps)) > 0.0


def test_rounds_train_and_clients_draw_apart():
    work = work_of(noise=0.5, sum_over=fedagg.in_chunks(2))
    training = fedagg.federated_averaging(
        work, optax.sgd(1.0), fedagg.aggregator(fedagg.mean())
    )
    state, next_round = training.init(START), jax.jit(training.next)

    first = next_round(state, TABLE[[0, 0, 2]], None, key())
    other = next_round(state, TABLE[[0, 0, 2]], None, jax.random.key(2))
    rows = [work(START, TABLE[0], jax.random.fold_in(key(), i))[0]["x"] for i in (0, 1)]

    assert not np.allclose(rows[0], rows[1])
    assert not np.allclose(first.value["x"], other.value["x"])
    assert np.isfinite(first.value["x"]).all()


@pytest.mark.deep
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_sum_clients_and_examples_agrees(way):
    expected, _ = work_of(noise=0.5, rate=0.5)(START, TABLE[0], key())
    summed = work_of(noise=0.5, rate=0.5, sum_over=fedagg.in_chunks(3))
    assert_close(summed(START, TABLE[0], key())[0], expected)

    def round_of(sum_over):
        aggregator = fedagg.aggregator(fedagg.mean(), sum_over=sum_over)
        training = fedagg.federated_averaging(
            work_of(noise=0.5, rate=0.5), optax.sgd(1.0), aggregator
        )
        return training.next(training.init(START), TABLE[[0, 1, 2]], None, key()).value

    assert_close(round_of(WAYS[way]()), round_of(fedagg.at_once()))


@pytest.mark.deep
def test_the_loss_comes_out_with_noise():
    noised = fedagg.noised_metrics(1e-6, {"training/loss": 1e3}, LOT)
    aggregator = fedagg.aggregator(noised, fedagg.gaussian_noise(0.0, CLIP, LOT))
    work = fedagg.private_training(
        squares, optax.sgd(RATE), aggregator, fedagg.poisson(1.0), steps=1
    )

    _, metrics = work(START, TABLE[0], key())

    expected = np.sum(TARGETS[:4].astype(np.float64) ** 2) / 2 / LOT
    np.testing.assert_allclose(metrics["training/loss"], expected, rtol=1e-2)


def test_a_model_with_collections_keeps_them():
    def loss(model, examples, key):
        return squares(model["params"], examples, key)[0] + model["stats"]["c"], {}

    model = {"params": START, "stats": {"c": jnp.ones(())}}

    change, _ = jax.jit(work_of(loss))(model, TABLE[0], key())

    np.testing.assert_allclose(change["params"]["x"], by_hand(TARGETS[:4]), rtol=1e-4)
    assert change["stats"]["c"] == 0.0


@pytest.mark.deep
def test_its_epsilon_is_that_of_its_rounds_over_examples():
    """MNIST as TensorFlow Privacy's tutorials have it: 60 epochs, about three."""
    sampler, steps = fedagg.poisson(256 / 60_000), 60 * 60_000 // 256
    aggregator = fedagg.aggregator(fedagg.gaussian_noise(1.1, 1.0, 256))
    given = {"neighbors": "add_or_remove", "participation": sampler}

    found = fedagg.guarantee(
        aggregator, jnp.zeros(10), steps, 1e-5, accountant="rdp", **given
    )

    assert found.epsilon == pytest.approx(3.0, abs=0.45) and found.epsilon < 3.02
    assert "poisson" in str(found)


def drifting(model, examples, key):
    del key
    return jnp.sum(examples - model["params"]["x"][None], axis=1), {"stats": {}}


TREE = fedagg.tree_noise(1.0, CLIP, LOT, restart_every=4)
REFUSED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "no noise": (
        {"aggregator": fedagg.aggregator(fedagg.mean())},
        ValueError,
        "expected one with noise, as .* Without noise: local_training",
    ),
    "a tree": (
        {"aggregator": fedagg.aggregator(TREE)},
        ValueError,
        "cancels over steps, and each round of a client begins anew",
    ),
    "a stage": ({"aggregator": TREE}, TypeError, "expected an Aggregator"),
    "a rate": ({"sampler": 0.1}, TypeError, "expected a Sampler"),
    "fixed": (
        {"sampler": fedagg.fixed_size(2, 6)},
        ValueError,
        "expected poisson, which draws each example by itself",
    ),
    "in turn": ({"sampler": fedagg.cyclic(2)}, ValueError, "expected poisson"),
    "steps": ({"steps": 0}, ValueError, "steps must be"),
    "loss": ({"loss": 1.0}, TypeError, "loss: expected a function"),
    "optimizer": ({"optimizer": 0.1}, TypeError, "optimizer: expected an optimizer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_hide_nothing_is_refused_when_it_is_made(name):
    options, kind, match = REFUSED[name]
    given: dict[str, Any] = {
        "loss": squares,
        "optimizer": optax.sgd(RATE),
        "aggregator": examples(1.0),
        "sampler": fedagg.poisson(0.5),
        "steps": STEPS,
    }

    with pytest.raises(kind, match=match):
        fedagg.private_training(**(given | options))


def test_statistics_and_a_missing_key_are_refused():
    model = {"params": START, "stats": {"c": jnp.ones(())}}

    with pytest.raises(ValueError, match="the collection 'stats', which has no noise"):
        work_of(drifting)(model, TABLE[0], key())
    with pytest.raises(ValueError, match="private_training draws examples and noise"):
        work_of()(START, TABLE[0], None)
