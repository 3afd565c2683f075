"""Convolutions as XLA's CPU backend has kernels for them.

Those take a batch first and features last, and a kernel's features after its space; no
groups of the batch, and no kernel that is larger than what it slides over. The compiler
brings convolutions into that order only outside of loops. In a loop's body, and a
client's steps are one, the convolutions of a gradient, whose axes have other orders,
become plain nested loops that take ten times as long. Here they are brought there by
hand:

| convolution | becomes | bits |
| --- | --- | --- |
| axes in any order | one between transposes | those of XLA outside of a loop |
| groups of the batch | groups of features | equal to rounding |
| kernel larger than the input | the input slides over the kernel | equal to rounding |
| integers, or spread over an explicit mesh | is left as it is | |
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

Numbers = jax.lax.ConvDimensionNumbers


def in_order_of_kernels(equation: JaxprEqn) -> Callable[..., jax.Array] | None:
    """The rule of `conv_general_dilated`; None where nothing is to be done."""
    params, numbers = equation.params, equation.params["dimension_numbers"]
    avals: list[Any] = [x.aval for x in equation.invars]
    lhs, rhs = avals
    floats = all(jnp.issubdtype(x.dtype, jnp.floating) for x in (lhs, rhs))
    sharding = params["out_sharding"]
    if not floats or (sharding is not None and any(sharding.spec)):
        return None
    ordered = numbers == _numbers(lhs.ndim) and params["batch_group_count"] == 1
    if ordered and not _is_swapped(lhs.shape, rhs.shape, numbers, **params):
        return None

    def convolution(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return _convolution(lhs, rhs, numbers, **params)

    return convolution


def _numbers(ndim: int) -> Numbers:
    """The order that there are kernels for."""
    last, space = ndim - 1, range(ndim - 2)
    features = 0, last, *range(1, last)
    return Numbers(features, (last, last - 1, *space), features)


def _order(spec: Sequence[int]) -> list[int]:
    """Axes as batch, space, features; a spec has batch, features, space."""
    batch, features, *space = spec
    return [batch, *space, features]


def _is_swapped(
    lhs: tuple[int, ...],
    rhs: tuple[int, ...],
    numbers: Numbers,
    *,
    feature_group_count: int,
    batch_group_count: int,
    **_: Any,
) -> bool:
    """Whether XLA exchanges input and kernel, and has no kernel for what it gets."""
    kernel = math.prod(rhs[i] for i in numbers.rhs_spec[2:])
    covered = math.prod(lhs[i] for i in numbers.lhs_spec[2:])
    return feature_group_count == batch_group_count == 1 and kernel > covered


def _convolution(
    lhs: jax.Array, rhs: jax.Array, numbers: Numbers, **params: Any
) -> jax.Array:
    """The same between transposes."""
    is_swapped = _is_swapped(lhs.shape, rhs.shape, numbers, **params)
    out, features, *space = numbers.rhs_spec
    lhs = jnp.transpose(lhs, _order(numbers.lhs_spec))
    rhs = jnp.transpose(rhs, [*space, features, out])
    groups = params.pop("batch_group_count")
    if groups > 1:
        params["feature_group_count"] = groups
        lhs = _groups_as_features(lhs, groups)
    params["dimension_numbers"] = _numbers(lhs.ndim)
    if is_swapped:
        result = _slid_over_kernel(lhs, rhs, **params)
    else:
        result = jax.lax.conv_general_dilated(lhs, rhs, **params)
    return jnp.transpose(result, np.argsort(_order(numbers.out_spec)).tolist())


def _groups_as_features(lhs: jax.Array, groups: int) -> jax.Array:
    """Groups of a batch `[groups * n, ..., c]` side by side: `[n, ..., groups * c]`."""
    batch, *space, features = lhs.shape
    lhs = lhs.reshape(groups, batch // groups, *space, features)
    return jnp.moveaxis(lhs, 0, -2).reshape(batch // groups, *space, groups * features)


def _slid_over_kernel(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    window_strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    lhs_dilation: tuple[int, ...],
    rhs_dilation: tuple[int, ...],
    **params: Any,
) -> jax.Array:
    """Sums the same terms, from the last position to the first."""
    space = range(1, lhs.ndim - 1)
    pads = []
    for i, axis in enumerate(space):
        low, high = padding[i]
        covered = (lhs.shape[axis] - 1) * lhs_dilation[i] + 1
        reach = (rhs.shape[i] - 1) * rhs_dilation[i] + 1
        # Where the last window starts, which may be before the end of the padding.
        steps = (covered + low + high - reach) // window_strides[i]
        pads.append((steps * window_strides[i] - low, covered - reach + low))
    result = jax.lax.conv_general_dilated(
        jnp.moveaxis(rhs, -1, 0),  # out, space, in
        jnp.moveaxis(lhs, 0, -1),  # space, in, batch
        window_strides=window_strides,
        padding=pads,
        lhs_dilation=rhs_dilation,
        rhs_dilation=lhs_dilation,
        **params,
    )
    return jax.lax.rev(jnp.swapaxes(result, 0, -1), tuple(space))
