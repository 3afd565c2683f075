"""Data sets of many clients, checked: whether they are alike, and how many examples."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fedagg._trees import pytree
from fedagg._trees.kinds import described, is_numeric
from fedagg._types import PyTree

# Positions of examples are of 32 bits.
_MOST = 2**31 - 1


def listed(datasets: Any) -> list:
    """The clients' data sets as a list, whatever they are a sequence of.

    Raises:
        TypeError: if they are none.
    """
    expected = "datasets: expected a list with the examples of each client"
    if isinstance(datasets, Mapping):
        raise TypeError(
            f"{expected}, got {described(datasets)}. With clients as its values: "
            "list(datasets.values())."
        )
    if isinstance(datasets, str) or not isinstance(datasets, Iterable):
        raise TypeError(
            f"{expected}, as [(inputs, targets), ...], got {described(datasets)}."
        )
    return list(datasets)


def sizes_of(datasets: list) -> np.ndarray:
    """The number of examples in each of the data sets, if they are alike.

    Raises:
        ValueError, TypeError: as `ClientTable.of` says.
    """
    if not datasets:
        raise ValueError(
            "datasets: expected at least one client, got none. Give a list with the "
            "examples of each: [(inputs, targets), ...]."
        )
    sizes = np.zeros(len(datasets), np.int64)
    for i, dataset in enumerate(datasets):
        _check_alike(i, dataset, datasets[0])
        lengths = {
            path: _length(i, path, x) for path, x in pytree.leaves_with_names(dataset)
        }
        if len(set(lengths.values())) != 1:
            raise ValueError(
                f"datasets: the leaves of client {i} disagree on the number of "
                f"examples, {lengths}. The first axis of each is that of its examples."
            )
        sizes[i] = next(iter(lengths.values()))
    if sizes.max() == 0:
        raise ValueError(
            "datasets: expected at least one example of some client, got none."
        )
    if sizes.sum() > _MOST:
        raise ValueError(
            f"datasets: expected at most {_MOST:,} examples, got {sizes.sum():,}. Make "
            "several tables."
        )
    return sizes


def _check_alike(client: int, dataset: PyTree, first: PyTree) -> None:
    """Raises a ValueError for a data set unlike the first one."""
    leaves = pytree.leaves_with_names(dataset)
    if not leaves:
        raise ValueError(
            "datasets: expected arrays [m, ...] for each client, got none for client "
            f"{client}. For a client without examples: arrays of length 0."
        )
    if not pytree.is_alike(dataset, first):
        raise ValueError(
            f"datasets: expected the same arrays for each client; client {client} has "
            f"{_named(dataset)}, client 0 has {_named(first)}. Give zeros for what a "
            "client lacks."
        )
    for (path, x), (_, other) in zip(
        leaves, pytree.leaves_with_names(first), strict=True
    ):
        if np.shape(x)[1:] != np.shape(other)[1:]:
            raise ValueError(
                f"datasets: examples of client {client} have shape "
                f"{list(np.shape(x)[1:])}, those of client 0 "
                f"{list(np.shape(other)[1:])} ({path}). Datasets are a list of "
                "clients, [(inputs, targets), ...]; examples of unequal lengths are to "
                "be padded to one length."
            )


def _named(tree: PyTree) -> str:
    """The leaves of a tree by their paths."""
    return ", ".join(path for path, _ in pytree.leaves_with_names(tree))


def _length(client: int, path: str, x: Any) -> int:
    """The number of examples in a leaf."""
    where, array = f"{path} of client {client}", np.asarray(x)
    if not array.ndim:
        raise ValueError(
            f"datasets: expected a leading axis of examples, [m, ...]; {where} has "
            "shape []. Make one array of a list of numbers, np.asarray(x); pad "
            "examples of unequal lengths to one length first."
        )
    if not is_numeric(array.dtype):
        raise TypeError(
            f"datasets: expected numbers; {where} has dtype {array.dtype}. Give "
            "numbers in place of words and labels, such as their places in a list."
        )
    return len(array)
