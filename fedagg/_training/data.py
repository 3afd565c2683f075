"""Data sets of many clients, of unequal sizes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
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
        ValueError: if there is no client, no example at all, clients' trees or the
            shapes of their examples differ, or leaves of a client disagree on the
            number of its examples.
        TypeError: for leaves that are no numbers.
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
        leaves = pytree.leaves_with_names(dataset)
        lengths = {path: _length(i, path, x) for path, x in leaves}
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
        arrays = [np.asarray(x) for x in leaves]
        shape = arrays[0].shape[1:]
        for i, x in enumerate(arrays):
            if x.shape[1:] != shape:
                raise ValueError(
                    f"datasets: examples of client {i} have shape {list(x.shape[1:])}, "
                    f"those of client 0 {list(shape)}."
                )
        # What holds the values of all of them.
        dtype = np.result_type(*arrays)
        stacked = np.zeros((len(arrays), largest, *shape), dtype)
        for i, x in enumerate(arrays):
            stacked[i, : len(x)] = x
        return stacked

    examples = jax.tree.map(stack, *datasets)
    mask = np.arange(largest)[None, :] < sizes[:, None]
    return (examples, mask), sizes.astype(np.float32)


def _length(client: int, path: str, x: Any) -> int:
    """The number of examples in a leaf."""
    where, array = f"{path} of client {client}", np.asarray(x)
    if not array.ndim:
        raise ValueError(
            f"datasets: expected a leading axis of examples, [m, ...]; {where} has "
            "shape []."
        )
    if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != bool:
        raise TypeError(f"datasets: expected numbers; {where} has dtype {array.dtype}.")
    return len(array)
