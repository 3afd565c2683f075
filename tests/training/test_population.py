"""Trainings that keep something of each client of a population, by its number."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from tests.helpers import first_now

CLIENTS = 7


def make_work():
    """Clients move the model to their target, by less in each of their rounds."""

    def init(variables):
        return {"rounds": jnp.int32(0), "last": jnp.zeros_like(variables["w"])}

    def work(variables, target, key, memory):
        del key
        rounds = memory["rounds"] + 1
        slower = 1.0 + rounds.astype(jnp.float32)
        change = (target - variables["w"]) / slower + 0.25 * memory["last"]
        return {"w": change}, {"rounds": rounds}, {"rounds": rounds, "last": change}

    return fedagg.RememberingWork(init, work)


def make_training(sum_over=None, *stages, work=None, clients=CLIENTS):
    aggregator = fedagg.aggregator(*stages, fedagg.mean(), sum_over=sum_over)
    return fedagg.federated_averaging(
        work or make_work(), optax.sgd(1.0), aggregator, clients=clients
    )


def model():
    return {"w": jnp.zeros(3)}


TARGETS = np.random.default_rng(0).normal(size=(CLIENTS, 3)).astype(np.float32)
COHORTS = [[0, 3, 5], [3, 6, 1], [5, 3, 0], [2, 4, 3]]
WEIGHTS = [[1, 2, 1], [1, 0, 3], [2, 2, 2], [0, 0, 0]]


def by_hand():
    """The model and the memories after each round, in float64."""
    w, rounds = np.zeros(3), np.zeros(CLIENTS, int)
    last = np.zeros((CLIENTS, 3))
    for cohort, weights in zip(COHORTS, WEIGHTS, strict=True):
        total, changes = np.zeros(3), {}
        for i, weight in zip(cohort, weights, strict=True):
            if weight:
                changes[i] = (TARGETS[i] - w) / (2.0 + rounds[i]) + 0.25 * last[i]
                total += weight * changes[i]
        for i, change in changes.items():
            rounds[i] += 1
            last[i] = change
        w = w + total / max(sum(weights), 1)
    return w, rounds, last


def one_round(next_round, state, cohort, weights=None, targets=TARGETS):
    cohort = np.asarray(cohort)
    weights = np.ones(len(cohort)) if weights is None else np.asarray(weights)
    rows = targets[np.clip(cohort, 0, CLIENTS - 1)]
    return next_round(state, (rows, cohort), weights)


WAYS = {
    "default": lambda: None,
    "at once": fedagg.at_once,
    "chunks": lambda: fedagg.in_chunks(2),
    "devices": lambda: fedagg.across(jax.make_mesh((3,), ("clients",))),
}


@first_now("way", WAYS.values(), ids=WAYS.keys())
def test_each_client_finds_what_it_kept_in_every_way_to_sum(way):
    training = make_training(way())
    next_round = jax.jit(training.next)
    state = training.init(model())

    for cohort, weights in zip(COHORTS, WEIGHTS, strict=True):
        state = one_round(next_round, state, cohort, weights).state

    w, rounds, last = by_hand()
    np.testing.assert_allclose(state.variables["w"], w, rtol=1e-5)
    np.testing.assert_array_equal(state.memories["rounds"], rounds)
    np.testing.assert_allclose(state.memories["last"], last, rtol=1e-5, atol=1e-7)


@pytest.mark.deep
def test_who_is_absent_or_refused_keeps_what_it_had():
    training = make_training(None, fedagg.zeroing(100.0))
    first = one_round(training.next, training.init(model()), [0, 1, 2, 3]).state
    broken = TARGETS.copy()
    broken[1] = np.nan

    second = one_round(training.next, first, [0, 1, 2, 3], [1, 1, 0, 1], broken).state

    np.testing.assert_array_equal(second.memories["rounds"], [2, 1, 1, 2, 0, 0, 0])
    np.testing.assert_array_equal(
        second.memories["last"][1:3], first.memories["last"][1:3]
    )


def test_a_client_that_comes_twice_counts_once_where_numbers_are_traced():
    training = make_training()
    next_round, state = jax.jit(training.next), training.init(model())
    targets = TARGETS.copy()

    twice = one_round(next_round, state, [4, 2, 4, 4], [0, 1, 1, 1], targets)
    once = one_round(next_round, state, [2, 4], [1, 1], targets)

    np.testing.assert_allclose(twice.value["w"], once.value["w"], rtol=1e-6)
    np.testing.assert_array_equal(twice.state.memories["rounds"], [0, 0, 1, 0, 1, 0, 0])


@pytest.mark.parametrize("number", [-1, CLIENTS, -CLIENTS, 2**31 - 1])
def test_an_unknown_number_is_nobody_where_numbers_are_traced(number):
    training = make_training()
    next_round, state = jax.jit(training.next), training.init(model())

    with_it = one_round(next_round, state, [5, number])
    without = one_round(next_round, state, [5, 0], [1, 0])

    np.testing.assert_array_equal(with_it.value["w"], without.value["w"])
    np.testing.assert_array_equal(
        with_it.state.memories["rounds"], without.state.memories["rounds"]
    )


@pytest.mark.deep
def test_rows_of_weight_zero_may_have_any_number():
    training = make_training()

    output = one_round(training.next, training.init(model()), [3, 3, 99], [1, 0, 0])

    np.testing.assert_array_equal(
        output.state.memories["rounds"], [0, 0, 0, 1, 0, 0, 0]
    )


@pytest.mark.parametrize(
    ("numbers", "error", "said"),
    [
        ([0, 1], ValueError, r"numbers: expected shape \(3,\)"),
        ([0.0, 1.0, 2.0], TypeError, "numbers: expected integers"),
        ([True, False, True], TypeError, "numbers: expected integers"),
        ([0, 1, 7], ValueError, "expected 0 to 6"),
        ([0, -1, 2], ValueError, "expected 0 to 6"),
        ([2, 1, 2], ValueError, "client 2 is 2 times"),
    ],
)
def test_wrong_numbers_are_an_error(numbers, error, said):
    training = make_training()

    with pytest.raises(error, match=said):
        training.next(training.init(model()), (TARGETS[:3], numbers))


def plain_work(variables, target, key):
    return {"w": target - variables["w"]}, {}


def test_memories_go_with_work_that_remembers():
    elsewhere = make_training(clients=None)
    state, rows = elsewhere.init(model()), TARGETS[:3]
    nothing = fedagg.RememberingWork(lambda variables: {}, make_work().work)

    with pytest.raises(ValueError, match="is for work that remembers"):
        make_training(work=plain_work, clients=5)
    with pytest.raises(ValueError, match="clients must be a whole number"):
        make_training(clients=0)
    with pytest.raises(ValueError, match="the work remembers, got memory=None"):
        elsewhere.next(state, rows)
    with pytest.raises(TypeError, match=r"takes a pair \(client_data, numbers\)"):
        training = make_training()
        training.next(training.init(model()), rows)
    with pytest.raises(ValueError, match="it is in the state"):
        training = make_training()
        data = rows, [0, 1, 2]
        training.next(training.init(model()), data, memory=jnp.zeros(3))
    with pytest.raises(ValueError, match="nothing to keep"):
        make_training(work=nothing).init(model())


def test_memories_elsewhere_are_given_to_a_round_and_come_back():
    inside, outside = make_training(), make_training(clients=None)
    state, memories = outside.init(model()), inside.init(model()).memories
    expected = inside.init(model())

    for cohort in COHORTS:
        rows = np.asarray(cohort)
        expected = one_round(inside.next, expected, cohort).state
        memory = {name: x[rows] for name, x in memories.items()}
        (state, *_), kept = outside.next(state, TARGETS[rows], memory=memory)
        memories = {name: x.at[rows].set(kept[name]) for name, x in memories.items()}

    jax.tree.map(np.testing.assert_array_equal, memories, expected.memories)
    np.testing.assert_array_equal(state.variables["w"], expected.variables["w"])


def test_the_steps_one_by_one_keep_what_the_round_does():
    training = make_training()
    steps, state = training.steps, training.init(model())
    expected = one_round(training.next, state, COHORTS[0]).state
    kept = {}

    for cohort in COHORTS[:2]:
        shared, total = steps.broadcast(state), None
        for i in cohort:
            given = {"memory": kept[i]} if i in kept else {}  # else that of `init`
            message, kept[i] = steps.client(shared, TARGETS[i], **given)
            total = steps.add(total, message)
        state = steps.server(state, total).state

    expected = one_round(training.next, expected, COHORTS[1]).state
    np.testing.assert_allclose(state.variables["w"], expected.variables["w"], rtol=1e-6)
    for i, memory in kept.items():
        np.testing.assert_allclose(memory["last"], expected.memories["last"][i])


@pytest.mark.thorough
def test_donated_memories_are_written_in_place():
    clients, width = 4096, 256

    def init(variables):
        return jnp.zeros(width)

    def work(variables, row, key, memory):
        memory = memory + row
        return {"w": memory}, {}, memory

    training = make_training(work=fedagg.RememberingWork(init, work), clients=clients)
    state = jax.eval_shape(training.init, {"w": jnp.zeros(width)})
    rows, numbers = jnp.ones((8, width)), jnp.arange(8)

    memory = (
        jax.jit(training.next, donate_argnums=0)
        .lower(state, (rows, numbers))
        .compile()
        .memory_analysis()
    )

    assert memory is not None
    assert memory.alias_size_in_bytes >= 4 * clients * width
    assert memory.temp_size_in_bytes < 4 * 64 * width


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.deep
def test_memories_may_be_shared_out_over_a_mesh(kind):
    kinds = (getattr(jax.sharding.AxisType, kind),)
    mesh = jax.make_mesh((8,), ("clients",), axis_types=kinds)
    training = make_training(fedagg.across(mesh), clients=8)
    state = training.init(model())
    parts = jax.NamedSharding(mesh, jax.P("clients"))
    shared = state._replace(memories=jax.device_put(state.memories, parts))
    next_round = jax.jit(training.next)

    for cohort in COHORTS:
        state = one_round(next_round, state, cohort).state
        shared = one_round(next_round, shared, cohort).state

    jax.tree.map(np.testing.assert_array_equal, shared.memories, state.memories)


def test_memories_survive_a_checkpoint():
    training = make_training()
    state = one_round(training.next, training.init(model()), COHORTS[0]).state

    saved = flax.serialization.to_bytes(state)
    restored = flax.serialization.from_bytes(training.init(model()), saved)

    want = one_round(training.next, state, COHORTS[1]).state
    got = one_round(training.next, restored, COHORTS[1]).state
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_rounds_scan():
    training = make_training()
    cohorts = jnp.asarray(COHORTS)

    def round_(state, numbers):
        rows = jnp.asarray(TARGETS)[numbers]
        output = training.next(state, (rows, numbers))
        return output.state, output.metrics["rounds"]

    scanned, rounds = jax.lax.scan(round_, training.init(model()), cohorts)

    state = training.init(model())
    for cohort in COHORTS:
        state = one_round(training.next, state, cohort).state
    np.testing.assert_array_equal(scanned.memories["rounds"], state.memories["rounds"])
    np.testing.assert_allclose(rounds, [1.0, 4 / 3, 7 / 3, 2.0], rtol=1e-6)


def test_a_view_of_the_server_has_no_row_for_what_clients_keep():
    training = make_training()

    view = fedagg.server_view(training, model(), row=TARGETS[0])

    assert [x.part for x in view.parts if "value" in x.part] == ["value['w']"]
