"""Asynchronous rounds: as the paper has them, and synchronous where nobody is stale."""

from typing import Any

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from fedagg._training import arrivals, buffered_averaging
from tests.compiling import jit
from tests.helpers import assert_close, assert_same, first_now, mesh_of
from tests.training.fedbuff import (
    CENTRES,
    DATA,
    SECONDS,
    WEIGHTS,
    K,
    N,
    fedbuff,
    model,
    work,
)


def own_seconds(client, key):
    del key
    return jnp.asarray(SECONDS)[client]


def a_second(client, key):
    return 1.0


def make(aggregator=None, of=work, **options):
    aggregator = fedagg.aggregator(fedagg.mean()) if aggregator is None else aggregator
    asked: dict[str, Any] = {
        "clients": N,
        "buffer": K,
        "concurrency": N,
        "duration": own_seconds,
    }
    return fedagg.buffered_averaging(
        of, optax.sgd(1.0, momentum=0.5), aggregator, **(asked | options)
    )


def keys():
    return jax.vmap(jax.random.key)(np.arange(100))


def run(training, steps, data=DATA, weights=WEIGHTS, state=None):
    """The state after some steps, and the metrics of each."""
    state = training.init(model()) if state is None else state
    next_step, metrics = jit(training.next), []
    done = int(state.clock.number)
    for key in keys()[done : done + steps]:
        state, _, found = next_step(state, data, weights, key)
        metrics.append(jax.device_get(found))
    return state, metrics


