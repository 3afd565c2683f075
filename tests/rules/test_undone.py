"""Rules after stages that send other coordinates or units: what they see of a client.

The references decode each client's message by itself, and combine in float64.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from tests.compiling import jit
from tests.helpers import assert_close, assert_same, first_now, mesh_of
from tests.rules import references

N, D = 7, 5  # which a rotation fills up

rotated = fedagg.rotation("hadamard")
bound = fedagg.quantile_bound(1.0, 0.8, 0.2)
STAGES = {
    "hadamard": (rotated,),
    "drive": (fedagg.drive(),),
    "quantized": (
        fedagg.zeroing(50.0, keep_weight=False),
        fedagg.clipping(2.0),
        rotated,
        fedagg.quantization(6),
    ),
    "dft": (fedagg.rotation("dft"),),
    "random_k": (fedagg.random_k(0.5),),
    "eden": (fedagg.clipping(2.0), fedagg.eden(2)),
    "discretization": (fedagg.discretization(0.1, stochastic=True),),
    "nested": (fedagg.chain(fedagg.clipping(2.0), fedagg.chain(rotated)),),
    "measured": (fedagg.with_distortion(fedagg.random_k(0.5)),),
    "bound_after": (rotated, fedagg.clipping(bound), fedagg.top_k(0.6)),
    "grouped": (
        fedagg.grouped(
            {"a": fedagg.discretization(0.1, stochastic=False), "*": fedagg.drive()}
        ),
    ),
}
every_chain = first_now("name", STAGES, quick=3)


def round_key() -> jax.Array:
    return jax.random.key(3)


def clients(seed: int, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)


def tree(x: np.ndarray) -> dict[str, jax.Array]:
    return {"a": jnp.asarray(x[..., 0]), "b": jnp.asarray(x[..., 1:])}


def vector(value: dict[str, jax.Array]) -> np.ndarray:
    return np.concatenate([np.asarray(value["a"])[None], np.asarray(value["b"])])


def row(x: np.ndarray, i: int) -> dict[str, jax.Array]:
    return jax.tree.map(lambda leaf: leaf[i], tree(x))


def decoded(stages: Any, state: Any, x: np.ndarray) -> np.ndarray:
    """What a server makes of each client's message alone, in float64."""
    alone = fedagg.aggregator(*stages)
    shared = alone.steps.broadcast(state)
    values = []
    for i in range(len(x)):
        key = jax.random.fold_in(round_key(), i)
        message = alone.steps.client(shared, row(x, i), 1.0, key)
        values.append(alone.steps.server(state, alone.steps.add(None, message)).value)
    return np.array([vector(value) for value in values], np.float64)


def by_steps(aggregator: Any, state: Any, x: np.ndarray) -> fedagg.Output:
    """A round taken apart, with the clients' keys of a round."""
    steps, total = aggregator.steps, None
    shared = steps.broadcast(state)
    for i in range(len(x)):
        key = jax.random.fold_in(round_key(), i)
        total = steps.add(total, steps.client(shared, row(x, i), 1.0, key))
    return steps.server(state, total, round_key())


def momentum() -> fedagg.Stage:
    """A user's own: the server adds half of what it made the last time."""

    def server(state: Any, total: Any, note: Any, key: Any):
        value = jax.tree.map(lambda x, last: x + 0.5 * last, total, state)
        return fedagg.Output(value, value, {})

    return fedagg.Stage(
        init=lambda template: jax.tree.map(jnp.zeros_like, template),
        broadcast=lambda state: (),
        client=lambda shared, update, key: (update, ()),
        server=server,
        traits=fedagg.Traits("momentum"),
    )


def in_thousandths(draws: bool = False) -> fedagg.Stage:
    """A user's own: it sends other units, and keeps the sum of what was sent."""

    def client(shared: Any, update: fedagg.Update, key: Any):
        value = jax.tree.map(lambda x: 1000.0 * x, update.value)
        return update._replace(value=value), jnp.float32(1.0)

    def server(state: Any, total: Any, note: jax.Array, key: Any):
        value = jax.tree.map(lambda x: x / 1000.0, total)
        if draws:
            draw = jax.random.normal(key)
            value = jax.tree.map(lambda x: x + draw, value)
        return fedagg.Output(total, value, {"count": note})

    return fedagg.Stage(
        init=lambda template: jax.tree.map(jnp.zeros_like, template),
        broadcast=lambda state: (),
        client=client,
        server=server,
        traits=fedagg.Traits("in_thousandths", transforms=True),
    )


