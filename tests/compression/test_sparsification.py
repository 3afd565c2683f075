"""The largest entries of a value, and entries drawn by all clients alike."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import (
    TEMPLATE,
    assert_close,
    assert_same,
    first_now,
    first_round_compiled,
    make_updates,
    with_absent,
)

STAGES = {"top_k": fedagg.top_k, "random_k": fedagg.random_k}
both = pytest.mark.parametrize("make", STAGES.values(), ids=STAGES)


def sent(stage: fedagg.Stage, value: Any) -> Any:
    """The message of one client, without its notes."""
    shared = stage.broadcast(stage.init(value))
    return stage.client(shared, fedagg.Update(value, jnp.float32(1.0)), None)[0].value


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def largest_of(x: np.ndarray, k: int) -> np.ndarray:
    """The vector with all but its k largest entries set to zero."""
    kept = np.argsort(-np.abs(x.astype(np.float64)), kind="stable")[:k]
    out = np.zeros_like(x)
    out[kept] = x[kept]
    return out


@pytest.mark.parametrize("fraction", [1e-10, 0.01, 0.07, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.deep
def test_the_largest_entries_are_those_of_numpy(fraction, size):
    x = normal(size, seed=size)

    message = sent(fedagg.top_k(fraction), {"x": jnp.asarray(x)})

    # Exactly, in whole numbers; 0.07 of 100 are 7, though not in floating point.
    thousandths = round(1000 * fraction)
    k = max(1, -(-thousandths * size // 1000))
    assert message.values.shape == (k,)
    assert_same(message.decode(), jnp.asarray(largest_of(x, k)))


def test_entries_of_all_leaves_compete_as_one_vector():
    value = {
        "a": jnp.asarray([[1.0, -9.0], [0.5, 0.1]]),
        "b": (jnp.float32(-7.0), jnp.zeros((0, 3))),
        "c": jnp.asarray([8.0, -2.0, 3.0]),
    }
    aggregator = fedagg.aggregator(fedagg.top_k(3 / 8))

    output = first_round_compiled(aggregator, jax.tree.map(lambda x: x[None], value))

    expected = {
        "a": jnp.asarray([[0.0, -9.0], [0.0, 0.0]]),
        "b": (jnp.float32(-7.0), jnp.zeros((0, 3))),
        "c": jnp.asarray([8.0, 0.0, 0.0]),
    }
    assert_same(output.value, expected)


@pytest.mark.deep
def test_a_tenth_of_a_normal_vector_leaves_out_this_much():
    x = normal(2**16)

    got = sent(fedagg.top_k(0.1), jnp.asarray(x)).decode()

    left_out = np.sum((np.asarray(got, np.float64) - x) ** 2)
    # The integral of x^2 over what is left out. One vector varies by half a percent.
    np.testing.assert_allclose(
        left_out / np.sum(x.astype(np.float64) ** 2), 0.561, rtol=0.02
    )


def test_clients_of_different_positions_are_decoded_and_then_added():
    updates = with_absent(make_updates(), math.nan, [4])
    aggregator = fedagg.aggregator(fedagg.mean(), fedagg.top_k(0.3))

    output = first_round_compiled(aggregator, *updates)

    weights = np.asarray(updates.weight, np.float64)
    b, w = (np.asarray(updates.value[leaf]) for leaf in "bw")
    flat = np.concatenate([b[:, None], w.reshape(-1, 6)], axis=1)
    rows = [w * largest_of(x, 3) for x, w in zip(flat, weights, strict=True) if w > 0.0]
    mean = np.sum(rows, axis=0, dtype=np.float64) / weights.sum()
    assert_close(output.value, {"b": mean[0], "w": mean[1:].reshape(3, 2)})


@first_now("size", [1, 2, 3, 128, 129, 256, 257, 70_000])
def test_a_position_takes_as_many_bits_as_the_last_one_has(size):
    k = max(1, size // 100)
    x = np.zeros(size, np.float32)
    x[-k:] = np.arange(1, k + 1)

    message = sent(fedagg.top_k(k / size), jnp.asarray(x))

    bits = max(1, math.ceil(math.log2(size)))
    sizes = [part.nbytes for part in message.positions]
    # Each part of 8, 4, 2 and 1 bits is filled up to a byte.
    parts = [8] * (bits // 8) + [width for width in (4, 2, 1) if bits & width]
    assert sizes == [math.ceil(k * width / 8) for width in parts]
    assert message.values.nbytes == 4 * k
    assert_same(message.decode(), jnp.asarray(x))


def test_a_nan_counts_as_largest_and_shows():
    x = normal(2, 30_000)
    x[0, 777] = math.nan
    x[1, 778] = -math.nan
    aggregator = fedagg.aggregator(fedagg.top_k(1e-4))

    output = first_round_compiled(aggregator, {"x": jnp.asarray(x)})

    assert np.flatnonzero(np.isnan(output.value["x"])).tolist() == [777, 778]


@pytest.mark.deep
def test_a_message_is_the_same_in_a_compiled_program():
    value = {"x": jnp.asarray(normal(50)), "y": jnp.asarray(normal(3, 2))}
    stage = fedagg.top_k(0.2)

    assert_same(jax.jit(lambda x: sent(stage, x))(value), sent(stage, value))


@pytest.mark.deep
def test_ties_are_taken_from_the_front():
    assert_same(
        sent(fedagg.top_k(0.5), jnp.asarray([1.0, -1.0, 1.0, -1.0])).decode(),
        jnp.asarray([1.0, -1.0, 0.0, 0.0]),
    )


@both
def test_every_entry_is_sent_for_a_fraction_of_one(make):
    updates = make_updates()

    got = first_round_compiled(fedagg.aggregator(fedagg.mean(), make(1.0)), *updates)
    expected = first_round_compiled(fedagg.aggregator(fedagg.mean()), *updates)

    assert_close(got.value, expected.value)


@both
def test_zeros_and_nobody_and_no_entries_give_zeros(make):
    aggregator = fedagg.aggregator(make(0.4))
    weights = jnp.asarray([0.0, 0.0])

    zeros = first_round_compiled(aggregator, {"x": jnp.zeros((2, 5))})
    nobody = first_round_compiled(
        aggregator, {"x": jnp.full((2, 5), math.nan)}, weights
    )
    empty = first_round_compiled(aggregator, {"x": jnp.zeros((2, 0, 3))})

    assert_same(zeros.value["x"], jnp.zeros(5))
    assert_same(nobody.value["x"], jnp.zeros(5))
    assert_same(empty.value["x"], jnp.zeros((0, 3)))


@both
@first_now("dtype", ["bfloat16", "float16"])
def test_half_precision_comes_back_and_is_summed_in_float32(make, dtype):
    # In bfloat16 a sum of ones stops at 256.
    aggregator = fedagg.aggregator(make(1.0))

    output = first_round_compiled(aggregator, {"x": jnp.ones((4096, 2), dtype)})

    assert_same(output.value["x"], jnp.full(2, 4096.0, dtype))


@both
@first_now("dtype", ["int32", "uint8"])
def test_a_leaf_of_integers_is_refused_by_its_path(make, dtype):
    value = {"a": jnp.ones(3), "b": [jnp.ones(3, dtype)]}

    with pytest.raises(TypeError, match=rf"own .* \['b'\]\[0\] has dtype {dtype}"):
        sent(make(0.5, name="own"), value)


@both
@pytest.mark.parametrize("value", [{"x": jnp.ones((2, 4))}, {"y": jnp.ones((2, 3))}])
def test_a_value_unlike_the_template_is_refused_by_its_path(make, value):
    aggregator = fedagg.aggregator(make(0.5, name="own"))
    state = aggregator.init({"x": jnp.ones(3)})

    with pytest.raises(ValueError, match=r"expected \['x'\] of shape \[3\]"):
        aggregator.next(state, value)


@both
@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.001, math.nan, math.inf])
def test_a_fraction_out_of_range_is_refused(make, fraction):
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got"):
        make(fraction)


def rounds_of(stage: fedagg.Stage, x: np.ndarray, rounds: int) -> np.ndarray:
    """What a round of one client gives, so many times over."""
    aggregator = fedagg.aggregator(stage)

    def body(state: Any, _: None) -> tuple[Any, jax.Array]:
        output = aggregator.next(state, jnp.asarray(x[None]))
        return output.state, output.value

    start = aggregator.init(jnp.asarray(x))
    return np.asarray(jax.lax.scan(body, start, None, length=rounds)[1], np.float64)


@first_now("fraction", [1 / 8, 1 / 2, 1 / 64])
def test_the_error_of_random_entries_is_that_of_the_formula(fraction):
    x = normal(4096, seed=1)

    got = rounds_of(fedagg.random_k(fraction), x, 400)

    error = np.mean(np.sum((got - x) ** 2, axis=1)) / np.sum(x.astype(np.float64) ** 2)
    np.testing.assert_allclose(error, 1.0 / fraction - 1.0, rtol=0.02)
    assert np.all(np.sum(got != 0.0, axis=1) == 4096 * fraction)


@first_now("size, fraction", [(24, 0.25), (23, 0.3), (10, 0.99), (7, 0.1)])
def test_random_entries_are_unbiased_for_stretches_of_any_length(size, fraction):
    x, n = 1.0 + np.abs(normal(size, seed=2)), 8000

    got = rounds_of(fedagg.random_k(fraction), x, n)

    # An entry comes with probability 1 / length, times its stretch's length.
    chances = np.mean(got != 0.0, axis=0)
    lengths = np.max(got, axis=0) / x
    np.testing.assert_allclose(lengths, np.round(lengths), rtol=1e-6)
    deviation = x * np.sqrt((lengths - 1.0) / n)
    assert np.all(np.abs(np.mean(got, axis=0) - x) <= 5.0 * deviation + 1e-6)
    assert np.all(np.abs(chances - 1.0 / lengths) <= 5.0 * deviation / x + 1e-9)
    k = math.ceil(fraction * size)
    assert np.all(np.sum(got != 0.0, axis=1) == k)
    assert set(np.round(lengths)) <= {size // k, -(-size // k)}


def test_all_clients_of_a_round_send_the_same_positions():
    positions = np.arange(1, 101, dtype=np.float32)
    rows = {"x": jnp.asarray(np.stack([positions, 1000.0 * positions, -positions]))}
    stage = fedagg.random_k(0.1)

    messages = [sent(stage, {"x": x}) for x in rows["x"]]

    assert messages[0].shape == (10,)
    assert_same(messages[1], 1000.0 * messages[0])
    assert_same(messages[2], -messages[0])


def test_random_entries_are_linear():
    # What the server makes of added messages is what it would make of the sum.
    updates = make_updates()
    aggregator = fedagg.aggregator(fedagg.random_k(0.5))
    total = jax.tree.map(lambda x: jnp.sum(x, axis=0, keepdims=True), updates.value)

    apart = first_round_compiled(aggregator, updates.value)
    together = first_round_compiled(aggregator, total)

    assert_close(apart.value, together.value)
    assert any(np.any(x == 0.0) for x in jax.tree.leaves(apart.value))


@pytest.mark.deep
def test_positions_are_other_ones_each_round_and_for_each_seed():
    x = np.ones(200, np.float32)

    got = rounds_of(fedagg.random_k(0.5), x, 50) != 0.0
    again = rounds_of(fedagg.random_k(0.5, seed=0), x, 50) != 0.0
    other = rounds_of(fedagg.random_k(0.5, seed=1), x, 50) != 0.0

    np.testing.assert_array_equal(got, again)
    # Of a hundred pairs, half agree, with a deviation of five.
    pairs = got[:, ::2].astype(int)
    agree = [np.sum(a == b) for i, a in enumerate(pairs) for b in pairs[:i]]
    assert 20 < min(agree) and max(agree) < 80
    assert 20 < np.sum(got[0, ::2] == other[0, ::2]) < 80


def test_a_round_without_clients_does_not_count():
    aggregator = fedagg.aggregator(fedagg.random_k(0.5))
    updates = make_updates()
    next_round = jax.jit(aggregator.next)
    start = aggregator.init(TEMPLATE)

    nobody = next_round(start, updates.value, 0.0 * updates.weight)
    some = next_round(nobody.state, *updates)

    assert start[0].round == nobody.state[0].round == 0
    assert some.state[0].round == 1
    assert_same(some, next_round(start, *updates))


def test_a_nan_at_a_position_that_is_not_sent_does_not_show():
    x = np.ones(1000, np.float32)
    sent_entries = rounds_of(fedagg.random_k(0.5), x, 1)[0] != 0.0
    x[np.flatnonzero(~sent_entries)[0]] = math.nan

    hidden = rounds_of(fedagg.random_k(0.5), x, 1)[0]
    x[np.flatnonzero(sent_entries)[0]] = math.nan
    shown = rounds_of(fedagg.random_k(0.5), x, 1)[0]

    assert np.all(np.isfinite(hidden))
    assert np.sum(np.isnan(shown)) == 1
