"""Weights of clients, and who is present."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._trees.kinds import described

_LARGEST = float(np.finfo(np.float32).max)
_LEAST = float(np.finfo(np.float32).smallest_normal)

# Weights in this range, up to millions of them, sum and scale values without harm.
_SMALL, _BIG = 2.0**-64, 2.0**64
_LEAST_PART = 2.0**-100  # below all that counts beside a large one, with room to scale
_EXPONENT = 0x7F800000  # bits of a float32 that hold it; alone they are a power of two


def is_present(weight: jax.Array) -> jax.Array:
    """Whether a client of this weight takes part."""
    return weight > 0.0


def as_weight(weight: Any) -> jax.Array:
    """The weight of one client as float32 `[]`, zero for one that is absent."""
    return _checked(weight, (), "weight", "a scalar")


def as_weights(weights: Any, n: int) -> jax.Array:
    """Weights as float32 `[n]`, zero where they are not positive and finite.

    Whatever holds the numbers, they are taken at their value: 64-bit integers are not
    cut to 32 bits on the way.

    Raises:
        ValueError: for another shape, or a number that float32 does not hold.
        TypeError: for what are no real numbers.
    """
    if weights is None:
        return jnp.ones((n,), jnp.float32)
    expected = f"shape ({n},), one for each client of updates"
    return _checked(weights, (n,), "weights", expected)


def _checked(
    weights: Any, shape: tuple[int, ...], argument: str, expected: str
) -> jax.Array:
    if _has_traced(weights):
        each = [_checked(x, (), argument, "a scalar for each client") for x in weights]
        weights = jnp.stack(each)
    elif not isinstance(weights, jax.Array):
        weights = _on_host(weights, argument)
    if jax.dtypes.issubdtype(weights.dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"{argument}: expected {expected}, got a key. Without weights: "
            "next(state, updates, key=key)."
        )
    if weights.shape != shape:
        raise ValueError(
            f"{argument}: expected {expected}; got {weights.shape}.{_advice(shape)}"
        )
    if jnp.issubdtype(weights.dtype, jnp.complexfloating):
        raise TypeError(
            f"{argument}: expected real numbers, got dtype {weights.dtype}."
        )
    numbers = jnp.asarray(weights).astype(jnp.float32)
    return jnp.where((numbers > 0.0) & (numbers < jnp.inf), numbers, 0.0)


def _has_traced(weights: Any) -> bool:
    """Whether it is a list of scalars some of which are known when they run only."""
    is_list = isinstance(weights, list | tuple)
    return is_list and any(isinstance(x, jax.core.Tracer) for x in weights)


def _advice(shape: tuple[int, ...]) -> str:
    if not shape:
        return " One client has one weight."
    return " Of who is present: 1 or True, and 0 or False of who is absent."


def _on_host(weights: Any, argument: str) -> np.ndarray:
    """Numbers of NumPy or Python as float32."""
    numbers = np.asarray(weights)
    if np.issubdtype(numbers.dtype, np.complexfloating):
        return numbers
    try:
        if numbers.dtype == object:  # of which None would become NaN
            numbers = np.array([float(x) for x in numbers.ravel()])
        wide = numbers.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(
            f"{argument}: expected real numbers, got {described(weights)}. A client "
            "without a weight is absent: 0."
        ) from None
    lost = wide[(wide > _LARGEST) & (wide < math.inf) | (wide > 0.0) & (wide < _LEAST)]
    if lost.size:
        raise ValueError(
            f"{argument}: expected numbers that float32 holds, to 3.4e38; got "
            f"{lost[0]}."
        )
    return wide.astype(np.float32)


def unit_of(weights: jax.Array) -> jax.Array:
    """A power of two, as float32 `[]`, in units of which sums of weights stay in range.

    It is one unless weights are very large or very small. Only what is in proportion to
    all weights alike may be worked out in units.
    """
    largest = jnp.max(weights)
    extreme = (largest > _BIG) | ((largest > 0.0) & (largest < _SMALL))
    # No more than what has a normal number as its inverse, by which XLA multiplies.
    return jnp.where(extreme, jnp.minimum(_power_of(largest), 2.0**120), 1.0)


def in_units(weights: jax.Array) -> jax.Array:
    """Weights as parts of `unit_of` them: none that is positive becomes zero."""
    parts = weights / unit_of(weights)
    return jnp.where(is_present(weights), jnp.maximum(parts, _LEAST_PART), 0.0)


def in_parts(weights: jax.Array) -> jax.Array:
    """Weights in proportion, as whole numbers, whose sums are exact: int32 `[n]`.

    They are rounded to a part in 2**29 of their sum, and none that is positive to less
    than one part. Whole numbers with a sum below 2**29 keep their proportions exactly.
    """
    weights = in_units(weights)
    power = _power_of(jnp.sum(weights))
    parts = jnp.round(weights * (2.0**29 / jnp.maximum(power, 1e-30)))
    return jnp.where(weights > 0.0, jnp.maximum(parts, 1.0), 0.0).astype(jnp.int32)


def _power_of(x: jax.Array) -> jax.Array:
    """The largest power of two that is no more than a positive float32 `[]`."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jax.lax.bitcast_convert_type(bits & _EXPONENT, jnp.float32)
