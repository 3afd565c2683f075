"""Keys of private rounds: from where they come, and one key in two rounds."""

import secrets
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from tests.helpers import first_now

D = 4096


def fresh_noise() -> optax.GradientTransformation:
    """A privatizer that draws anew in each round."""

    def update(updates, state, params=None):
        noised = jax.tree.map(
            lambda x: x + jax.random.normal(state, x.shape, x.dtype), updates
        )
        return noised, state

    return optax.GradientTransformation(lambda params: jax.random.key(0), update)


PRIVATE = {
    "gaussian_noise": lambda: fedagg.gaussian_noise(1.0, 1.0, 1.0),
    "adaptive_gaussian_noise": lambda: fedagg.adaptive_gaussian_noise(1.0, 100.0),
    # In a tree of one round each is the first of a tree, and nothing cancels.
    "tree_noise": lambda: fedagg.tree_noise(1.0, 1.0, 1.0, restart_every=1),
    "matrix_factorization_noise": lambda: fedagg.matrix_factorization_noise(
        fresh_noise(), 1.0, 1.0
    ),
    "banded_noise": lambda: fedagg.banded_noise(1.0, 1.0, 1.0, bands=1, rounds=4),
    "toeplitz_noise": lambda: fedagg.toeplitz_noise(1.0, 1.0, 1.0, [1.0]),
    "local_gaussian_noise": lambda: fedagg.local_gaussian_noise(1.0, 1.0),
    "skellam_noise": lambda: fedagg.skellam_noise(1.0, 1.0, 2, bits=24),
    "discrete_gaussian_noise": lambda: fedagg.discrete_gaussian_noise(
        1.0, 1.0, 2, bits=24
    ),
}


@first_now("name", PRIVATE)
def test_one_key_in_two_rounds_gives_independent_noise(name):
    aggregator = fedagg.aggregator(PRIVATE[name]())
    nothing = {"x": jnp.zeros((2, D))}
    next_round = jax.jit(lambda state: aggregator.next(state, nothing, None, key()))

    first = next_round(aggregator.init({"x": jnp.zeros(D)}))
    second = next_round(first.state)

    one, two = (np.asarray(x.value["x"], np.float64) for x in (first, second))
    assert one.std() > 0.0 and two.std() > 0.0
    # Of independent draws the correlation has a deviation of 1 / 64.
    assert abs(np.corrcoef(one, two)[0, 1]) < 5.0 / 64.0


def key() -> jax.Array:
    return jax.random.key(7)


@pytest.mark.deep
def test_noise_differs_between_rounds_without_a_release():
    aggregator = fedagg.aggregator(
        fedagg.skellam(1.0, 1.0, 2, bits=24, smallest_cohort=2).stage()
    )
    state = aggregator.init(jnp.zeros(D))
    of_client: list[Any] = []

    for _ in range(2):
        shared = aggregator.steps.broadcast(state)
        message = aggregator.steps.client(shared, jnp.zeros(D), 1.0, key())
        of_client.append(np.asarray(message.value.value.vector, np.float64))
        total = aggregator.steps.add(None, message)
        output = aggregator.steps.server(state, total)
        assert output.metrics["skellam_noise/is_released"] == 0.0
        state = output.state

    assert abs(np.corrcoef(*of_client)[0, 1]) < 5.0 / 64.0


@pytest.mark.parametrize("kind, words", [("threefry2x32", 2), ("rbg", 4)])
def test_a_secret_key_has_all_bits_of_the_generator(monkeypatch, kind, words):
    asked = []

    def token_bytes(count: int) -> bytes:
        asked.append(count)
        return bytes(range(count))

    monkeypatch.setattr(secrets, "token_bytes", token_bytes)
    with jax.default_prng_impl(kind):
        key = fedagg.secret_key()

    assert asked == [4 * words]
    expected = np.frombuffer(bytes(range(4 * words)), np.uint32)
    np.testing.assert_array_equal(jax.random.key_data(key), expected)
    assert key.shape == () and str(jax.random.key_impl(key)) == kind


def test_no_two_secret_keys_are_alike():
    keys = [np.asarray(jax.random.key_data(fedagg.secret_key())) for _ in range(64)]

    assert len({x.tobytes() for x in keys}) == 64
    # Every one of the 64 bits is drawn: each is one in some and zero in others.
    bits = np.unpackbits(np.stack(keys).view(np.uint8).reshape(64, -1), axis=1)
    assert np.all((bits.sum(axis=0) > 8) & (bits.sum(axis=0) < 56))


@first_now("kind", ["at the server", "at clients"])
def test_a_cohort_that_is_too_large_uses_the_noise_of_its_round_up(kind):
    hidden = {
        "at the server": lambda: fedagg.secure_modular_sum(
            fedagg.gaussian_noise(1.0, 1.0, 2), bits=32, largest_cohort=2
        ),
        "at clients": lambda: fedagg.skellam(
            1.0, 1.0, 2, largest_cohort=2
        ).secure_sum(),
    }[kind]
    made, key = fedagg.aggregator(hidden()), fedagg.secret_key()
    state, rows = made.init(jnp.zeros(64)), jnp.zeros((2, 64))

    first = made.next(state, jnp.ones((3, 64)), None, key)
    second = made.next(first.state, rows, None, key).value
    as_first = made.next(state, rows, None, key).value

    # What would have been the noise of the first round is not drawn in the second.
    assert np.sum(np.asarray(second) == np.asarray(as_first)) < 8
    if kind == "at clients":
        assert not np.any(first.value)