@pytest.mark.parametrize("kind", ["hadamard", "dft"])
def test_the_median_after_a_rotation_is_that_of_the_updates(kind):
    aggregator = fedagg.combining(fedagg.median(), fedagg.rotation(kind))
    x = clients(0)

    value = jit(aggregator.next)(aggregator.init(tree(x[0])), tree(x)).value

    assert_close(vector(value), references.median(x.astype(np.float64)))


def test_centered_clipping_after_a_rotation_goes_on_from_the_last_value():
    rule = fedagg.centered_clipping(0.7, iterations=2)
    aggregator = fedagg.combining(rule, rotated)
    state, step = aggregator.init(tree(clients(0)[0])), jit(aggregator.next)
    center, turns = np.zeros(D), []
    for seed in range(3):
        x = clients(seed)
        turns.append(np.asarray(aggregator.steps.broadcast(state)[0][1]))

        output = step(state, tree(x))

        center = references.centered_clipping(x, center, 0.7, 2)
        assert_close(vector(output.value), center, rtol=2e-5)
        state = output.state
    assert len({x.tobytes() for x in turns}) == 3  # other coordinates in each round


def test_after_random_k_a_rule_sees_each_value_scaled_where_it_was_sent():
    rule = fedagg.centered_clipping(0.7, iterations=2)
    aggregator = fedagg.combining(rule, fedagg.random_k(0.5))
    state, step = aggregator.init(tree(clients(0)[0])), jit(aggregator.next)
    center, ends = np.zeros(D), np.arange(4) * D // 3  # three entries are sent
    for seed in range(3):
        x = clients(seed)
        positions = np.asarray(aggregator.steps.broadcast(state)[0][1])

        output = step(state, tree(x))

        seen = np.zeros((N, D))
        seen[:, positions] = x[:, positions] * np.diff(ends)
        center = references.centered_clipping(seen, center, 0.7, 2)
        assert_close(vector(output.value), center, rtol=2e-5)
        state = output.state


@every_chain
def test_a_rule_sees_what_each_message_decodes_to_alone(name):
    stages = STAGES[name]
    aggregator = fedagg.combining(
        fedagg.nearest_neighbor_mixing(2, fedagg.median()), *stages
    )
    alone = fedagg.aggregator(*stages)
    state, states = aggregator.init(tree(clients(0)[0])), alone.init(row(clients(0), 0))
    step = jit(aggregator.next)
    for seed in range(2):
        x = clients(seed)
        x[2] *= 100.0  # which a zeroing leaves out

        output = step(state, tree(x), None, round_key())

        seen = decoded(stages, states, x)
        if name == "quantized":
            seen = np.delete(seen, 2, axis=0)
        mixed = references.nearest_neighbor_mixing(seen, 2)
        assert_close(vector(output.value), references.median(mixed), rtol=1e-4)
        # States and metrics are those of a sum.
        summed = alone.next(states, tree(x), None, round_key())
        assert_close(output.state[0], tuple(summed.state), rtol=1e-4)
        assert_close(output.metrics, summed.metrics, rtol=1e-4)
        state, states = output.state, summed.state


@every_chain
def test_steps_taken_apart_give_what_next_gives(name):
    rule = fedagg.centered_clipping(1.0, iterations=2)
    aggregator = fedagg.combining(rule, *STAGES[name])
    state, x = aggregator.init(tree(clients(0)[0])), clients(1)
    expected = jit(aggregator.next)(state, tree(x), None, round_key())

    got = by_steps(aggregator, state, x)

    assert_close(got, jax.tree.map(np.asarray, expected), rtol=1e-4)


@every_chain
def test_with_nobody_there_the_value_is_zero_and_nothing_advances(name):
    aggregator = fedagg.combining(fedagg.median(), *STAGES[name])
    state, x = aggregator.init(tree(clients(0)[0])), tree(clients(1))

    by_next = jit(aggregator.next)(state, x, jnp.zeros(N), round_key())
    taken_apart = aggregator.steps.server(state, None, round_key())

    for output in (by_next, taken_apart):
        assert not np.any(vector(output.value))
        assert_same(output.state, state)


