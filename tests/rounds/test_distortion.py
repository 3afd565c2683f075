"""What compressors cost, against NumPy and against the bytes themselves."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import assert_close, assert_same, first_round_compiled

DRAW = np.random.default_rng(5)
VALUES = {
    "b": jnp.asarray(DRAW.normal(size=(4, 7)), jnp.float32),
    "w": jnp.asarray(DRAW.normal(size=(4, 20, 5)), jnp.float32),
}
WEIGHTS = jnp.array([1.0, 3.0, 0.0, 2.0])


def squares(tree) -> float:
    return sum(float(np.sum(np.square(x, dtype=float))) for x in jax.tree.leaves(tree))


def present(tree):
    return jax.tree.map(lambda x: np.asarray(x)[np.asarray(WEIGHTS) > 0.0], tree)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_distortion_is_what_top_k_leaves_out(fraction):
    stage = fedagg.with_distortion(fedagg.top_k(fraction))

    output = first_round_compiled(fedagg.aggregator(stage), VALUES, WEIGHTS)

    rows = [np.asarray(x, float).reshape(4, -1) for x in jax.tree.leaves(VALUES)]
    sizes = np.sort(np.square(np.concatenate(rows, axis=1))[[0, 1, 3]], axis=1)
    left_out = sizes[:, : 107 - math.ceil(fraction * 107)]
    expected = left_out.sum() / sizes.sum()
    np.testing.assert_allclose(output.metrics["distortion"], expected, rtol=1e-5)


@pytest.mark.deep
def test_distortion_of_a_compressor_that_rotates_and_divides_is_of_the_value():
    # One client: what comes back is what was sent, and its error is at hand.
    value = jax.tree.map(lambda x: x[:1], VALUES)
    stages = fedagg.mean(), fedagg.eden(2)
    plain = fedagg.aggregator(fedagg.chain(*stages))
    measured = fedagg.aggregator(fedagg.with_distortion(fedagg.chain(*stages)))

    sent = first_round_compiled(plain, value, jnp.array([3.0]), jax.random.key(3)).value
    metrics = first_round_compiled(
        measured, value, jnp.array([3.0]), jax.random.key(3)
    ).metrics

    error = squares(jax.tree.map(lambda x, y: x[0] - np.asarray(y), value, sent))
    expected = error / squares(value)
    np.testing.assert_allclose(metrics["distortion"], expected, rtol=0.02)
    assert 0.05 < expected < 0.3


def test_what_is_measured_gives_the_same_value_and_metrics():
    stage = fedagg.discretization(0.5, stochastic=False)
    plain = first_round_compiled(fedagg.aggregator(stage), VALUES, WEIGHTS)

    measured = first_round_compiled(
        fedagg.aggregator(fedagg.with_distortion(stage)), VALUES, WEIGHTS
    )

    assert_same(measured.value, plain.value)
    assert measured.metrics.keys() - plain.metrics.keys() == {"distortion"}


def test_a_client_with_a_nan_is_left_out_of_the_distortion():
    stage = fedagg.with_distortion(fedagg.top_k(0.5), name="lost")
    aggregator = fedagg.aggregator(stage)
    poisoned = VALUES | {"b": VALUES["b"].at[1, 0].set(jnp.nan)}

    got = first_round_compiled(aggregator, poisoned, WEIGHTS).metrics["lost"]
    without = first_round_compiled(aggregator, VALUES, WEIGHTS.at[1].set(0.0)).metrics[
        "lost"
    ]
    nobody = first_round_compiled(aggregator, VALUES, jnp.zeros(4)).metrics["lost"]

    assert_close(got, without)
    assert nobody == 0.0


def bits_by_hand(*arrays: np.ndarray) -> int:
    return sum(8 * len(fedagg.elias_gamma_encode(x)) for x in arrays)


@pytest.mark.parametrize("step", [0.01, 0.5, 10.0])
def test_bits_of_whole_steps_are_those_of_the_bytes(step):
    stages = fedagg.discretization(step, stochastic=False), fedagg.elias_gamma()

    metrics = first_round_compiled(fedagg.aggregator(*stages), VALUES, WEIGHTS).metrics

    steps = [np.rint(x / np.float32(step)).astype(np.int32) for x in VALUES.values()]
    expected = bits_by_hand(*(x[i] for x in steps for i in (0, 1, 3)))
    assert metrics["elias_gamma/bits"] == expected
    assert metrics["elias_gamma/bits"].dtype == jnp.uint32
    assert metrics["elias_gamma/wraps"] == 0


@pytest.mark.parametrize("stage", [fedagg.qsgd(3), fedagg.terngrad()])
@pytest.mark.deep
def test_bits_of_signed_codes_are_those_of_the_bytes_and_the_step(stage):
    update = fedagg.Update(jax.tree.map(lambda x: x[0], VALUES), jnp.float32(1.0))
    message, _ = stage.client((), update, jax.random.key(3))
    counting = fedagg.elias_gamma(name="coded")

    _, note = counting.client((), message, None)
    metrics = counting.server((), (), note, None).metrics

    # Codes are multiples of the step, so what decodes tells them.
    multiples = [
        np.rint(x.decode() / x.step).astype(np.int32) for x in message.value.values()
    ]
    assert metrics["coded/bits"] == bits_by_hand(*multiples) + 2 * 32
    assert {-1, 0, 1} <= set(multiples[1].ravel().tolist())


@pytest.mark.deep
def test_what_is_no_integer_counts_as_it_is():
    stages = fedagg.quantization(8, threshold=7), fedagg.elias_gamma()

    metrics = first_round_compiled(
        fedagg.aggregator(*stages), VALUES, None, jax.random.key(3)
    ).metrics

    constant = first_round_compiled(
        fedagg.aggregator(*stages),
        jax.tree.map(jnp.ones_like, VALUES),
        None,
        jax.random.key(3),
    ).metrics
    zeros = 8 * len(fedagg.elias_gamma_encode(np.zeros(100, np.int32)))
    assert constant["elias_gamma/bits"] == 4 * (7 * 32 + zeros + 2 * 32)
    assert metrics["elias_gamma/bits"] > constant["elias_gamma/bits"]


@pytest.mark.deep
def test_bits_beyond_32_bits_are_counted_to_the_last_one():
    counting = fedagg.elias_gamma()
    update = fedagg.Update(jnp.full((900,), -(2**31), jnp.int32), jnp.float32(1.0))

    _, note = counting.client((), update, None)
    many = jax.tree.map(lambda x: x * jnp.uint32(200_000), note)
    metrics = counting.server((), (), many, None).metrics

    total = 200_000 * bits_by_hand(np.asarray(update.value))
    assert total > 2**33
    assert int(metrics["elias_gamma/wraps"]) == total // 2**32
    assert int(metrics["elias_gamma/bits"]) == total % 2**32


def test_two_that_measure_each_other_have_two_names():
    twice = fedagg.with_distortion(fedagg.with_distortion(fedagg.qsgd(3)))
    named = fedagg.with_distortion(
        fedagg.with_distortion(fedagg.qsgd(3), name="inner"), name="outer"
    )
    rows = jnp.ones((4, 5))

    with pytest.raises(ValueError, match="'distortion' is reported twice"):
        first_round_compiled(fedagg.aggregator(twice), rows, None, jax.random.key(0))
    metrics = first_round_compiled(
        fedagg.aggregator(named), rows, None, jax.random.key(0)
    ).metrics
    assert metrics["inner"] == metrics["outer"] > 0.0
