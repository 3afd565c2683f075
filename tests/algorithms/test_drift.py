"""Clients that drift apart, and the mistakes that make a cure worse than that."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from fedagg import algorithms
from tests.algorithms.problems import (
    CLIENTS,
    EXAMPLES,
    OPTIONS,
    START,
    TABLE,
    loss,
    minimum,
    rounds_of,
)
from tests.algorithms.references import Quadratic
from tests.compiling import jit

N = len(CLIENTS)
ALL = [list(range(N))] * 60
# In each round somebody does not come, another one every time.
SOME = [[j for j in range(N) if j != i % N and j != (i * i) % N] for i in range(400)]


def mean():
    return fedagg.aggregator(fedagg.mean(weighted=False))


def fedavg(rate=0.1, options=OPTIONS):
    work = fedagg.local_training(loss, optax.sgd(rate), **options)
    return fedagg.federated_averaging(work, optax.sgd(1.0), mean())


def gap(model, clients=CLIENTS):
    """The distance from the minimum of the mean loss."""
    return float(np.linalg.norm(np.asarray(model) - minimum(clients)))


# All examples in each step: steps on batches in an order end elsewhere by themselves.
WHOLE: Any = {"epochs": 8, "shuffle": False}
WHOLE_CLIENTS = [Quadratic(*x, None, 8) for x in EXAMPLES]


def plain(numbers):
    return TABLE[numbers]


def test_fedavg_drifts_and_scaffold_does_not():
    scaffold = algorithms.scaffold(loss, 0.1, mean(), clients=N, **WHOLE)

    of_fedavg = rounds_of(fedavg(0.1, WHOLE), cohorts=ALL, data=plain).variables
    of_scaffold = rounds_of(scaffold, cohorts=ALL).variables["model"]

    assert gap(of_fedavg, WHOLE_CLIENTS) > 0.05
    assert gap(of_scaffold, WHOLE_CLIENTS) < 1e-4


@pytest.mark.deep
def test_feddyn_does_not_drift():
    # Its clients are to reach their minima: more steps, and all examples in each.
    options = {"epochs": 40, "shuffle": False}
    training = algorithms.feddyn(
        loss, optax.sgd(0.3), mean(), clients=N, alpha=1.0, **options
    )

    assert gap(rounds_of(training, cohorts=ALL).variables, WHOLE_CLIENTS) < 1e-4


@pytest.mark.deep
def test_fednova_mends_what_unequal_numbers_of_steps_do():
    training = algorithms.fednova(loss, optax.sgd(0.005), mean(), **OPTIONS)
    cohorts = ALL * 20

    of_fedavg = rounds_of(fedavg(0.005), cohorts=cohorts, data=plain).variables
    of_fednova = rounds_of(training, cohorts=cohorts, data=plain).variables

    assert gap(of_fedavg) > 0.2
    assert gap(of_fednova) < 0.1 * gap(of_fedavg)


@pytest.mark.deep
def test_scaffold_comes_to_the_minimum_where_clients_are_absent():
    training = algorithms.scaffold(loss, 0.1, mean(), clients=N, **WHOLE)

    state = rounds_of(training, cohorts=SOME)

    assert gap(state.variables["model"], WHOLE_CLIENTS) < 1e-4
    np.testing.assert_allclose(
        state.variables["control"], np.mean(state.memories, axis=0), atol=1e-5
    )


@pytest.mark.deep
def test_summing_control_variates_in_place_of_their_changes_is_wrong():
    """What one framework did for years: the same rounds do not find the minimum."""
    training = algorithms.scaffold(loss, 0.1, mean(), clients=N, **OPTIONS)
    state, next_round = training.init(START), jit(training.next)
    numbers = np.arange(N, dtype=np.int32)

    for _ in range(30):
        before = state.variables["control"]
        state = next_round(state, (TABLE[numbers], numbers)).state
        wrong = before + jnp.mean(state.memories, axis=0)
        state = state._replace(variables={**state.variables, "control": wrong})

    assert not gap(state.variables["model"]) < 0.1


def test_steps_are_counted_of_examples_and_not_of_padding():
    """Dividing by the steps of the largest client is the usual mistake."""
    (examples, mask), sizes = fedagg.pad_clients(EXAMPLES)
    training = algorithms.fednova(loss, optax.sgd(0.1), mean(), **OPTIONS)
    state, next_round = training.init(START), jit(training.next)

    output = next_round(state, (examples, mask), sizes)

    expected = 2 * np.ceil(np.asarray(sizes) / 2)  # two epochs in batches of two
    np.testing.assert_allclose(
        output.metrics["fednova/steps"], np.average(expected, weights=sizes)
    )


@pytest.mark.deep
def test_a_momentum_is_divided_by_what_it_adds_up_to():
    """One step more is more than one step: a round from a common minimum stays."""
    same = [(np.ones((m, 3), np.float32), np.ones((m, 3), np.float32)) for m in (2, 8)]
    training = algorithms.fednova(
        loss, optax.sgd(0.001, momentum=0.9), mean(), **OPTIONS
    )
    table = fedagg.ClientTable.of(same)

    one = training.next(training.init(np.zeros(3)), table).value
    gradient, (few, many) = (
        1.0,
        [sum((1 - 0.9 ** (k + 1)) / 0.1 for k in range(tau)) for tau in (2, 8)],
    )

    # Far from the minimum all gradients are alike: the mean of both distances.
    np.testing.assert_allclose(one, 0.001 * gradient * (few + many) / 2, rtol=0.03)


@pytest.mark.deep
def test_the_bias_of_momentum_is_corrected_if_the_optimizer_says_so():
    def after_a_round(debias):
        optimizer = optax.chain(optax.ema(0.9, debias=debias), optax.scale(-0.1))
        training = algorithms.mime_lite(loss, optimizer, mean(), shuffle=False)
        return rounds_of(training, cohorts=ALL[:1], data=plain).variables

    with jax.numpy_dtype_promotion("standard"):  # which the correction needs
        plainly, corrected = after_a_round(False), after_a_round(True)

    # One step of each client: (1 - 0.9) of the gradient, or all of it.
    gradient = np.mean([c.gradient(START) for c in CLIENTS], axis=0)
    np.testing.assert_allclose(plainly["model"], START - 0.01 * gradient, rtol=1e-5)
    np.testing.assert_allclose(corrected["model"], START - 0.1 * gradient, rtol=1e-5)
    np.testing.assert_allclose(plainly["optimizer"][0].ema, 0.1 * gradient, rtol=1e-5)


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        return nn.Dense(1, name="head")(x)[:, 0]


@pytest.mark.deep
def test_batch_statistics_of_a_flax_model_are_those_of_fedavg():
    model = Normalized()
    variables = model.init(jax.random.key(0), jnp.ones((1, 3)), False)
    of_model = fedagg.linen_loss(model, lambda x, y: (x - y[:, 0]) ** 2, train=True)
    with jax.numpy_rank_promotion("allow"):
        work = fedagg.local_training(of_model, optax.sgd(0.0), **OPTIONS)
        averaging = fedagg.federated_averaging(work, optax.sgd(1.0), mean())
        nova = algorithms.fednova(of_model, optax.sgd(0.1), mean(), **OPTIONS)
        bn = algorithms.personal_layers(
            work, mean(), personal=["*BatchNorm*"], clients=N
        )
        expected = rounds_of(averaging, variables, ALL[:1], plain).variables
        of_nova = rounds_of(nova, variables, ALL[:1], plain).variables
        of_bn = rounds_of(bn, variables, ALL[:1])

    def statistics(x):
        return x["batch_stats"]["BatchNorm_0"]["mean"]

    assert np.all(statistics(expected) != 0.0)
    np.testing.assert_allclose(statistics(of_nova), statistics(expected), rtol=1e-5)
    # FedBN: each client has its own, and the server those of the beginning.
    assert not np.any(statistics(of_bn.variables))
    assert len(np.unique(statistics(of_bn.memories), axis=0)) == N
    assert of_bn.memories["params"]["head"] == {"bias": None, "kernel": None}


def test_a_server_optimizer_of_the_paper_is_one_of_optax():
    training = algorithms.scaffold(
        loss, 0.1, mean(), clients=N, server_optimizer=optax.sgd(0.5), **OPTIONS
    )
    whole = algorithms.scaffold(loss, 0.1, mean(), clients=N, **OPTIONS)

    half = rounds_of(training, cohorts=ALL[:1]).variables
    full = rounds_of(whole, cohorts=ALL[:1]).variables

    np.testing.assert_allclose(
        half["model"] - START, (full["model"] - START) / 2, rtol=1e-5
    )
    np.testing.assert_array_equal(half["control"], full["control"])
