import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import hadamard as matrix

from fedagg._compression.hadamard import hadamard
from tests.helpers import recorded_cases

pytestmark = pytest.mark.thorough


ROWS = recorded_cases("tff_rotation.json")["hadamard_transform"]["rows"]


@pytest.mark.parametrize("log_size", range(13))
def test_it_is_the_product_with_sylvesters_matrix(log_size):
    d = 2**log_size
    x = np.random.default_rng(0).normal(size=d)

    got = jax.jit(hadamard)(jnp.asarray(x, jnp.float32))

    np.testing.assert_allclose(got, x @ matrix(d) / np.sqrt(d), atol=1e-5)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["dim"]))
def test_it_equals_the_recorded_transform(row):
    x = np.multiply(row.get("padded", row["x"]), row.get("signs", 1.0))
    x = jnp.asarray(x, jnp.float32)

    np.testing.assert_allclose(hadamard(x), row["y"], atol=1e-5)


def test_it_is_its_own_inverse_and_keeps_the_norm_of_a_long_vector():
    x = jnp.asarray(np.random.default_rng(0).normal(size=2**17), jnp.float32)

    y = jax.jit(hadamard)(x)

    np.testing.assert_allclose(jax.jit(hadamard)(y), x, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(y), jnp.linalg.norm(x), rtol=1e-6)


def test_it_works_under_vmap_and_grad():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 64)), jnp.float32)

    together = jax.vmap(hadamard)(x)
    gradient = jax.grad(lambda v: jnp.vdot(hadamard(v), x[1]))(x[0])

    np.testing.assert_allclose(together[2], hadamard(x[2]), atol=1e-6)
    np.testing.assert_allclose(gradient, hadamard(x[1]), atol=1e-6)


@pytest.mark.parametrize("shape", [(0,), (3,), (6,), (2, 2), ()])
def test_another_shape_is_an_error(shape):
    with pytest.raises(ValueError, match="length is a power of two"):
        hadamard(jnp.zeros(shape))
