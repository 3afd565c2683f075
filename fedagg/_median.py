"""The coordinate-wise median."""

import jax
import jax.numpy as jnp

from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree
from fedagg._trees.weights import is_present
from fedagg._types import Output, PyTree, Rule, Update


@prints_as_its_call
def median() -> Rule:
    """The median over clients of each coordinate apart.

    Every present client counts the same, whatever its weight. An entry that is NaN or
    infinite is taken as not given; an even number of entries gives the mean of the two
    in the middle; no entry at all gives zero. As long as fewer than half of the clients
    send anything they like, each coordinate stays in the range of the others'.

    Raises:
        TypeError: in `combine`, for a leaf that is not of a float dtype.

    Reference: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal
        Statistical Rates", 2018, definition 1.
    """

    def combine(state: PyTree, updates: Update, key: jax.Array | None) -> Output:
        del key
        checks.check_floating(updates.value, "median")
        present = is_present(updates.weight)
        value = jax.tree.map(lambda x: _median(x, present), updates.value)
        return Output(state, value, {})

    return Rule(lambda template: (), combine)


def _median(x: jax.Array, present: jax.Array) -> jax.Array:
    """The median of the finite entries of `x` `[n, ...]` in rows that are present."""
    x = pytree.wide(x)
    given = present.reshape(-1, *[1] * (x.ndim - 1)) & jnp.isfinite(x)
    count = jnp.sum(given, axis=0, dtype=jnp.int32, keepdims=True)
    ordered = jnp.sort(jnp.where(given, x, jnp.inf), axis=0)  # what is not given last
    low = jnp.take_along_axis(ordered, jnp.maximum(count - 1, 0) // 2, axis=0)
    high = jnp.take_along_axis(ordered, count // 2 % x.shape[0], axis=0)
    # Halved before they are added, so that two large entries do not overflow.
    return jnp.where(count > 0, low / 2.0 + high / 2.0, 0.0)[0]