@first_now("name", STAGES, quick=2)
def test_eight_devices_give_what_one_gives(name):
    rule, n = fedagg.centered_clipping(1.0, iterations=2), 11
    x, weights = tree(clients(1, n)), jnp.ones(n).at[4].set(0.0)
    x["a"] = x["a"].at[4].set(math.nan)
    one = fedagg.combining(rule, *STAGES[name])
    way = fedagg.across(mesh_of(8))
    eight = fedagg.combining(rule, *STAGES[name], sum_over=way)
    state = one.init(tree(clients(0)[0]))
    expected = jit(one.next)(state, x, weights, round_key())

    got = jit(eight.next)(state, x, weights, round_key())

    assert_close(got, jax.tree.map(np.asarray, expected), rtol=1e-4)


@pytest.mark.parametrize(
    "way", [fedagg.in_chunks(1), fedagg.in_chunks(3)], ids=["one", "three"]
)
def test_chunks_give_what_all_at_once_give(way):
    rule, x = fedagg.median(), tree(clients(1))
    aggregator = fedagg.combining(rule, *STAGES["quantized"])
    in_chunks = fedagg.combining(rule, *STAGES["quantized"], sum_over=way)
    state = aggregator.init(tree(clients(0)[0]))

    got = jit(in_chunks.next)(state, x, None, round_key())

    expected = jit(aggregator.next)(state, x, None, round_key())
    assert_close(got, jax.tree.map(np.asarray, expected), rtol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 1.0], ids=["absent", "present"])
def test_a_client_of_nan_is_left_out_as_without_the_stage(weight):
    x = clients(1)
    x[3, 2] = math.nan
    weights = jnp.ones(N).at[3].set(weight)
    rotating = fedagg.combining(fedagg.centered_clipping(1.0), rotated)
    plain = fedagg.combining(fedagg.centered_clipping(1.0))
    template = tree(clients(0)[0])

    got = jit(rotating.next)(rotating.init(template), tree(x), weights)

    expected = jit(plain.next)(plain.init(template), tree(x), weights)
    assert_close(got.value, jax.tree.map(np.asarray, expected.value))
    assert_close(got.state[1], jax.tree.map(np.asarray, expected.state[1]))
    assert got.state[0][0].round == 1


def test_what_an_absent_client_sends_is_not_in_the_sum_that_a_stage_keeps():
    aggregator = fedagg.combining(fedagg.median(), in_thousandths())
    x, steps = clients(1), aggregator.steps
    state = aggregator.init(row(x, 0))
    sent = [steps.client(((),), row(x, i), float(i != 3)) for i in range(N)]
    poison = jax.tree.map(lambda leaf: leaf * math.nan, sent[3].value.value)
    value = dataclasses.replace(sent[3].value, value=poison)
    sent[3] = sent[3]._replace(value=value)

    output = steps.server(state, functools.reduce(steps.add, sent, None))

    rest = np.delete(x, 3, axis=0).astype(np.float64)
    assert_close(vector(output.value), references.median(rest))
    assert_close(vector(output.state[0][0]), 1000.0 * rest.sum(axis=0), rtol=1e-3)
    assert output.metrics["count"] == N - 1


def test_a_stage_of_a_users_own_is_undone_if_it_says_that_it_transforms():
    x = clients(1)
    rule = fedagg.centered_clipping(0.7)
    aggregator = fedagg.combining(rule, in_thousandths())

    output = jit(aggregator.next)(aggregator.init(row(x, 0)), tree(x))

    expected = references.centered_clipping(x, np.zeros(D), 0.7, 1)
    assert_close(vector(output.value), expected)
    assert_close(vector(output.state[0][0]), 1000.0 * x.sum(axis=0), rtol=1e-3)


def test_a_client_that_a_stage_to_undo_set_aside_keeps_its_memory():
    rounded = fedagg.discretization(0.01, stochastic=False)
    aggregator = fedagg.combining(fedagg.median(), rounded)
    x = clients(1)
    x[3] = 1e9  # in steps more than it takes

    def work(row: Any, key: Any, memory: jax.Array):
        return row, {"mean": row["a"]}, memory + 1.0

    output, memory = aggregator.next(
        aggregator.init(row(x, 0)), tree(x), work=work, memory=jnp.zeros(N)
    )

    assert_close(memory, np.float32(np.arange(N) != 3))
    assert output.metrics["discretization/count"] == 1.0


