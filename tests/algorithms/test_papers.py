"""Each algorithm gives what its paper does on quadratics, step by step in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict

import fedagg
from fedagg import algorithms
from tests.algorithms import references
from tests.algorithms.problems import (
    CLIENTS,
    COHORTS,
    EXAMPLES,
    OPTIONS,
    SIZES,
    START,
    TABLE,
    loss,
    rounds_of,
)
from tests.algorithms.table import ADAPTERS, of_adapters

N, RATE = len(CLIENTS), 0.1


def mean():
    return fedagg.aggregator(fedagg.mean())


def assert_near(got, expected):
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def plain(numbers):
    return TABLE[numbers]


def test_scaffold():
    training = algorithms.scaffold(
        loss,
        RATE,
        mean(),
        clients=N,
        server_optimizer=optax.sgd(0.7),
        **OPTIONS,
    )

    state = rounds_of(training)

    x, c, own = references.scaffold(CLIENTS, START, COHORTS, RATE, 0.7)
    assert_near(state.variables["model"], x)
    assert_near(state.variables["control"], c)
    assert_near(state.memories, own)
    assert_near(state.variables["control"], np.mean(state.memories, axis=0))


@pytest.mark.parametrize(
    ("momentum", "proximal"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.5), (0.5, 0.2)]
)
def test_fednova(momentum, proximal):
    training = algorithms.fednova(
        loss,
        optax.sgd(RATE, momentum=momentum or None),
        mean(),
        proximal=proximal,
        **OPTIONS,
    )
    sizes = np.array(SIZES, np.float32)

    state = rounds_of(training, data=plain, weights=sizes)

    x = references.fednova(CLIENTS, START, COHORTS, RATE, momentum, proximal, sizes)
    assert_near(state.variables, x)


def test_feddyn():
    training = algorithms.feddyn(
        loss, optax.sgd(RATE), mean(), clients=N, alpha=0.3, **OPTIONS
    )

    state = rounds_of(training)

    x, h, own = references.feddyn(CLIENTS, START, COHORTS, RATE, 0.3)
    assert_near(state.variables, x)
    assert_near(state.optimizer, h)
    assert_near(state.memories, own)


WEIGHTS = np.array(SIZES, np.float32)
FACTORS = {"*weight": ("*a", "*b")}


def lora_rounds(start=ADAPTERS, given=of_adapters, cohorts=COHORTS):
    training = algorithms.fedex_lora(
        *(given, optax.sgd(RATE), mean()), adapters=FACTORS, scale=0.5, **OPTIONS
    )
    return rounds_of(training, start, cohorts, data=plain, weights=WEIGHTS).variables


def test_fedex_lora():
    got = lora_rounds()

    first = [ADAPTERS[x].astype(np.float64) for x in ("weight", "a", "b")]
    weight, a, b = references.fedex_lora(
        CLIENTS, first[0], first[1], first[2], COHORTS, RATE, SIZES, 0.5
    )
    assert_near(got["weight"], weight)
    assert_near(got["a"], a)
    assert_near(got["b"], b)


def test_the_server_s_layer_is_the_mean_of_clients_layers_and_that_of_factors_is_not():
    train = fedagg.local_training(of_factors, optax.sgd(RATE), **OPTIONS)
    part = {name: jnp.asarray(ADAPTERS[name]) for name in "ab"}
    p = WEIGHTS.astype(np.float64) / WEIGHTS.sum()
    sent = [jax.jit(train)(part, TABLE[i], None)[0] for i in range(N)]
    own = [
        {name: np.asarray(part[name] + x[name], np.float64) for name in "ab"}
        for x in sent
    ]
    weight = ADAPTERS["weight"].astype(np.float64)

    got = lora_rounds(cohorts=COHORTS[:1])

    mean_layer = sum(
        q * (weight + 0.5 * x["a"] @ x["b"]) for q, x in zip(p, own, strict=True)
    )
    layer = np.asarray(got["weight"]) + 0.5 * np.asarray(got["a"]) @ got["b"]
    of_means = weight + 0.5 * np.asarray(got["a"]) @ got["b"]
    assert_near(layer, mean_layer)
    assert np.abs(of_means - mean_layer).max() > 1e-2


def of_factors(part, examples, key):
    return of_adapters({"weight": ADAPTERS["weight"], **part}, examples, key)


@pytest.mark.deep
def test_adapters_of_a_model_with_collections_in_other_containers():
    start = FrozenDict({"params": ADAPTERS, "stats": {"mean": jnp.zeros(3)}})

    def given(model, examples, key):
        assert isinstance(model, FrozenDict)
        return of_adapters(model["params"], examples, key)

    got = lora_rounds(start, given)

    assert jax.tree.structure(got) == jax.tree.structure(start)
    jax.tree.map(assert_near, got["params"].unfreeze(), lora_rounds())


def test_an_adapter_of_no_leaf_or_of_two_is_refused():
    for pattern, said in (("c", "which is of none; there are a, b"), ("*", "is of")):
        training = algorithms.fedex_lora(
            of_adapters, optax.sgd(RATE), mean(), adapters={"*weight": ("*a", pattern)}
        )
        with pytest.raises(ValueError, match=said):
            training.init(ADAPTERS)


def test_mime_lite_with_momentum():
    momentum = optax.chain(optax.ema(0.8, debias=False), optax.scale(-RATE))
    training = algorithms.mime_lite(loss, momentum, mean(), **OPTIONS)

    state = rounds_of(training, data=plain)

    x, m = references.mime_lite_momentum(CLIENTS, START, COHORTS, RATE, 0.8)
    assert_near(state.variables["model"], x)
    assert_near(state.variables["optimizer"][0].ema, m)


@pytest.mark.parametrize("q", [0.0, 0.5, 2.0])
def test_q_fedavg(q):
    training = algorithms.q_fedavg(
        loss, optax.sgd(RATE), mean(), q=q, lipschitz=1 / RATE, **OPTIONS
    )

    state = rounds_of(training, data=plain)

    x = references.q_fedavg(CLIENTS, START, COHORTS, RATE, q, 1 / RATE)
    assert_near(state.variables, x)


def test_agnostic():
    training = algorithms.agnostic(
        loss, optax.sgd(RATE), mean(), groups=N, rate=0.2, **OPTIONS
    )

    state = rounds_of(training)

    x, mixture = references.agnostic(CLIENTS, START, COHORTS, RATE, 0.2)
    assert_near(state.variables["model"], x)
    assert_near(state.variables["mixture"], mixture)


def test_ifca():
    start = np.stack([START, -START, 3.0 * START])
    training = algorithms.ifca(loss, optax.sgd(RATE), mean(), models=3, **OPTIONS)

    state = rounds_of(training, start, data=plain)

    assert_near(state.variables, references.ifca(CLIENTS, start, COHORTS, RATE))


def test_ditto():
    training = algorithms.ditto(
        loss, optax.sgd(RATE), mean(), clients=N, pull=0.4, own_epochs=2, **OPTIONS
    )

    state = rounds_of(training)

    x, own = references.ditto(CLIENTS, START, COHORTS, RATE, 0.4)
    assert_near(state.variables, x)
    assert_near(state.memories, own)


def test_apfl():
    training = algorithms.apfl(
        loss, optax.sgd(RATE), mean(), clients=N, own_part=0.3, **OPTIONS
    )

    state = rounds_of(training)

    x, own = references.apfl(CLIENTS, START, COHORTS, RATE, 0.3)
    assert_near(state.variables, x)
    assert_near(state.memories, own)


def of_parts(model, examples, key):
    """The same loss of a model in two parts."""
    return loss(jnp.concatenate([model["body"], model["head"]]), examples, key)


def descent_of(client, x, rate, places, epochs):
    """SGD on some of the coordinates, for so many epochs."""
    x, moved = x.copy(), np.isin(np.arange(len(x)), places)
    for batch in client.batches[: len(client.batches) // 2] * epochs:
        x = x - rate * moved * client.gradient(x, batch)
    return x


PARTS = {"body": START[:2], "head": START[2:]}


def test_personal_layers():
    work = fedagg.local_training(of_parts, optax.sgd(RATE), **OPTIONS)
    training = algorithms.personal_layers(work, mean(), personal=["head"], clients=N)

    state = rounds_of(training, PARTS)

    x, own = START[:2].copy(), np.tile(START[2:], (N, 1))
    for cohort in COHORTS:
        ends = []
        for i in cohort:
            end = references.descent(CLIENTS[i], np.append(x, own[i]), RATE)
            own[i] = end[2:]
            ends.append(end[:2])
        x = np.mean(ends, axis=0)
    assert_near(state.variables["body"], x)
    np.testing.assert_array_equal(state.variables["head"], np.float32(START[2:]))
    assert_near(state.memories["head"], own)
    assert state.memories["body"] is None


def test_fedrep():
    training = algorithms.fedrep(
        of_parts,
        optax.sgd(RATE),
        mean(),
        personal=["head"],
        clients=N,
        head_epochs=3,
        **OPTIONS,
    )

    state = rounds_of(training, PARTS)

    x, own = START[:2].copy(), np.tile(START[2:], (N, 1))
    for cohort in COHORTS:
        ends = []
        for i in cohort:
            start = np.append(x, own[i])
            with_head = descent_of(CLIENTS[i], start, RATE, [2], 3)
            end = descent_of(CLIENTS[i], with_head, RATE, [0, 1], 2)
            own[i] = end[2:]
            ends.append(end[:2])
        x = np.mean(ends, axis=0)
    assert_near(state.variables["body"], x)
    assert_near(state.memories["head"], own)


def test_fedrecon():
    training = algorithms.fedrecon(
        of_parts, optax.sgd(RATE), mean(), local=["head"], local_epochs=3, **OPTIONS
    )

    def data(numbers):
        return TABLE[(numbers + 1) % N], TABLE[numbers]

    state = rounds_of(training, PARTS, data=data)

    x = START[:2].copy()
    for cohort in COHORTS:
        ends = []
        for i in cohort:
            start = np.append(x, START[2:])
            remade = descent_of(CLIENTS[(i + 1) % N], start, RATE, [2], 3)
            ends.append(descent_of(CLIENTS[i], remade, RATE, [0, 1], 2)[:2])
        x = np.mean(ends, axis=0)
    assert_near(state.variables["body"], x)
    np.testing.assert_array_equal(state.variables["head"], np.float32(START[2:]))


def test_diloco():
    batches = [np.stack([np.resize(x, (4, 2, 3)) for x in y]) for y in EXAMPLES]
    pairs = [y.reshape(2, 8, 3) for y in batches]
    replicas = [references.Quadratic(y[0], y[1], 2, 1) for y in pairs]
    h, t = (np.stack([x[k] for x in batches]) for k in (0, 1))
    training = algorithms.diloco(
        loss,
        optax.adamw(0.05, weight_decay=0.1),
        mean(),
        replicas=N,
        server_optimizer=optax.sgd(0.7, momentum=0.9, nesterov=True),
    )

    with jax.numpy_dtype_promotion("standard"):  # which Optax's Adam needs
        state = rounds_of(training, data=lambda i: ((h[i], t[i]), i))

    x, moments = references.diloco(replicas, START, COHORTS, 0.05, 0.1, 0.7, 0.9)
    np.testing.assert_allclose(state.variables, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.memories[0].mu, moments, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(state.memories[0].count, [12, 12, 12, 8, 12])
