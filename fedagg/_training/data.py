"""Data sets of many clients, of unequal sizes."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fedagg._trees import pytree
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
        ValueError: if there is no client, no example at all, clients' trees differ, or
            leaves of a client disagree on the number of its examples.
    """
    if not datasets:
        raise ValueError("datasets: expected at least one client, got none.")
    structure = jax.tree.structure(datasets[0])
    sizes = np.zeros(len(datasets), np.int64)
    for i, dataset in enumerate(datasets):
        if jax.tree.structure(dataset) != structure:
            raise ValueError(
                f"datasets: client {i} has {jax.tree.structure(dataset)}, client 0 has "
                f"{structure}."
            )
        lengths = {
            path: np.shape(x)[0] for path, x in pytree.leaves_with_names(dataset)
        }
        if len(set(lengths.values())) != 1:
            raise ValueError(
                f"datasets: the leaves of client {i} disagree on the number of "
                f"examples, {lengths}."
            )
        sizes[i] = next(iter(lengths.values()))
    largest = int(sizes.max())
    if largest == 0:
        raise ValueError("datasets: expected at least one example, got none.")

    def stack(*leaves: Any) -> np.ndarray:
        first = np.asarray(leaves[0])
        stacked = np.zeros((len(leaves), largest, *first.shape[1:]), first.dtype)
        for i, leaf in enumerate(leaves):
            stacked[i, : len(leaf)] = leaf
        return stacked

    examples = jax.tree.map(stack, *datasets)
    mask = np.arange(largest)[None, :] < sizes[:, None]
    return (examples, mask), sizes.astype(np.float32)
