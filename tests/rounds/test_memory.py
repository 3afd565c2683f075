"""What clients keep, and weights that they say themselves, in every way to sum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from tests.helpers import (
    WAYS,
    N,
    assert_close,
    assert_same,
    every_way,
    first_round,
    mesh_of,
)

ROWS = jnp.arange(float(N))
MEMORY = {"seen": jnp.zeros(N, jnp.int32), "last": 100.0 + jnp.arange(float(N))}


def counting(row, key, memory):
    """Counts its rounds, remembers its row, and adds what it remembered."""
    kept = {"seen": memory["seen"] + 1, "last": row}
    return row + memory["last"], {"last": memory["last"]}, kept


@every_way
@pytest.mark.deep
def test_what_clients_keep_comes_back_in_their_order(way):
    aggregator = fedagg.aggregator(fedagg.mean(), sum_over=WAYS[way]())
    weights = jnp.ones(N).at[jnp.array([2, N - 1])].set(0.0)

    @jax.jit
    def next_round(state, memory):
        return aggregator.next(state, ROWS, weights, work=counting, memory=memory)

    output, memory = next_round(aggregator.init(ROWS[0]), MEMORY)
    _, again = next_round(output.state, memory)

    here = np.asarray(weights) > 0
    rows, last = np.arange(float(N)), 100.0 + np.arange(float(N))
    assert_close(output.value, np.mean((rows + last)[here]))
    assert_close(output.metrics["last"], np.mean(last[here]))
    # Who is absent keeps what it had.
    np.testing.assert_array_equal(memory["seen"], here.astype(int))
    np.testing.assert_array_equal(memory["last"], np.where(here, rows, last))
    np.testing.assert_array_equal(again["seen"], 2 * here.astype(int))


REFUSING = {
    "zeroing": fedagg.zeroing(50.0),
    "zeroing_without_weight": fedagg.zeroing(50.0, keep_weight=False),
    "discretization": fedagg.discretization(2.0**-24, stochastic=False),
    "secure_sum": fedagg.secure_sum(fedagg.chain(), 1e3, largest_cohort=N),
    "secure_sum_of_zeroing": fedagg.secure_sum(
        fedagg.zeroing(50.0), 1e3, largest_cohort=N
    ),
}


@pytest.mark.parametrize("name", REFUSING)
@pytest.mark.parametrize("way", ["default", "chunks_across"])
@pytest.mark.deep
def test_a_client_that_is_set_aside_keeps_what_it_had(name, way):
    rows = ROWS.at[4].set(jnp.nan)
    aggregator = fedagg.aggregator(REFUSING[name], sum_over=WAYS[way]())
    start = jnp.full(N, -1.0)

    def work(row, key, memory):
        return row, {}, row

    @jax.jit
    def next_round(state, rows, start):
        return aggregator.next(state, rows, work=work, memory=start)

    _, memory = next_round(aggregator.init(rows[0]), rows, start)

    np.testing.assert_array_equal(memory, np.where(np.arange(N) == 4, -1.0, ROWS))


def test_what_clients_keep_stays_on_their_device():
    mesh = mesh_of()
    by_client = jax.NamedSharding(mesh, jax.P("clients"))
    rows, memory = jax.device_put((jnp.arange(16.0), jnp.zeros((16, 4))), by_client)
    aggregator = fedagg.aggregator(fedagg.mean(), sum_over=fedagg.across(mesh))

    def work(row, key, memory):
        return row, {}, memory + row

    @jax.jit
    def next_round(state, rows, memory):
        return aggregator.next(state, rows, work=work, memory=memory)

    arguments = aggregator.init(jnp.float32(0.0)), rows, memory
    program = str(next_round.lower(*arguments).compile().as_text())
    _, kept = next_round(*arguments)

    assert kept.sharding.is_equivalent_to(by_client, kept.ndim)
    assert "all-gather" not in program and "collective-permute" not in program
    np.testing.assert_array_equal(kept, np.arange(16.0)[:, None] * np.ones(4))


@pytest.mark.deep
def test_a_rule_takes_memory_too():
    aggregator = fedagg.combining(fedagg.median())

    output, memory = aggregator.next(
        aggregator.init(ROWS[0]), ROWS, work=counting, memory=MEMORY
    )

    assert output.value == 100.0 + 2 * (N // 2)
    np.testing.assert_array_equal(memory["last"], ROWS)


def test_a_training_hands_memory_to_the_clients_work():
    def work(model, row, key, memory):
        return row - model - memory, {}, memory + 1.0

    training = fedagg.federated_averaging(
        work, optax.sgd(1.0), fedagg.aggregator(fedagg.mean())
    )
    state, memory = training.init(jnp.float32(0.0)), jnp.zeros(N)

    output, memory = training.next(state, ROWS, memory=memory)
    output, memory = training.next(output.state, ROWS, memory=memory)

    assert_close(output.value, np.float64(np.mean(ROWS) - 1.0))
    np.testing.assert_array_equal(memory, np.full(N, 2.0))


@every_way
def test_work_may_say_the_weight_of_its_client(way):
    aggregator = fedagg.aggregator(fedagg.mean(), sum_over=WAYS[way]())
    weights = jnp.ones(N).at[3].set(0.0)

    def work(row, key):
        return fedagg.Update(row, 2.0 * row), {"loss": row}

    output = jax.jit(lambda s: aggregator.next(s, ROWS, weights, work=work))(
        aggregator.init(ROWS[0])
    )

    said = np.where(np.arange(N) == 3, 0.0, 2.0 * np.arange(N))
    expected = np.average(np.arange(N), weights=said)
    assert_close(output.value, np.float64(expected))
    assert_close(output.metrics["loss"], np.float64(expected))
    assert_close(output.metrics["mean/weight"], np.float64(said.sum()))


def test_a_weight_that_work_says_is_checked_as_others_are():
    rows = jnp.arange(4.0)
    bad = jnp.array([jnp.nan, jnp.inf, -1.0, 3.0])

    output = first_round(
        fedagg.aggregator(fedagg.mean()),
        rows,
        work=lambda i, key: (fedagg.Update(i, bad[i.astype(int)]), {}),
    )

    assert_same(output.value, jnp.float32(3.0))


@pytest.mark.parametrize(
    "work, memory, message",
    [
        (counting, None, None),
        (lambda row, key, memory: (row, {}), MEMORY, r"\(value, metrics, memory\)"),
        (lambda row, key, memory: (row, {}, row), MEMORY, "work: memory: expected"),
        (
            lambda row, key, memory: (row, {}, memory | {"seen": memory["last"]}),
            MEMORY,
            r"expected .* \['seen'\] int32\[\], got .* \['seen'\] float32\[\]",
        ),
        (None, MEMORY, "memory: expected work beside it"),
        (counting, {"last": ROWS[1:]}, "memory: expected a row for each of 11"),
    ],
)
def test_work_and_memory_that_do_not_fit_are_refused(work, memory, message):
    with pytest.raises((TypeError, ValueError), match=message):
        first_round(fedagg.aggregator(), ROWS, work=work, memory=memory)


def test_a_way_to_sum_that_adds_up_what_clients_keep_is_told():
    def adding(fn, clients):
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(fn)(clients))

    aggregator = fedagg.aggregator(sum_over=adding)
    state = aggregator.init(ROWS[0])

    assert aggregator.next(state, ROWS).value == jnp.sum(ROWS)
    with pytest.raises(TypeError, match="adds up what clients keep"):
        aggregator.next(state, ROWS, work=counting, memory=MEMORY)
