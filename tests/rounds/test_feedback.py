import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from tests.helpers import WAYS, assert_close, assert_same, every_way

N = 5
RNG = np.random.default_rng(3)
VALUES = {
    "b": jnp.asarray(RNG.normal(size=(N, 4)), jnp.float32),
    "w": jnp.asarray(RNG.normal(size=(N, 6, 5)), jnp.float32),
}
EVERYBODY = jnp.arange(N)
TEMPLATE = jax.tree.map(lambda x: x[0], VALUES)


def take(positions):
    return jax.tree.map(lambda x: x[jnp.asarray(positions)], VALUES)


def top_k_by_hand(vector, fraction):
    kept = np.argsort(-np.abs(vector), kind="stable")[: int(np.ceil(fraction * 34))]
    sent = np.zeros_like(vector)
    sent[kept] = vector[kept]
    return sent


def as_vectors(tree):
    return np.concatenate(
        [np.asarray(x, np.float64).reshape(len(x), -1) for x in jax.tree.leaves(tree)],
        axis=1,
    )


@pytest.mark.deep
def test_each_round_is_that_of_the_paper():
    feedback = fedagg.with_error_feedback(fedagg.top_k(0.1), N)
    next_round = jax.jit(feedback.next)
    state, memory = feedback.init(TEMPLATE), np.zeros((N, 34))

    for cohort in ([0, 1, 2, 3, 4], [3, 1], [4, 0, 2], [2]):
        rows = take(cohort)
        state, value, metrics = next_round(state, (rows, jnp.asarray(cohort)))
        for i, row in zip(cohort, as_vectors(rows), strict=True):
            memory[i] += top_k_by_hand(row - memory[i], 0.1)

        np.testing.assert_allclose(as_vectors(state.memory), memory, atol=1e-6)
        one = jax.tree.map(lambda x: x[None], value)
        np.testing.assert_allclose(as_vectors(one)[0], memory.mean(0), atol=1e-6)
        gap = np.sum((as_vectors(rows) - memory[cohort]) ** 2)
        want = gap / np.sum(as_vectors(rows) ** 2)
        np.testing.assert_allclose(
            metrics["error_feedback/distortion"], want, rtol=1e-5
        )


@pytest.mark.parametrize(
    "stage",
    [fedagg.top_k(0.2), fedagg.drive(), fedagg.quantization(2, 0)],
    ids=["top_k", "drive", "quantization"],
)
@pytest.mark.deep
def test_what_stays_the_same_arrives_in_the_end(stage):
    feedback = fedagg.with_error_feedback(stage, N)

    def body(state, seed):
        output = feedback.next(state, (VALUES, EVERYBODY), key=jax.random.key(seed))
        return output.state, output.value

    _, values = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(60)))(
        feedback.init(TEMPLATE)
    )

    last = jax.tree.map(lambda x: x[-1], values)
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), VALUES)
    assert_close(last, mean, rtol=1e-4)


@pytest.mark.deep
def test_absent_and_unknown_clients_change_nothing_whatever_they_hold():
    feedback = fedagg.with_error_feedback(fedagg.top_k(0.5), N)
    state = feedback.init(TEMPLATE)
    rows = take([0, 1, 2, 3])
    poisoned = jax.tree.map(lambda x: x.at[2:].set(jnp.nan), rows)

    expected = feedback.next(state, (take([0, 1]), jnp.array([0, 1])))
    absent = feedback.next(
        state, (poisoned, jnp.arange(4)), jnp.array([1.0, 2.0, 0.0, jnp.nan])
    )
    unknown = feedback.next(state, (poisoned, jnp.array([0, 1, -1, N])))

    assert_close(absent, expected)
    assert_close(unknown, expected)


@pytest.mark.parametrize("held", [jnp.nan, jnp.inf])
@pytest.mark.deep
def test_a_client_that_sends_no_number_is_left_out_and_counted(held):
    feedback = fedagg.with_error_feedback(fedagg.top_k(0.5), N)
    state = feedback.init(TEMPLATE)
    rows = take([0, 1, 2])
    broken = {**rows, "b": rows["b"].at[1, 0].set(held)}

    expected = feedback.next(state, (take([0, 2]), jnp.array([0, 2])))
    output = feedback.next(state, (broken, jnp.array([0, 1, 2])))

    assert output.metrics["error_feedback/count"] == 1.0
    assert_close(output.state, expected.state)
    assert_close(output.value, expected.value)


@pytest.mark.deep
def test_with_nobody_present_the_state_stays():
    feedback = fedagg.with_error_feedback(fedagg.top_k(0.5), N)
    state = feedback.next(feedback.init(TEMPLATE), (VALUES, EVERYBODY)).state

    output = feedback.next(state, (VALUES, EVERYBODY), jnp.zeros(N))

    assert_same(output.state, state)
    assert_same(output.value, state.mean)
    assert output.metrics["error_feedback/distortion"] == 0.0


