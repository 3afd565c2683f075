"""Who is sent out is drawn alike from all who may be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedagg._training import arrivals
from tests.compiling import jit


@pytest.mark.parametrize("size", [1, 128, 300])
def test_places_are_those_of_numpy(size):
    true = np.random.default_rng(size).random(size) < 0.4
    true[-1] = True

    got = jit(jax.vmap(arrivals._place_of, (0, None)))(
        jnp.arange(true.sum()), jnp.asarray(true)
    )

    np.testing.assert_array_equal(got, np.flatnonzero(true))


@pytest.mark.deep
def test_everybody_who_may_come_is_as_likely_as_any_other():
    """Of 5 in 7 one is out already; a step is of one client, among 4 who may be drawn.

    With 4,000 runs the share of each is a quarter to 0.7 percent, one deviation.
    """
    rules = arrivals.Rules(7, 1, 1, lambda client, key: 1.0, 5, 1, np.inf)
    clock = arrivals.first_clock(rules)
    clock = clock._replace(last=clock.last.at[3].set(0))
    may = jnp.array([1, 0, 1, 1, 1, 0, 1], bool)
    keys = jax.random.split(jax.random.key(0), 4000)

    drawn = jit(
        jax.vmap(lambda key: arrivals.next_arrivals(rules, clock, may, key)[1].clients)
    )(keys)

    shares = np.bincount(np.asarray(drawn).ravel(), minlength=7) / 4000
    np.testing.assert_allclose(shares[[0, 2, 4, 6]], 0.25, atol=0.03)
    assert shares[[1, 3, 5]].sum() == 0.0
