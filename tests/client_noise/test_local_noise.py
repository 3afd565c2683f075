"""Noise at clients: its scale, what is clipped, what may come after."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import assert_close, first_round_compiled, make_updates


def key() -> jax.Array:
    return jax.random.key(2)


@pytest.mark.parametrize("z, clip", [(1.0, 2.0), (3.0, 0.5)])
def test_every_client_adds_normal_noise_of_its_own(z, clip):
    aggregator = fedagg.aggregator(fedagg.local_gaussian_noise(z, clip), fedagg.mean())
    value = {"x": jnp.zeros((4, 50_000))}

    output = first_round_compiled(aggregator, value, key=key())

    # Four clients of their own halve the deviation; one draw for all would not.
    x = np.asarray(output.value["x"], np.float64) / (clip * z / 2.0)
    assert abs(x.mean()) < 0.02
    assert abs(x.std() - 1.0) < 0.015
    assert abs((x**4).mean() - 3.0) < 0.12
    assert_close(output.metrics["local_gaussian_noise/stddev"], np.float64(clip * z))


def test_leaves_of_half_precision_get_noise_of_full_precision():
    stage = fedagg.local_gaussian_noise(1.0, 1.0)
    update = fedagg.Update({"x": jnp.zeros(100_000, jnp.bfloat16)}, jnp.float32(1.0))

    sent, _ = stage.client(jnp.uint32(0), update, key())

    assert sent.value["x"].dtype == jnp.float32
    assert len(np.unique(np.abs(sent.value["x"]))) > 10_000
    assert np.max(np.abs(sent.value["x"])) > 4.0


@pytest.mark.parametrize("size, sent", [(0.5, 0.5), (2.0, 2.0), (100.0, 2.0)])
@pytest.mark.deep
def test_what_is_noised_has_a_norm_of_at_most_the_clip(size, sent):
    stage = fedagg.local_gaussian_noise(0.0, 2.0)
    value = {"a": jnp.full(9, 0.8 * size / 3.0), "b": jnp.float32(0.6 * size)}

    update, _ = stage.client(
        jnp.uint32(0), fedagg.Update(value, jnp.float32(3.0)), key()
    )

    got = math.hypot(np.linalg.norm(update.value["a"]), update.value["b"])
    np.testing.assert_allclose(got, sent, rtol=1e-6)
    assert update.weight == 3.0


@pytest.mark.parametrize("held", [math.nan, math.inf, 3e38])
def test_a_client_that_cannot_be_clipped_sends_noise(held):
    stage = fedagg.local_gaussian_noise(1.0, 1.0)
    broken = fedagg.Update({"x": jnp.asarray([held, held])}, jnp.float32(1.0))
    zero = fedagg.Update({"x": jnp.zeros(2)}, jnp.float32(1.0))

    sent, _ = stage.client(jnp.uint32(0), broken, key())
    same, _ = stage.client(jnp.uint32(0), zero, key())

    np.testing.assert_array_equal(sent.value["x"], same.value["x"])


def test_compressors_and_rules_may_come_after():
    noise = fedagg.local_gaussian_noise(0.1, 1.0)
    for aggregator in (
        fedagg.aggregator(noise, fedagg.mean(), fedagg.quantization(8, threshold=0)),
        fedagg.combining(fedagg.median(), noise),
    ):
        output = first_round_compiled(aggregator, *make_updates(), key())
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(output.value))


def test_noise_needs_a_key():
    stage = fedagg.local_gaussian_noise(1.0, 1.0, name="own")

    with pytest.raises(ValueError, match="own draws noise and needs a key"):
        stage.client(jnp.uint32(0), fedagg.Update(jnp.zeros(2), jnp.float32(1.0)), None)


@pytest.mark.parametrize(
    "arguments, name",
    [
        ((-1.0, 1.0), "noise_multiplier"),
        ((math.inf, 1.0), "noise_multiplier"),
        ((1.0, 0.0), "clip"),
        ((1.0, math.inf), "clip"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        fedagg.local_gaussian_noise(*arguments)
