"""The gradient that a client's step follows, as fast in a loop as outside of one."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import primitives

from fedagg._training.convolutions import in_order_of_kernels
from fedagg._training.pooling import without_windows
from fedagg._training.rewriting import rewritten_on_cpus

_RULES = {
    primitives.conv_general_dilated_p: in_order_of_kernels,
    primitives.select_and_scatter_add_p: without_windows,
}


def value_and_grad(
    fn: Callable[..., tuple[jax.Array, Any]],
) -> Callable[..., tuple[tuple[jax.Array, Any], Any]]:
    """`jax.value_and_grad(fn, has_aux=True)`, with what XLA is slow at rewritten.

    On CPUs convolutions and the gradient of max pooling are written as the backend has
    kernels for them. On other backends nothing changes.
    """
    return rewritten_on_cpus(jax.value_and_grad(fn, has_aux=True), _RULES)