@pytest.mark.deep
def test_the_value_comes_back_in_the_dtypes_of_the_rows():
    feedback = fedagg.with_error_feedback(fedagg.top_k(1.0), N)
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), VALUES)
    state = feedback.init(jax.tree.map(lambda x: x[0], halves))

    output = feedback.next(state, (halves, EVERYBODY))

    assert {x.dtype for x in jax.tree.leaves(output.value)} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(output.state.memory)} == {
        jnp.dtype("float32")
    }


@pytest.mark.parametrize(
    "stage", [fedagg.top_k(0.5), fedagg.eden(4), fedagg.quantization(4, 0)], ids=str
)
@pytest.mark.deep
def test_rows_of_64_bits_have_a_memory_of_64_bits(stage):
    key = jax.random.key(0)
    narrow = fedagg.with_error_feedback(stage, N)
    start = narrow.init(jax.tree.map(lambda x: x[0], VALUES))
    expected = jax.jit(narrow.next)(start, (VALUES, EVERYBODY), None, key)

    with jax.enable_x64(True):
        feedback = fedagg.with_error_feedback(stage, N)
        rows = jax.tree.map(lambda x: x.astype(jnp.float64), VALUES)
        state = feedback.init(jax.tree.map(lambda x: x[0], rows))
        output = jax.jit(feedback.next)(state, (rows, EVERYBODY), None, key)

    wide = (output.value, output.state.memory, output.state.mean)
    assert {x.dtype for x in jax.tree.leaves(wide)} == {jnp.dtype("float64")}
    assert_close(output.value, expected.value)


@pytest.mark.deep
def test_federated_averaging_keeps_the_memory():
    targets = jnp.asarray(np.random.default_rng(4).normal(size=(N, 8)), jnp.float32)

    def work(model, target, key):
        return jax.tree.map(lambda x: 0.5 * (target - x), model), {
            "far": jnp.sum(model)
        }

    training = fedagg.federated_averaging(
        work, optax.sgd(1.0), fedagg.with_error_feedback(fedagg.top_k(0.3), N)
    )
    state = training.init(jnp.zeros(8))
    next_round = jax.jit(training.next)
    for _ in range(60):
        state, model, metrics = next_round(state, (targets, EVERYBODY))

    np.testing.assert_allclose(model, jnp.mean(targets, axis=0), atol=1e-3)
    assert state.aggregator.memory.shape == (N, 8)
    np.testing.assert_allclose(metrics["far"], jnp.sum(model), rtol=1e-2)


@pytest.mark.parametrize("clients", [0, -1])
def test_a_number_of_clients_that_is_not_positive_is_an_error(clients):
    with pytest.raises(ValueError, match="clients must be a whole number, 1 or more"):
        fedagg.with_error_feedback(fedagg.top_k(0.5), clients)


@every_way
@pytest.mark.deep
def test_every_way_to_sum_gives_the_same(way):
    cohort = jnp.array([4, 0, 2])
    plain = fedagg.with_error_feedback(fedagg.top_k(0.2), N)
    other = fedagg.with_error_feedback(fedagg.top_k(0.2), N, sum_over=WAYS[way]())
    state = plain.next(plain.init(TEMPLATE), (VALUES, EVERYBODY)).state
    rows = take([4, 0, 2])

    expected = jax.jit(plain.next)(state, (rows, cohort), jnp.array([1.0, 0.0, 1.0]))
    got = jax.jit(other.next)(state, (rows, cohort), jnp.array([1.0, 0.0, 1.0]))

    assert_close(got, expected)


@pytest.mark.deep
def test_a_number_that_comes_twice_counts_once_with_its_first_row():
    feedback = fedagg.with_error_feedback(fedagg.top_k(0.5), N)
    state = feedback.init(TEMPLATE)

    once = feedback.next(state, (take([3, 1]), jnp.array([3, 1])))
    twice = feedback.next(state, (take([3, 1, 2, 0]), jnp.array([3, 1, 3, 1])))

    absent = feedback.next(
        state, (take([2, 3, 1]), jnp.array([3, 3, 1])), jnp.array([0.0, 1.0, 1.0])
    )

    for other in (twice, absent):
        assert_close(other.state, once.state)
        assert_close(other.value, once.value)


@pytest.mark.parametrize("others", [3, 8])
def test_the_memory_of_another_population_is_refused(others):
    feedback = fedagg.with_error_feedback(fedagg.top_k(0.5), N)
    state = fedagg.with_error_feedback(fedagg.top_k(0.5), others).init(TEMPLATE)

    message = f"the memory of {N} clients, .* got that of {others}"
    with pytest.raises(ValueError, match=message):
        feedback.next(state, (VALUES, EVERYBODY))


@pytest.mark.parametrize(
    "updates, error, message",
    [
        (VALUES, ValueError, r"a pair \(updates, numbers\)"),
        ((VALUES, jnp.ones(N)), TypeError, "numbers: expected integers, got dtype f"),
        ((VALUES, jnp.arange(N - 1)), ValueError, "must agree on the number of"),
    ],
)
def test_updates_without_the_numbers_of_clients_are_refused(updates, error, message):
    feedback = fedagg.with_error_feedback(fedagg.top_k(0.5), N)

    with pytest.raises(error, match=message):
        feedback.next(feedback.init(TEMPLATE), updates)
