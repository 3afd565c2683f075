"""Noise of a matrix's correlations, by privatizers of jax-privacy and of our own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from tests.helpers import assert_close, assert_same, first_round

blt = pytest.importorskip("jax_privacy.matrix_factorization.buffered_toeplitz")
toeplitz = pytest.importorskip("jax_privacy.matrix_factorization.toeplitz")
noise_addition = pytest.importorskip("jax_privacy.noise_addition")

ROUNDS, D = 6, 40_000
BAND = np.array([1.0, 0.5, 0.3]) / np.linalg.norm([1.0, 0.5, 0.3])
DECAY, SCALE = np.array([0.9, 0.5]), np.array([0.2, 0.1])


def strategy(kind: str) -> np.ndarray:
    """The lower triangular Toeplitz matrix `C`, from the papers."""
    first = np.zeros(ROUNDS)
    if kind == "banded":
        first[: len(BAND)] = BAND
    else:
        first[:] = [1.0, *(np.sum(SCALE * DECAY**k) for k in range(ROUNDS - 1))]
    return np.array(
        [
            [first[i - j] if i >= j else 0.0 for j in range(ROUNDS)]
            for i in range(ROUNDS)
        ]
    )


def privatizer(kind: str, stddev: float = 1.0) -> Any:
    """One of jax-privacy's, which adds the noise `stddev * inverse(C) Z`."""
    if kind == "banded":
        matrix = toeplitz.inverse_as_streaming_matrix(jnp.asarray(BAND, jnp.float32))
    elif kind == "blt":
        matrix = blt.BufferedToeplitz.build(
            buf_decay=jnp.asarray(DECAY, jnp.float32),
            output_scale=jnp.asarray(SCALE, jnp.float32),
            dtype=jnp.float32,
        ).inverse_as_streaming_matrix()
    else:
        matrix = jnp.asarray(np.linalg.inv(strategy("banded")), jnp.float32)
    return noise_addition.matrix_factorization_privatizer(
        matrix, stddev=stddev, prng_key=0, dtype=jnp.float32
    )


