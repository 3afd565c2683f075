"""Order statistics by counting, beside those that NumPy sorts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedagg._rules import selection
from tests.helpers import assert_close, first_now
from tests.rules import references

COLUMNS = 9

# Compiled once for all kinds of entries and numbers of liars.
TRIMMED_MEAN = jax.jit(selection.trimmed_mean)
MEAN_AROUND_MEDIAN = jax.jit(selection.mean_around_median)


def entries(n: int, kind: str) -> np.ndarray:
    draw = np.random.default_rng(n)
    x = draw.normal(size=(n, COLUMNS))
    if kind == "ties":
        x = np.round(x)
    if kind == "scales":
        x = x * 10.0 ** draw.integers(-30, 30, size=(n, COLUMNS))
    if kind == "offset":
        x = x + 1000.0
    return x.astype(np.float32)


kinds = first_now("kind", ["normal", "ties", "scales", "offset"], quick=2)


@kinds
@first_now("n", [65, 1, 2, 31, 64, 128, 257, 1000], quick=1)
def test_the_median_is_that_of_numpy_to_the_last_bit(n, kind):
    x = entries(n, kind)

    got = jax.jit(selection.median)(jnp.asarray(x), jnp.ones(n))

    # NumPy adds before it halves, which rounds alike where nothing is subnormal.
    ordered = np.sort(x, axis=0)
    expected = ordered[(n - 1) // 2] / 2 + ordered[n // 2] / 2
    np.testing.assert_array_equal(got, expected)


@kinds
@first_now("n", [70, 31, 257, 1000], quick=1)
@pytest.mark.deep
def test_means_of_what_is_kept_are_those_of_sorted_columns(n, kind):
    x, weight = entries(n, kind), jnp.ones(n)
    exact = x.astype(np.float64)
    size = np.abs(exact).mean(axis=0).max()

    for f in (1, n // 3, (n - 1) // 2):
        for by, expected in (
            (TRIMMED_MEAN, references.trimmed_mean),
            (MEAN_AROUND_MEDIAN, references.mean_with_ties_in_parts),
        ):
            got = by(jnp.asarray(x), weight, f)

            np.testing.assert_allclose(
                got, expected(exact, f), rtol=2e-5, atol=1e-6 * size
            )


def test_what_is_absent_or_no_number_is_not_counted():
    x, present = entries(70, "normal"), np.arange(70) % 3 > 0
    x[0], x[1, 2], x[2, 3], x[4, 4] = np.nan, np.nan, np.inf, -np.inf

    got = jax.jit(selection.median)(jnp.asarray(x), jnp.asarray(present, jnp.float32))

    given = np.where(present[:, None] & np.isfinite(x), x, np.nan)
    assert_close(got, np.nanmedian(given, axis=0))
