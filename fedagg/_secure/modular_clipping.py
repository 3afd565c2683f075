"""Integers that wrap around within a range."""

import math

import jax
import jax.numpy as jnp

from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree
from fedagg._types import PyTree, Stage, Traits, Update


@prints_as_its_call
def modular_clipping(
    lower: int, upper: int, *, estimate_stddev: bool = False, name: str = "modular"
) -> Stage:
    """Wraps integers into `lower` to `upper - 1`, at clients and in the sum.

    An entry beyond the range comes back in at its other end. A sum of entries is the
    sum wrapped once, whatever wrapped on the way, so that noise from many clients needs
    a range for their sum and not for the sum of their ranges. Modulo `2**bits` that is
    what `secure_modular_sum` does.

    Reports, if `estimate_stddev`, `{name}/estimated_stddev` `[]`: the standard
    deviation of a normal that would have come out as the entries of the sum did when
    wrapped; infinite if these are spread evenly. Take it of more than a hundred.

    Args:
        lower: the smallest number in the range.
        upper: one more than the largest.
        estimate_stddev: whether to report the metric.
        name: what the metric is filed under, and what errors call this stage.

    Raises:
        ValueError: if `lower` is not below `upper`, or they are not in int32.
        TypeError: in `client`, for a value that is not of integers.

    Reference: Kairouz et al., "The Distributed Discrete Gaussian Mechanism for
        Federated Learning with Secure Aggregation", 2021, section 4; TensorFlow
        Federated, `tff.aggregators.ModularClippingSumFactory`.
    """
    checks.check_whole(-(2**31), 2**31 - 1, lower=lower, upper=upper)
    lower, upper = int(lower), int(upper)
    width = upper - lower
    if not 0 < width < 2**31:
        raise ValueError(
            f"lower must be below upper, by less than 2**31; got {lower=}, {upper=}."
        )

    def wrap(x: jax.Array) -> jax.Array:
        x = pytree.wide(x)
        # Each part is below the width, so that nothing overflows on the way.
        away = jnp.mod(x, jnp.asarray(width, x.dtype)).astype(jnp.int32)
        away = jnp.mod(away - lower % width, width)
        return (away + lower).astype(x.dtype)

    def client(update: Update, key: jax.Array | None):
        del key
        checks.check_integers(update.value, name)
        return update._replace(value=jax.tree.map(wrap, update.value)), ()

    def server(total: PyTree, note: PyTree, key: jax.Array | None):
        del note, key
        total = jax.tree.map(wrap, total)
        if not estimate_stddev:
            return total, {}
        angle = 2.0 * math.pi / width
        angles = [
            angle * x.astype(jnp.float32).ravel() for x in pytree.flatten(total)[0]
        ]
        angles = jnp.concatenate([jnp.zeros((0,), jnp.float32), *angles])
        length = jnp.hypot(jnp.mean(jnp.cos(angles)), jnp.mean(jnp.sin(angles)))
        stddev = jnp.sqrt(-2.0 * jnp.log(jnp.minimum(length, 1.0))) / angle
        return total, {f"{name}/estimated_stddev": stddev}

    return Stage.stateless(client, server, Traits(name, wraps=True))
