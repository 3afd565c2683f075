"""The largest eigenvalue by products, beside NumPy's solver in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedagg._rules.spectrum import largest_eigenpair
from tests.helpers import first_now


def with_eigenvalues(values: list[float], seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    basis = np.linalg.qr(draw.normal(size=(len(values), len(values))))[0]
    return (basis * np.array(values)) @ basis.T


@first_now("scale", [1.0, 1e-30, 1e34], quick=3)
@first_now(
    "values",
    [[5.0, 3.0, 1.0, 0.0], [2.0], [1.0, 1.0, 1.0, 0.5], [1.0, 1.0 - 1e-4, 0.2]],
    quick=4,
)
def test_the_largest_eigenvalue_and_a_vector_of_it(values, scale):
    matrix = scale * with_eigenvalues(values)

    value, vector = jax.jit(largest_eigenpair)(jnp.asarray(matrix, jnp.float32))

    expected = np.linalg.eigvalsh(matrix)[-1]
    np.testing.assert_allclose(value, expected, rtol=3e-6)
    unit = np.asarray(vector, np.float64) / np.linalg.norm(vector)
    np.testing.assert_allclose(matrix @ unit, expected * unit, atol=1e-5 * expected)


@pytest.mark.deep
def test_a_matrix_of_many_clients_is_as_exact():
    x = np.random.default_rng(1).normal(size=(128, 40))
    matrix = x @ x.T

    value, _ = jax.jit(largest_eigenpair)(jnp.asarray(matrix, jnp.float32))

    np.testing.assert_allclose(value, np.linalg.eigvalsh(matrix)[-1], rtol=3e-6)


def test_zeros_have_zero():
    value, vector = largest_eigenpair(jnp.zeros((3, 3)))

    assert value == 0.0 and not np.any(np.asarray(vector))
