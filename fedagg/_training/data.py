"""Data sets of many clients, of unequal sizes."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from fedagg._trees.datasets import listed, sizes_of
from fedagg._types import PyTree


def pad_clients(datasets: Iterable[PyTree]) -> tuple[tuple[PyTree, Any], Any]:
    """Stacks clients' data sets of unequal sizes for `federated_averaging`.

    A round is compiled for the shapes that it is given: each new largest `m`, and each
    new number of clients, costs a compilation, which takes longer than most rounds. So
    keep to a fixed size, by padding all clients once and taking rows of the result; or
    to a ladder of sizes, such as powers of two, by padding a cohort together with one
    more client of weight zero, whose data set is zeros of that size. A `ClientTable`
    pads nothing, and compiles once for cohorts of one number of clients.

    Who is in a round is drawn by a sampler, `poisson(rate)` or `fixed_size(size, n)`;
    of its cohort, `jax.tree.map(lambda x: x[cohort.rows], client_data)` are the rows,
    and `cohort.weights * sizes[cohort.rows]` the weights::

        (data, mask), sizes = pad_clients(datasets)
        sampler = fixed_size(10, len(datasets))
        draws = sampler.init(len(datasets), jax.random.key(0))
        draws, cohort = sampler.next(draws, jax.random.key(1))
        rows = jax.tree.map(lambda x: x[cohort.rows], (data, mask))
        weights = cohort.weights * sizes[cohort.rows]

    Args:
        datasets: for each of `n` clients a pytree of arrays `[m_i, ...]`, its examples,
            such as a pair (inputs, targets). A client may have none: arrays of length
            0. A list, or anything else to iterate over.

    Returns:
        `(client_data, sizes)`: the client data are `(examples, mask)` with leaves of
        `examples` `[n, m, ...]`, filled up with zeros to the largest `m`, and `mask`
        `[n, m]`, True where there is an example. `sizes` `[n]` float32 are the numbers
        of examples, which are the weights to average with. All are NumPy arrays.

    Raises:
        ValueError: if there is no client, no example at all, clients' trees or the
            shapes of their examples differ, or leaves of a client disagree on the
            number of its examples.
        TypeError: if `datasets` is a dict or no sequence, or for leaves that are no
            numbers.
    """
    datasets = listed(datasets)
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