def test_a_server_that_draws_has_a_key_for_each_client():
    aggregator = fedagg.combining(fedagg.median(), in_thousandths(draws=True))
    x = np.zeros((400, D), np.float32)
    state = aggregator.init(row(x, 0))

    by_next = vector(jit(aggregator.next)(state, tree(x), None, round_key()).value)
    taken_apart = vector(by_steps(aggregator, state, x[:30]).value)

    # The median of many draws is near zero, and one draw for all is not.
    assert np.all(np.abs(by_next) < 0.25) and np.any(by_next)
    assert np.all(np.abs(taken_apart) < 0.9) and np.any(taken_apart)


def test_a_bound_with_noise_goes_after_a_rotation():
    noisy = fedagg.quantile_bound(
        1.0, 0.5, 0.2, below_estimate_stddev=0.5, expected_num_clients=10
    )
    aggregator = fedagg.combining(fedagg.median(), rotated, fedagg.clipping(noisy))
    x = clients(1)

    output = jit(aggregator.next)(
        aggregator.init(row(x, 0)), tree(x), None, round_key()
    )

    sizes = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    assert_close(vector(output.value), references.median(x / np.maximum(1.0, sizes)))


def test_a_stage_before_a_rotation_gets_the_value_of_the_rule():
    aggregator = fedagg.combining(fedagg.median(), momentum(), rotated)
    state, last = aggregator.init(row(clients(0), 0)), np.zeros(D)
    for seed in range(3):
        x = clients(seed)

        output = jit(aggregator.next)(state, tree(x))

        last = references.median(x.astype(np.float64)) + 0.5 * last
        assert_close(vector(output.value), last)
        assert_close(vector(output.state[0][0]), last)
        state = output.state


@first_now("name", STAGES, quick=2)
def test_a_rule_is_given_a_template_of_what_it_sees(name):
    seen = []

    def shapes(x: Any) -> Any:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), x)

    def init(template: Any) -> tuple:
        seen.append(shapes(template))
        return ()

    def combine(state: Any, updates: fedagg.Update, key: Any) -> fedagg.Output:
        value = jax.tree.map(lambda x: x[0], updates.value)
        seen.append(shapes(value))
        return fedagg.Output(state, value, {})

    aggregator = fedagg.combining(fedagg.Rule(init, combine), *STAGES[name])
    x = tree(clients(0))
    x["b"] = x["b"].astype(jnp.bfloat16)
    state = aggregator.init(jax.tree.map(lambda leaf: leaf[0], x))

    output = aggregator.next(state, x, None, round_key())

    assert seen[0] == seen[1]
    assert seen[0] == {"a": ((), jnp.float32), "b": ((D - 1,), jnp.float32)}
    assert output.value["b"].dtype == jnp.bfloat16


def test_values_of_64_bits_come_back_in_64():
    with jax.enable_x64(True):
        stages = in_thousandths(), fedagg.clipping(1e9)
        aggregator = fedagg.combining(fedagg.median(), *stages)
        x = jnp.asarray(clients(0).astype(np.float64) + 1e-12)

        value = jit(aggregator.next)(aggregator.init(x[0]), x).value

        assert value.dtype == jnp.float64
        expected = references.median(np.asarray(x))
        np.testing.assert_allclose(np.asarray(value), expected, rtol=1e-14)


def test_training_goes_through_a_rule_after_a_rotation():
    def work(variables: Any, data: Any, key: Any):
        return jax.tree.map(jnp.subtract, data, variables), {}

    x = clients(1)
    middle = fedagg.combining(fedagg.median(), rotated, fedagg.quantization(16))
    training = fedagg.federated_averaging(work, optax.sgd(1.0), middle)
    state = training.init(row(np.zeros_like(x), 0))

    state = training.next(state, tree(x), None, round_key()).state

    np.testing.assert_allclose(vector(state.variables), np.median(x, axis=0), atol=1e-3)
