import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from fedagg._compression.eden import lloyd_max
from tests.helpers import assert_close, first_now

D = 2**12
RNG = np.random.default_rng(5)
VECTORS = {
    "normal": RNG.normal(size=D),
    "lognormal": RNG.lognormal(size=D),
    "one spike": np.where(np.arange(D) == 7, 100.0, 0.01 * RNG.normal(size=D)),
}
# Squared errors in squares of the norm, from the paper's table for a normal vector.
ERRORS = {1: 0.570796, 2: 0.133121, 3: 0.035784, 4: 0.009592}
# Centroids printed by Max, 1960, table 1, the positive half.
MAX_1960 = {
    1: [0.797885],
    2: [0.452780, 1.510418],
    3: [0.245094, 0.756005, 1.343909, 2.151946],
    4: [0.128395, 0.388048, 0.656759, 0.942340, 1.256231, 1.618046, 2.069017, 2.732589],
}


def decoded_many_times(stage, x, times):
    """The value `[times, ...]` of rounds with one client that has `x`."""
    aggregator = fedagg.aggregator(stage)
    state = aggregator.init(x)
    rows = jax.tree.map(lambda leaf: leaf[None], x)

    def one_round(state, seed):
        output = aggregator.next(state, rows, key=jax.random.key(seed))
        return output.state, output.value

    return jax.jit(lambda seeds: jax.lax.scan(one_round, state, seeds)[1])(
        jnp.arange(times)
    )


def relative_errors(values, x):
    difference = np.asarray(values, np.float64) - x
    return np.sum(difference**2, axis=1) / np.sum(x**2)


@pytest.mark.parametrize("bits", MAX_1960)
def test_the_values_are_those_of_the_literature(bits):
    values, borders = lloyd_max(bits)

    half = MAX_1960[bits]
    np.testing.assert_allclose(values, [-x for x in half[::-1]] + half, atol=1e-6)
    np.testing.assert_allclose(borders, (values[1:] + values[:-1]) / 2, atol=1e-7)


@first_now("name", VECTORS)
@first_now("bits", ERRORS)
def test_the_error_of_eden_is_that_of_the_paper_for_any_vector(bits, name):
    x = VECTORS[name].astype(np.float32)
    values = decoded_many_times(fedagg.eden(bits), jnp.asarray(x), 200)

    # The mean of 200 draws is within 1 % of the limit for long vectors; a spike of one
    # entry is a sum of few random signs after the rotation, within 2 %.
    error = np.mean(relative_errors(values, x.astype(np.float64)))
    np.testing.assert_allclose(error, ERRORS[bits], rtol=0.02)


@pytest.mark.parametrize("bits", [5, 6, 7, 8])
@pytest.mark.deep
def test_each_bit_more_divides_the_error_by_nearly_four(bits):
    x = VECTORS["normal"].astype(np.float32)

    more, fewer = (
        np.mean(relative_errors(decoded_many_times(fedagg.eden(b), x, 20), x))
        for b in (bits, bits - 1)
    )

    assert 3.6 < fewer / more < 4.0


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.deep
def test_eden_is_unbiased(bits):
    x = VECTORS["lognormal"][:300].astype(np.float32)
    values = np.asarray(decoded_many_times(fedagg.eden(bits), jnp.asarray(x), 4000))

    values = values.astype(np.float64)
    sigma = values.std(axis=0) / np.sqrt(len(values))
    assert np.max(np.abs(values.mean(axis=0) - x) / sigma) < 5.0
    # In the direction of the vector, where a wrong scale would show. 300 entries in 512
    # places are short for the limit: the scale, not the error, is what must be right.
    along = values @ x / np.dot(x, x)
    np.testing.assert_allclose(
        along.mean(), 1.0, atol=5 * along.std() / np.sqrt(len(along)) + 1e-6
    )


@pytest.mark.deep
def test_drive_has_the_least_error_and_a_bias():
    x = VECTORS["normal"].astype(np.float32)
    values = np.asarray(decoded_many_times(fedagg.drive(), x, 200), np.float64)

    np.testing.assert_allclose(
        np.mean(relative_errors(values, x)), 1 - 2 / np.pi, rtol=0.01
    )
    along = values @ x / np.dot(x, x)
    np.testing.assert_allclose(along.mean(), 2 / np.pi, rtol=0.01)


@pytest.mark.deep
def test_the_error_of_equal_clients_falls_with_their_number():
    x = jnp.asarray(VECTORS["normal"], jnp.float32)
    aggregator = fedagg.aggregator(fedagg.mean(), fedagg.eden(1))
    rows = jnp.broadcast_to(x, (50, D))

    output = aggregator.next(aggregator.init(x), rows, key=jax.random.key(3))

    # Rotations are each client's own; one for all would leave the error as it is.
    error = np.sum((np.asarray(output.value) - x) ** 2) / np.sum(x**2)
    np.testing.assert_allclose(error, ERRORS[1] / 50, rtol=0.1)


@pytest.mark.parametrize("stage", [fedagg.eden(3), fedagg.eden(6), fedagg.drive()])
@pytest.mark.deep
def test_trees_zeros_and_short_vectors_have_their_answers(stage):
    key = jax.random.key(0)
    tree = {"a": jnp.zeros((1, 3, 2)), "b": jnp.zeros((1,))}
    aggregator = fedagg.aggregator(stage)
    state = aggregator.init(jax.tree.map(lambda x: x[0], tree))

    assert_close(
        aggregator.next(state, tree, key=key).value,
        {"a": jnp.zeros((3, 2)), "b": jnp.zeros(())},
    )
    one = fedagg.aggregator(stage)
    state = one.init(jnp.zeros((1,)))
    np.testing.assert_allclose(
        one.next(state, jnp.full((1, 1), -3.0), key=key).value, [-3.0], rtol=1e-6
    )


@pytest.mark.parametrize("held", [np.nan, np.inf])
@pytest.mark.parametrize("stage", [fedagg.eden(2), fedagg.drive()])
@pytest.mark.deep
def test_what_is_no_number_shows_in_every_entry(stage, held):
    x = jnp.asarray(VECTORS["normal"], jnp.float32).at[17].set(held)

    assert np.all(np.isnan(decoded_many_times(stage, x, 1)))


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_a_message_is_codes_a_scale_a_seed_and_a_count(bits):
    template = {"w": jnp.zeros((30, 30)), "b": jnp.zeros(5)}  # 905 entries: 1024

    assert fedagg.message_bits(fedagg.eden(bits), template) == 1024 * bits + 128
    assert fedagg.message_bits(fedagg.drive(), template) == 1024 + 128


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_bits_out_of_range_are_an_error(bits):
    with pytest.raises(ValueError, match="bits must be a whole number, 1 to 8"):
        fedagg.eden(bits)


@pytest.mark.parametrize(
    "stage, name", [(fedagg.eden(1), "eden"), (fedagg.drive(), "drive")]
)
def test_drawing_without_a_key_is_an_error_that_names_the_stage(stage, name):
    aggregator = fedagg.aggregator(stage)

    with pytest.raises(ValueError, match=f"{name} draws"):
        aggregator.next(aggregator.init(jnp.zeros(4)), jnp.zeros((2, 4)))
