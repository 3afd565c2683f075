"""Data sets of many clients, of unequal sizes."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fedagg._trees.table import sizes_of
from fedagg._types import PyTree


def pad_clients(datasets: Sequence[PyTree]) -> tuple[tuple[PyTree, Any], Any]:
    """Stacks clients' data sets of unequal sizes for `federated_averaging`.

    Args:
        datasets: for each of `n` clients a pytree of arrays `[m_i, ...]`, its examples.
            A client may have none.

    Returns:
        `(client_data, sizes)`: the client data are `(examples, mask)` with leaves of
        `examples` `[n, m, ...]`, filled up with zeros to the largest `m`, and `mask`
        `[n, m]`, True where there is an example. `sizes` `[n]` float32 are the numbers
        of examples, which are the weights to average with. All are NumPy arrays.

    Raises:
        ValueError: if there is no client, no example at all, clients' trees or the
            shapes of their examples differ, or leaves of a client disagree on the
            number of its examples.
        TypeError: for leaves that are no numbers.
    """
    sizes = sizes_of(datasets)
    largest = int(sizes.max())

    def stack(*leaves: Any) -> np.ndarray:
        arrays = [np.asarray(x) for x in leaves]
        # What holds the values of all of them.
        dtype = np.result_type(*arrays)
        stacked = np.zeros((len(arrays), largest, *arrays[0].shape[1:]), dtype)
        for i, x in enumerate(arrays):
            stacked[i, : len(x)] = x
        return stacked

    examples = jax.tree.map(stack, *datasets)
    mask = np.arange(largest)[None, :] < sizes[:, None]
    return (examples, mask), sizes.astype(np.float32)
