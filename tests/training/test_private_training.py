"""What comes out of a private training, and what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from tests.helpers import assert_close, first_now

MODEL, ROWS = {"w": jnp.zeros(4)}, jnp.ones((3, 4))
KEY = 5


def work(variables, row, key):
    change = {"w": row - variables["w"]}
    return change, {"training/loss": jnp.sum(row), "accuracy": jnp.float32(0.5)}


def noise(z: float = 1.0, clients: float = 3.0) -> fedagg.Stage:
    return fedagg.gaussian_noise(z, 10.0, clients)


def training(*stages: fedagg.Stage, momentum: float | None = None) -> fedagg.Aggregator:
    server = optax.sgd(1.0, momentum=momentum)
    return fedagg.federated_averaging(work, server, fedagg.aggregator(*stages))


def one_round(made: fedagg.Aggregator, weights, rows=ROWS) -> fedagg.Output:
    state = made.init(MODEL)
    return jax.jit(made.next)(state, rows, jnp.asarray(weights), jax.random.key(KEY))


PRIVATE = {
    "gaussian": lambda: (noise(),),
    "adaptive": lambda: (fedagg.adaptive_gaussian_noise(0.1, 3.0),),
    "tree": lambda: (fedagg.tree_noise(1.0, 1.0, 3.0, restart_every=4),),
    "in a chain": lambda: (fedagg.chain(fedagg.rotation("dft"), noise()),),
    "without guarantee": lambda: (fedagg.without_guarantee(noise()),),
}


@pytest.mark.parametrize("name", PRIVATE)
@pytest.mark.parametrize("in_steps", [False, True])
@pytest.mark.deep
def test_a_private_training_steps_whether_anybody_is_there_or_not(name, in_steps):
    made = training(*PRIVATE[name]())
    empty = np.zeros(3, np.float32)

    if in_steps:
        state = made.init(MODEL)
        output = jax.jit(lambda x, key: made.steps.server(x, None, key))(
            state, jax.random.key(KEY)
        )
    else:
        output = one_round(made, empty)

    assert np.all(np.abs(output.value["w"]) > 0.0)
    assert_close(output.state.variables, jax.tree.map(np.asarray, output.value))


@pytest.mark.parametrize("in_steps", [False, True])
@pytest.mark.deep
def test_a_training_without_noise_stays_where_nobody_is(in_steps):
    made = training(fedagg.mean(), momentum=0.9)
    state = made.init(MODEL)._replace(variables={"w": jnp.ones(4)})
    moving = made.next(state, ROWS * 3.0, None, None).state

    if in_steps:
        after = made.steps.server(moving, None).state
    else:
        after = made.next(moving, ROWS, jnp.zeros(3), None).state

    for x, y in zip(jax.tree.leaves(moving), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(x, y)


@first_now("name", PRIVATE)
def test_no_metric_of_the_work_comes_out_of_a_private_round_unless_that_is_meant(name):
    made = training(*PRIVATE[name]())

    metrics = one_round(made, np.ones(3, np.float32)).metrics

    told = {"training/loss", "accuracy"} & metrics.keys()
    assert told == ({"training/loss", "accuracy"} if "without" in name else set())
    alone = made.steps.client(
        made.steps.broadcast(made.init(MODEL)), ROWS[0], 1.0, jax.random.key(0)
    )
    assert set(alone.metrics) == told


def test_what_a_private_training_reports_does_not_follow_the_loss():
    made = training(noise(0.0))
    far = ROWS.at[0].set(jnp.asarray([20.0, 0.0, 0.0, 0.0]))
    further = ROWS.at[0].set(jnp.asarray([90.0, 0.0, 0.0, 0.0]))

    # Clipped to ten, both change the model by the same.
    one, other = (one_round(made, np.ones(3, np.float32), x) for x in (far, further))

    assert_close(one.value, jax.tree.map(np.asarray, other.value))
    assert_close(one.metrics, jax.tree.map(np.asarray, other.metrics))


@pytest.mark.deep
def test_an_aggregator_alone_keeps_the_metrics_of_work_in_too():
    made = fedagg.aggregator(noise())

    output = made.next(
        made.init(MODEL),
        ROWS,
        None,
        jax.random.key(KEY),
        work=lambda row, key: ({"w": row}, {"loss": jnp.sum(row)}),
    )

    assert not any("loss" in x for x in output.metrics)


TABLE = fedagg.ClientTable.of(
    [{"x": np.full((m, 4), float(m), np.float32)} for m in (1, 2, 3, 4)]
)
TWICE = np.asarray([2, 0, 2, 2, 1])


def table_work(variables, row, key):
    examples, mask = row.padded()
    there = jnp.broadcast_to(mask[:, None], examples["x"].shape)
    return {"w": jnp.sum(jnp.where(there, examples["x"], 0.0), axis=0)}, {}


@pytest.mark.parametrize("gathered", [False, True])
def test_a_client_of_a_table_that_comes_twice_moves_a_private_sum_once(gathered):
    cohort = TABLE.gathered(TWICE) if gathered else TABLE[TWICE]
    weights = jnp.asarray([0.0, 1.0, 1.0, 1.0, 1.0])  # its first row is absent
    sums = {}
    for name, stages in {
        "private": (fedagg.gaussian_noise(0.0, 100.0, 1.0),),
        "open": (),
    }.items():
        made = fedagg.federated_averaging(
            table_work, optax.sgd(1.0), fedagg.aggregator(*stages)
        )
        state = made.init(MODEL)
        output = jax.jit(made.next)(state, cohort, weights, jax.random.key(KEY))
        sums[name] = float(output.value["w"][0])

    # Squares of 3, 1 and 2; where sums are open, 3 counts as often as it comes.
    assert sums == pytest.approx({"private": 14.0, "open": 23.0}, rel=1e-5)


def test_a_copy_of_a_cohort_holds_a_client_once_and_shows_the_same_rows():
    cohort = TABLE.gathered(TWICE)

    assert cohort.examples["x"].shape[0] == 8  # 3 + 1 + 2 examples, filled up
    expected, got = TABLE[TWICE].padded(), cohort.padded()
    np.testing.assert_array_equal(expected[1], got[1])
    np.testing.assert_array_equal(expected[0]["x"], got[0]["x"])
