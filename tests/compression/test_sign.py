"""Signs, and what most clients voted for."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import WAYS, assert_same, every_way, first_now, first_round_compiled

vote = fedagg.aggregator(fedagg.sign())


def sent(value: Any, key: jax.Array | None, **options: Any) -> Any:
    """The message of one client."""
    stage = fedagg.sign(**options)
    shared = stage.broadcast(stage.init(value))
    return stage.client(shared, fedagg.Update(value, jnp.float32(1.0)), key)[0].value


def outcome(*rows: list[float], weights: Any = None, seed: int = 0) -> np.ndarray:
    output = first_round_compiled(
        vote, {"x": jnp.asarray(rows, jnp.float32)}, weights, jax.random.key(seed)
    )
    return np.asarray(output.value["x"])


def test_the_value_is_the_sign_that_most_clients_sent():
    got = outcome(
        [1.0, -2.0, 3.0, 1.0],
        [0.1, -0.1, -5.0, -1.0],
        [-9.0, -1e-30, 1e-30, 1e30],
        [1.0, 1.0, 1.0, -1e30],
    )

    # By three to one, or by two to two: no size counts, and equal votes give zero.
    assert_same(got, np.asarray([1.0, -1.0, 1.0, 0.0], np.float32))


@every_way
def test_a_vote_is_the_sign_of_the_sum_of_numpys_signs(way):
    x = np.random.default_rng(1).normal(size=(11, 3, 5)).astype(np.float32)
    weights = np.asarray([1.0, 0.0, 7.0] + [0.5] * 8, np.float32)
    aggregator = fedagg.aggregator(fedagg.sign(), sum_over=WAYS[way]())

    output = first_round_compiled(
        aggregator, {"x": jnp.asarray(x)}, jnp.asarray(weights), jax.random.key(2)
    )

    # A weight says who is present, and no more.
    expected = np.sign(np.sign(x[weights > 0.0]).sum(axis=0))
    assert_same(output.value["x"], jnp.asarray(expected))
    assert output.metrics == {}


@pytest.mark.deep
def test_signs_take_a_bit_an_entry():
    value = {"x": jnp.ones((20, 5)), "y": jnp.float32(-1.0)}

    message = sent(value, jax.random.key(3))

    assert sum(x.nbytes for x in jax.tree.leaves(message["x"])) == 13 + 4
    assert sum(x.nbytes for x in jax.tree.leaves(message["y"])) == 1 + 4
    assert_same(message["x"].decode(), value["x"])
    assert_same(message["y"].decode(), value["y"])


def test_a_tensor_of_zeros_does_not_vote():
    got = outcome([0.0, 0.0, -0.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0])
    nobody = outcome([0.0, 0.0], [0.0, 0.0])

    assert_same(got, np.asarray([1.0, -1.0, 1.0], np.float32))
    assert_same(nobody, np.zeros(2, np.float32))


def test_a_tensor_does_not_vote_by_itself():
    values = {
        "zero": jnp.asarray([[0.0, 0.0], [-1.0, 1.0]]),
        "other": jnp.asarray([[2.0], [3.0]]),
    }

    output = first_round_compiled(vote, values, None, jax.random.key(4))

    assert_same(output.value["zero"], jnp.asarray([-1.0, 1.0]))
    assert_same(output.value["other"], jnp.asarray([1.0]))


@first_now("size", [3, 30_000])
def test_a_tensor_with_a_nan_does_not_vote_and_one_with_an_infinity_does(size):
    # XLA's maximum over many entries leaves a NaN out on a CPU.
    x = np.full((4, size), 1.0, np.float32)
    x[:2] = -1.0
    x[0, size // 2] = math.nan
    x[1, size // 2] = -math.inf
    x[2, size // 2] = math.inf

    output = first_round_compiled(vote, {"x": jnp.asarray(x)}, None, jax.random.key(5))

    assert_same(output.value["x"], jnp.ones(size))


def test_a_client_that_zeroing_took_out_does_not_vote():
    aggregator = fedagg.aggregator(fedagg.zeroing(10.0), fedagg.sign())
    values = {"x": jnp.asarray([[-100.0, -1.0], [math.nan, -1.0], [1.0, 1.0]])}

    output = first_round_compiled(aggregator, values, None, jax.random.key(6))

    assert_same(output.value["x"], jnp.ones(2))
    assert output.metrics["zeroing/count"] == 2.0


def test_an_entry_of_zero_votes_by_a_fair_coin():
    n, d = 400, 100
    value = np.zeros(d, np.float32)
    value[:2] = 1.0, -1.0
    keys = jax.random.split(jax.random.key(7), n)

    got = np.asarray(
        jax.jit(jax.vmap(lambda key: sent(jnp.asarray(value), key).decode()))(keys)
    )

    assert set(np.unique(got)) == {-1.0, 1.0}
    assert np.all(got[:, 0] == 1.0) and np.all(got[:, 1] == -1.0)
    coins = got[:, 2:]
    # Five deviations of each mean: of all, of a position, of a client.
    assert abs(np.mean(coins)) < 5.0 / math.sqrt(coins.size)
    assert np.max(np.abs(np.mean(coins, axis=0))) < 5.0 / math.sqrt(n)
    assert np.max(np.abs(np.mean(coins, axis=1))) < 5.0 / math.sqrt(d - 2)
    # Clients' coins agree as often as not: each pair's product is a coin as well.
    pairs = coins @ coins.T / (d - 2)
    off_diagonal = pairs[~np.eye(n, dtype=bool)]
    assert np.max(np.abs(off_diagonal)) < 6.5 / math.sqrt(d - 2)
    np.testing.assert_allclose(np.var(off_diagonal), 1.0 / (d - 2), rtol=0.05)


@pytest.mark.deep
def test_coins_are_those_of_the_key_and_of_no_other():
    value = jnp.asarray([1.0] + [0.0] * 199)

    first, again, other = (sent(value, jax.random.key(i)).decode() for i in (8, 8, 9))

    assert_same(first, again)
    assert 50 < np.sum(first != other) < 150  # about half, with a deviation of seven


def test_an_absent_client_does_not_vote():
    got = outcome([math.nan, 1.0], [1.0, 1.0], weights=jnp.asarray([0.0, 1.0]))
    nobody = outcome([1.0, 1.0], weights=jnp.asarray([0.0]))

    assert_same(got, np.ones(2, np.float32))
    assert_same(nobody, np.zeros(2, np.float32))


@first_now("dtype", ["bfloat16", "float16"])
def test_votes_of_half_precision_are_counted_in_float32(dtype):
    # In bfloat16 a count would stop at 256, and the last thousand decide.
    x = jnp.ones((3000, 1), dtype).at[:1400].set(-1.0)

    output = first_round_compiled(vote, {"x": x}, None, jax.random.key(10))

    assert_same(output.value["x"], jnp.ones(1, dtype))


def test_an_empty_tensor_stays_empty():
    output = first_round_compiled(
        vote, {"x": jnp.zeros((2, 0, 3))}, None, jax.random.key(11)
    )

    assert output.value["x"].shape == (0, 3)


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_a_leaf_of_integers_is_refused_by_its_path(dtype):
    value = {"a": jnp.ones(3), "b": [jnp.ones(3, dtype)]}

    with pytest.raises(TypeError, match=rf"own .* \['b'\]\[0\] has dtype {dtype}"):
        sent(value, jax.random.key(0), name="own")


def test_a_missing_key_is_an_error_that_names_the_stage():
    with pytest.raises(ValueError, match="^own draws .* key=None"):
        sent({"x": jnp.ones(3)}, None, name="own")