@first_now("max_staleness", [2, 10, 0])
def test_it_is_fedbuff_step_by_step(max_staleness):
    training = make(max_staleness=max_staleness)
    state, next_step = training.init(model()), jit(training.next)

    expected = fedbuff(20, max_staleness)
    for key, (w, seconds, stale, refused) in zip(keys()[:20], expected, strict=True):
        state, value, metrics = next_step(state, DATA, WEIGHTS, key)

        np.testing.assert_allclose(value["w"], w, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(metrics["buffered/seconds"], seconds, rtol=1e-4)
        np.testing.assert_allclose(metrics["buffered/staleness"], stale, rtol=1e-6)
        assert metrics["buffered/too_stale"] == refused
        assert metrics["buffered/clients"] == K
    assert sum(x[2] for x in expected) > 0 or max_staleness == 0
    assert sum(x[3] for x in expected) > 0 or max_staleness == 10


def test_without_weights_it_divides_by_the_size_of_the_buffer():
    alike = np.ones(N)

    state, _ = run(make(), 12, weights=None)

    expected = fedbuff(12, weights=alike)[-1][0]
    np.testing.assert_allclose(state.training.variables["w"], expected, rtol=1e-5)


AGGREGATORS = {
    "quantile bounds": fedagg.robust_aggregator,
    "compressed": fedagg.compression_aggregator,
    "secure": fedagg.secure_aggregator,
    "distributed noise": lambda: fedagg.distributed_dp_aggregator(0.2, K, 18),
    "noise": lambda: fedagg.dp_aggregator(0.1, K),
    "tree noise": lambda: fedagg.aggregator(
        fedagg.tree_noise(0.1, 1.0, K, restart_every=8)
    ),
    "eden": lambda: fedagg.aggregator(fedagg.mean(), fedagg.eden(4)),
    "median": lambda: fedagg.combining(fedagg.median()),
}


@first_now("name", AGGREGATORS, quick=1)
def test_where_nobody_is_stale_it_is_the_synchronous_round_to_the_bit(name):
    def halfway(variables, row, key):  # which is rounded alike, however compiled
        return {"w": 0.5 * (row["centre"] - variables["w"])}, {}

    aggregator = AGGREGATORS[name]()
    training = make(aggregator, halfway, concurrency=K, duration=a_second)
    plain = fedagg.federated_averaging(
        halfway, optax.sgd(1.0, momentum=0.5), aggregator
    )
    state, other = training.init(model()), plain.init(model())
    rules = arrivals.Rules(N, K, K, a_second, 10, 1, np.inf)

    def cohort_of(clock, key):
        own = jax.random.fold_in(key, buffered_averaging._CLOCK)
        return arrivals.next_arrivals(rules, clock, jnp.ones(N, bool), own)[1].clients

    next_step, next_round = jit(training.next), jit(plain.next)
    for key in keys()[:4]:
        cohort = jit(cohort_of)(state.clock, key)
        assert len(set(cohort.tolist())) == K
        rows = jax.tree.map(lambda x, cohort=cohort: x[cohort], DATA)
        output = next_step(state, DATA, WEIGHTS, key)
        expected = next_round(other, rows, WEIGHTS[cohort], key)
        state, other = output.state, expected.state

        assert_same(output.value, expected.value)
        assert_same(state.training, other)
        ours = {x: output.metrics[x] for x in expected.metrics}
        assert_same(ours, expected.metrics)
        assert output.metrics["buffered/seconds"] == 1.0
        assert output.metrics["buffered/staleness"] == 0.0


@first_now("name", AGGREGATORS, quick=0)
def test_every_kind_of_round_takes_stale_clients(name):
    state, metrics = run(make(AGGREGATORS[name]()), 12)

    assert np.isfinite(state.training.variables["w"]).all()
    assert sum(x["buffered/staleness"] for x in metrics) > 3.0


def test_who_does_not_come_back_gives_its_place_to_another():
    def some_crash(client, key):
        bad = jnp.array([jnp.nan, jnp.inf, -1.0, 50.0])
        return jnp.where(client < 4, bad[client % 4], 1.0)

    training = make(concurrency=4, duration=some_crash, timeout=2.0)

    state, metrics = run(training, 20)

    assert sum(x["buffered/lost"] for x in metrics) > 4
    assert all(x["buffered/clients"] == K for x in metrics)
    assert (state.clock.last[:4] == -1).all() and (state.clock.last[4:] >= 0).all()


@pytest.mark.parametrize("timeout", [2.0, np.inf])
def test_where_nobody_comes_back_the_model_stays(timeout):
    training = make(duration=lambda client, key: jnp.nan, timeout=timeout)

    state, [metrics] = run(training, 1)

    assert_same(state.training, training.init(model()).training)
    assert metrics["buffered/clients"] == 0 and np.isnan(metrics["buffered/staleness"])
    assert (metrics["buffered/lost"] > 0) == (timeout == 2.0)
    assert np.isfinite(metrics["buffered/seconds"])


def test_who_is_absent_is_never_sent_out_whatever_it_holds():
    weights = WEIGHTS.copy()
    weights[[2, 7]] = [0.0, np.nan]
    poison = {**DATA, "centre": CENTRES.copy()}
    poison["centre"][[2, 7]] = np.nan

    state, metrics = run(make(), 8, poison, weights)
    other, _ = run(make(), 8, DATA, weights)

    assert_same(state, other)
    assert (np.asarray(state.clock.last)[[2, 7]] == -1).all()


@pytest.mark.parametrize("zeroed", [True, pytest.param(False, marks=pytest.mark.deep)])
def test_a_client_with_a_nan_is_for_the_stages_of_the_round(zeroed):
    broken = {**DATA, "centre": CENTRES.copy()}
    broken["centre"][1] = np.nan
    stages = [fedagg.zeroing(100.0)] * zeroed + [fedagg.mean()]

    state, metrics = run(make(fedagg.aggregator(*stages)), 12, broken)

    assert np.isfinite(state.training.variables["w"]).all()
    name = "zeroing/count" if zeroed else "training/not_finite"
    assert sum(x[name] for x in metrics) > 0


@first_now("concurrency", [5, 2, N])
def test_a_client_rests_and_is_away_once(concurrency):
    training = make(
        concurrency=concurrency,
        separation=3,
        max_staleness=40,
        duration=lambda client, key: jax.random.exponential(key),
    )
    state, next_step = training.init(model()), jit(training.next)
    before = np.full(N, -3)

    for key in keys()[:40]:
        state, _, metrics = next_step(state, DATA, WEIGHTS, key)
        slots, last = state.clock.slots, np.asarray(state.clock.last)
        away = np.asarray(slots.client)[np.asarray(slots.is_taken)]

        assert len(set(away.tolist())) == len(away)
        came = last == int(state.clock.number) - 1
        assert came.sum() == int(metrics["buffered/clients"]) <= K
        assert (last[came] - before[came] >= 3).all()
        before = last
    assert (before > 0).all()


def test_a_run_that_was_saved_goes_on_to_the_bit():
    training = make(fedagg.robust_aggregator())
    whole, _ = run(training, 6)

    half, _ = run(training, 3)
    saved = flax.serialization.to_bytes(half)
    again = flax.serialization.from_bytes(training.init(model()), saved)
    resumed, _ = run(training, 3, state=again)

    assert_same(resumed, whole)


def remembering():
    def remembered(variables, row, key, memory):
        change, metrics = work(variables, row, key)
        return change, metrics, memory + 1

    return fedagg.RememberingWork(lambda variables: jnp.int32(0), remembered)


def test_each_client_keeps_what_it_has_to_itself():
    state, metrics = run(make(of=remembering()), 10)

    assert state.training.memories.sum() == 10 * K
    plain, _ = run(make(), 10)
    assert_close(state.training.variables, plain.training.variables)


@pytest.mark.deep
@pytest.mark.parametrize("way", ["chunks", "devices"])
def test_every_way_to_sum_gives_the_same(way):
    over = fedagg.in_chunks(2) if way == "chunks" else fedagg.across(mesh_of())
    plain, _ = run(make(fedagg.robust_aggregator()), 5)

    state, _ = run(make(fedagg.robust_aggregator(sum_over=over)), 5)

    assert_close(state.training, plain.training)
    assert_same(state.clock, plain.clock)


@first_now("max_staleness", [0, 2])
def test_a_state_may_be_donated(max_staleness):
    training = make(max_staleness=max_staleness)
    donating = jit(training.next, donate_argnums=0)

    state = donating(training.init(model()), DATA, WEIGHTS, keys()[0]).state
    state = donating(state, DATA, WEIGHTS, keys()[1]).state

    assert_same(state, run(training, 2)[0])


@pytest.mark.deep
def test_steps_scan_and_a_step_is_traced_once():
    traced = []

    def counted(variables, row, key):
        traced.append(row)
        return work(variables, row, key)

    training, stepped = make(of=counted), make()

    @jit
    def scanned(state):
        def body(state, key):
            return training.next(state, DATA, WEIGHTS, key)[0], None

        return jax.lax.scan(body, state, keys()[:6])[0]

    state = scanned(training.init(model()))

    assert len(traced) == 1
    assert_close(state.training, run(stepped, 6)[0].training)


def test_a_table_of_clients_is_trained_on():
    sets = [np.full((1 + i % 3, 3), i, np.float32) for i in range(N)]
    table = fedagg.ClientTable.of(sets)
    local = fedagg.local_training(
        lambda w, x, key: (jnp.sum((w["w"][None] - x) ** 2, axis=1), {}),
        optax.sgd(0.25),
    )
    training = make(of=local, duration=a_second, concurrency=K)

    _, metrics = run(training, 3, table, table.sizes.astype(np.float32))

    assert all(np.isfinite(x["training/loss"]) for x in metrics)


def test_the_price_is_that_of_clients_who_rest():
    private = fedagg.aggregator(fedagg.gaussian_noise(2.0, 1.0, K))
    training = make(private, separation=2)
    who = fedagg.separated(2, size=K)
    given = {"neighbors": "zero_out", "participation": who}

    got = fedagg.guarantee(training, model(), 20, 1e-6, **given)

    alone = fedagg.guarantee(private, model(), 10, 1e-6, neighbors="zero_out")
    np.testing.assert_allclose(got.epsilon, alone.epsilon, rtol=1e-3)


@pytest.mark.deep
def test_half_precision_stays_and_integers_are_refused():
    half = {"w": jnp.zeros(3, jnp.bfloat16)}
    training = make(
        of=lambda variables, row, key: (
            {"w": row["centre"].astype(jnp.bfloat16) - variables["w"]},
            {},
        )
    )

    state, value, _ = jit(training.next)(training.init(half), DATA, None, keys()[0])

    assert value["w"].dtype == jnp.bfloat16
    chex.assert_trees_all_equal_shapes_and_dtypes(state, training.init(half))
    of_integers = make(of=lambda variables, row, key: ({"w": jnp.arange(3)}, {}))
    with pytest.raises(TypeError, match="float dtype"):
        of_integers.next(of_integers.init(model()), DATA, key=keys()[0])


@pytest.mark.deep
def test_clients_with_heavy_tails_are_waited_for_by_synchronous_rounds_alone():
    """A tenth of the clients takes 100 seconds and more; all have a minimum in common.

    Beside it stand cohorts of as many clients, drawn likewise.
    """
    n, m = 100, 30
    draw = np.random.default_rng(0)
    data = {
        "centre": np.ones((n, 3), np.float32),
        "curvature": draw.uniform(0.1, 0.3, n).astype(np.float32),
    }

    def seconds(client, key):
        return jax.random.pareto(key, 1.0)

    training = fedagg.buffered_averaging(
        work,
        optax.sgd(1.0),
        fedagg.aggregator(fedagg.mean()),
        clients=n,
        buffer=10,
        concurrency=m,
        duration=seconds,
        max_staleness=50,
    )
    state, next_step, clock = training.init(model()), jit(training.next), 0.0
    for key in keys()[:60]:
        state, value, metrics = next_step(state, data, None, key)
        clock += float(metrics["buffered/seconds"])
        if np.abs(value["w"] - 1.0).max() < 0.05:
            break
    else:
        pytest.fail("it does not converge")

    plain = fedagg.federated_averaging(
        work, optax.sgd(1.0), fedagg.aggregator(fedagg.mean())
    )
    other, next_round, waited = plain.init(model()), jit(plain.next), 0.0
    for key in keys()[:60]:
        cohort = draw.choice(n, m, replace=False)
        rows = jax.tree.map(lambda x, cohort=cohort: x[cohort], data)
        other, value, _ = next_round(other, rows)
        waited += float(jax.vmap(seconds)(cohort, jax.random.split(key, m)).max())
        if np.abs(value["w"] - 1.0).max() < 0.05:
            break

    assert waited > 3.0 * clock


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"buffer": 0}, ValueError, "buffer"),
        ({"buffer": N + 1}, ValueError, "clients"),
        ({"concurrency": 2.5}, ValueError, "concurrency"),
        ({"max_staleness": -1}, ValueError, "max_staleness"),
        ({"separation": 0}, ValueError, "separation"),
        ({"timeout": 0.0}, ValueError, "timeout"),
        ({"duration": 1.0}, TypeError, "duration"),
        ({"discount": 0.5}, TypeError, "discount"),
        ({"aggregator": fedagg.mean()}, TypeError, "aggregator"),
        ({"of": 3}, TypeError, "client_work"),
        (
            {"aggregator": fedagg.with_error_feedback(fedagg.top_k(0.1), N)},
            TypeError,
            "with_error_feedback",
        ),
    ],
)
def test_what_is_wrong_is_refused_when_it_is_made(options, error, words):
    with pytest.raises(error, match=words):
        make(**options)


@pytest.mark.parametrize("name", ["duration", "discount"])
@pytest.mark.parametrize("wrong", [None, "3", np.ones(2)])
def test_a_function_that_returns_no_number_is_refused_by_name(name, wrong):
    training = make(**{name: lambda *_: wrong})

    with pytest.raises(TypeError, match=f"{name}: expected a function that returns"):
        training.next(training.init(model()), DATA, key=keys()[0])


def test_what_is_wrong_with_a_step_is_refused_by_name():
    training = make()
    state = training.init(model())

    with pytest.raises(ValueError, match="key"):
        training.next(state, DATA)
    few = jax.tree.map(lambda x: x[:4], DATA)
    with pytest.raises(ValueError, match="rows of client_data"):
        training.next(state, few, key=keys()[0])
    with pytest.raises(TypeError, match="state"):
        training.next(state.training, DATA, key=keys()[0])
    with pytest.raises(TypeError, match="cannot be taken apart"):
        training.steps.broadcast(state)
    assert fedagg.message_bits(training, model()) == fedagg.message_bits(
        fedagg.aggregator(fedagg.mean()), model()
    )
