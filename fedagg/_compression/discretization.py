"""Uniform quantization with one step for all clients, whose sums are of integers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._compression.random import map_seeded, round_randomly
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree
from fedagg._types import PyTree, Stage, Traits, Update

# Half of what int32 holds: a float32 sum of many sizes comes out low by its rounding.
_MOST = 2.0**30


class DiscretizationNote(NamedTuple):
    """What a client adds to its message. Summed over the present clients."""

    count: jax.Array  # [] one if the client was set to zero
    largest: jax.Array  # [] its largest size in steps


@prints_as_its_call
def discretization(
    step_size: float, *, stochastic: bool, name: str = "discretization"
) -> Stage:
    """Rounds each entry to a whole number of steps, and sums those as int32.

    The step is the same for all clients, so that sums are exact and can be made under
    secure aggregation; the server multiplies by the step. A client with an entry of
    2**30 steps or more, or a NaN, is set to zero as a whole. Where the largest entries
    of all clients together reach 2**30 steps, an int32 may be about to wrap around, and
    the value is NaN throughout: take a larger step, or clip before. Before a rule,
    which sums no integers, it is not.

    Reports `{name}/count` `[]`, the number of clients set to zero.

    Args:
        step_size: the distance between values. Positive.
        stochastic: whether to round randomly, without bias and with an error below one
            step, or to the nearest step, halves to the even one.
        name: what the metric is filed under.

    Raises:
        ValueError: if `step_size` is not positive and finite in float32; in `client`,
            if it is to draw and has no key.
        TypeError: in `client`, for a leaf that is not of a float dtype.

    Reference: TensorFlow Federated, `tff.aggregators`, the factories
        `DeterministicDiscretizationFactory` and `StochasticDiscretizationFactory`.
    """
    checks.check_positive(step_size=step_size)
    limits = jnp.finfo(jnp.float32)
    if not float(limits.tiny) <= step_size <= float(limits.max):
        raise ValueError(
            f"step_size must be positive and finite in float32, got {step_size=}."
        )
    step = jnp.float32(step_size)

    def to_whole(x: jax.Array, words: jax.Array | None) -> jax.Array:
        if words is None:
            return jnp.round(x).astype(jnp.int32)
        return round_randomly(x.ravel(), words).reshape(x.shape).astype(jnp.int32)

    def client(update: Update, key: jax.Array | None):
        checks.check_floating(update.value, name)
        key = checks.check_key(key, name, "random numbers") if stochastic else None
        steps = pytree.divide(pytree.widen(update.value), step)
        largest = pytree.norm(steps, jnp.inf)
        fits = largest < _MOST  # which NaN fails
        value = map_seeded(to_whole, key, pytree.keep(fits, steps))
        note = DiscretizationNote(
            (~fits).astype(jnp.float32), jnp.where(fits, largest + 1.0, 0.0)
        )
        return update._replace(value=value), note

    def server(total: PyTree, note: DiscretizationNote, key: jax.Array | None):
        del key
        unit = jnp.where(note.largest < _MOST, step, jnp.nan)
        value = jax.tree.map(lambda x: x.astype(jnp.float32) * unit, total)
        return value, {f"{name}/count": note.count}

    def refused(note: DiscretizationNote) -> jax.Array:
        return note.count > 0.0

    traits = Traits(name, transforms=True, tells=True, refused=refused)
    return Stage.stateless(client, server, traits)
