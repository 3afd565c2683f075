"""The gradient of max pooling without a loop, where windows do not overlap.

XLA's CPU backend visits the windows one by one. Where an entry is in one window only,
entrywise comparisons find the same entry of each, and the gradient has the same bits.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, primitives

_LARGEST = 64  # entries of a window: each is a few operations to compile


def without_windows(equation: JaxprEqn) -> Callable[..., jax.Array] | None:
    """The rule of `select_and_scatter_add`; None where windows overlap or are large."""
    params = equation.params
    window, padding = tuple(params["window_dimensions"]), params["padding"]
    is_maximum = params["select_prim"] is primitives.ge_p
    apart = tuple(params["window_strides"]) == window
    avals: list[Any] = [x.aval for x in equation.invars]
    floats = all(jnp.issubdtype(x.dtype, jnp.floating) for x in avals)
    if not (is_maximum and apart and floats) or math.prod(window) > _LARGEST:
        return None

    def scattered(source: jax.Array, operand: jax.Array) -> jax.Array:
        zero = jnp.zeros((), source.dtype)
        covered = [n * w for n, w in zip(source.shape, window, strict=True)]
        pads = [
            (low, n - whole - low, 0)
            for (low, _), n, whole in zip(padding, covered, operand.shape, strict=True)
        ]
        least = jnp.asarray(-jnp.inf, operand.dtype)
        place = _selected(jax.lax.pad(operand, least, pads), window)
        here = _spread(place, window) == _places(window)
        result = jnp.where(here, _spread(source, window), zero).reshape(covered)
        return jax.lax.pad(result, zero, [(-low, -high, 0) for low, high, _ in pads])

    return scattered


def _selected(operand: jax.Array, window: tuple[int, ...]) -> jax.Array:
    """Which entry of each window the gradient goes to, by its place in the window.

    An entry gives way to the next one unless it is at least as large: the first of
    equal ones is selected, and NaN is followed as XLA does.
    """
    starts = itertools.product(*map(range, window))
    entries = [jax.lax.slice(operand, x, operand.shape, window) for x in starts]
    largest, place = entries[0], jnp.zeros(entries[0].shape, jnp.int8)
    for i, entry in enumerate(entries[1:], 1):
        stays = largest >= entry
        largest = jnp.where(stays, largest, entry)
        place = jnp.where(stays, place, jnp.int8(i))
    return place


def _places(window: tuple[int, ...]) -> jax.Array:
    """The number of each entry of a window `[1, w, 1, w, ...]`."""
    shape = [n for w in window for n in (1, w)]
    return jax.lax.iota(jnp.int8, math.prod(window)).reshape(shape)


def _spread(x: jax.Array, window: tuple[int, ...]) -> jax.Array:
    """What there is of each window as `[n, 1, n, 1, ...]`."""
    return jnp.expand_dims(x, tuple(range(1, 2 * len(window), 2)))