def released(stage: fedagg.Stage, seed: int = 1) -> tuple[np.ndarray, Any]:
    """The values `[rounds, d]` and the metrics of rounds in which clients send zero."""
    aggregator = fedagg.aggregator(stage)
    value = {"a": jnp.zeros((1, D // 2)), "b": jnp.zeros((1, 2, D // 4))}

    def body(state: Any, key: jax.Array):
        output = aggregator.next(state, value, None, key)
        return output.state, (output.value, output.metrics)

    start = aggregator.init(jax.tree.map(lambda x: x[0], value))
    keys = jax.random.split(jax.random.key(seed), ROUNDS)
    # jax-privacy relies on promotion, which our tests forbid.
    with jax.numpy_rank_promotion("allow"):
        _, (values, metrics) = jax.lax.scan(body, start, keys)
    flat = [np.asarray(values[x], np.float64).reshape(ROUNDS, -1) for x in "ab"]
    return np.concatenate(flat, axis=1), metrics


@pytest.mark.parametrize("kind", ["banded", "blt"])
@pytest.mark.deep
def test_noise_has_the_scale_and_the_correlations_of_the_matrix(kind):
    z, clip, clients = 0.5, 3.0, 4.0
    stage = fedagg.matrix_factorization_noise(privatizer(kind, z), clip, clients)

    values, metrics = released(stage)

    noise = values * clients / (clip * z)
    inverse = np.linalg.inv(strategy(kind))
    # 40,000 entries: a covariance is known to 1 %, a deviation to 0.4 %.
    np.testing.assert_allclose(np.cov(noise), inverse @ inverse.T, atol=0.04)
    deviations = np.sqrt(np.diag(inverse @ inverse.T))
    np.testing.assert_allclose(noise.std(axis=1), deviations, rtol=0.02)
    # White again after the strategy itself, which is what is accounted.
    white = np.cov(strategy(kind) @ noise)
    np.testing.assert_allclose(white, np.eye(ROUNDS), atol=0.03)
    assert set(metrics) == {
        "matrix_factorization_noise/clip",
        "matrix_factorization_noise/noised_norm",
    }


@pytest.mark.deep
def test_a_key_that_a_privatizer_keeps_to_itself_is_the_one_that_draws():
    stage = fedagg.matrix_factorization_noise(privatizer("dense"), 1.0, 1.0)

    with jax.debug_key_reuse(False):  # which is what this privatizer does
        noise, _ = released(stage)
        again, _ = released(stage, seed=2)

    inverse = np.linalg.inv(strategy("banded"))
    np.testing.assert_allclose(np.cov(noise), inverse @ inverse.T, atol=0.04)
    np.testing.assert_array_equal(noise, again)


@pytest.mark.parametrize("kind", ["banded", "blt"])
@pytest.mark.deep
def test_the_state_holds_no_key_and_draws_from_each_round_s(kind):
    aggregator = fedagg.aggregator(
        fedagg.matrix_factorization_noise(privatizer(kind), 1.0, 1.0)
    )
    value = {"x": jnp.zeros((1, 3))}

    with jax.numpy_rank_promotion("allow"):
        state = aggregator.init({"x": jnp.zeros(3)})
        one, same, other = (
            aggregator.next(state, value, None, jax.random.key(i)) for i in (0, 0, 1)
        )

    for x in jax.tree.leaves((state, one.state)):
        assert not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    assert_same(one, same)
    assert not np.any(one.value["x"] == other.value["x"])


def plain(update: Any) -> Any:
    return optax.GradientTransformation(lambda params: (), update)


@pytest.mark.deep
def test_a_privatizer_sees_sums_in_units_of_the_clip():
    seen = []

    def update(total: Any, state: Any, params: Any = None):
        seen.append(total)
        return total, state

    stage = fedagg.matrix_factorization_noise(plain(update), 5.0, 10.0)
    value = {"x": jnp.asarray([[30.0, 40.0], [0.0, 5.0]], jnp.bfloat16)}

    output = first_round(fedagg.aggregator(stage), value, key=jax.random.key(0))

    assert_close(seen[0], {"x": np.asarray([0.6, 1.8])}, 1e-6)
    assert seen[0]["x"].dtype == jnp.float32
    assert output.value["x"].dtype == jnp.bfloat16
    assert_close(output.value, {"x": np.asarray([0.3, 0.9])}, 1e-2)


def test_what_does_not_go_with_the_clip_is_refused():
    stage = fedagg.matrix_factorization_noise(privatizer("banded"), 1.0, 5.0)
    bound: Any = fedagg.quantile_bound(1.0, 0.5, 0.1)

    for stages in ((stage, fedagg.mean()), (fedagg.mean(), stage)):
        with pytest.raises(ValueError, match="matrix_factorization_noise"):
            fedagg.aggregator(*stages)
    with pytest.raises(TypeError, match="clip must be a number"):
        fedagg.matrix_factorization_noise(privatizer("banded"), bound, 5.0)
    with pytest.raises(ValueError, match="clients_per_round must be positive"):
        fedagg.matrix_factorization_noise(privatizer("banded"), 1.0, 0.0)


@pytest.mark.deep
def test_noise_needs_a_key_and_the_template():
    stage = fedagg.matrix_factorization_noise(
        privatizer("banded"), 1.0, 5.0, name="own"
    )
    aggregator = fedagg.aggregator(stage)
    state = aggregator.init({"x": jnp.zeros(3)})

    with pytest.raises(ValueError, match="own draws noise and needs a key"):
        aggregator.next(state, {"x": jnp.zeros((2, 3))})
    with pytest.raises(ValueError, match="expected .* of shape"):
        aggregator.next(state, {"x": jnp.zeros((2, 4))}, key=jax.random.key(0))
