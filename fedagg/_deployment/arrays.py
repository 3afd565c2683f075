"""Trees of arrays as bytes: plain arrays as they are, then integers of a few bits."""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np

from fedagg._deployment import residue_bits
from fedagg._messages.residues import Residues, is_residues
from fedagg._trees import pytree
from fedagg._types import PyTree


def written(tree: PyTree) -> str:
    """The paths, dtypes and shapes of a tree's arrays, as text."""
    plain = [
        f"{path} {x.dtype}{list(x.shape)}" for path, x in pytree.leaves_with_names(tree)
    ]
    bits = [
        f"{path} of {x.modulus_bits} bits"
        for path, x in pytree.parts_with_names(tree, is_residues)
        if is_residues(x)
    ]
    return ", ".join([*plain, *bits])


def _parted(tree: PyTree) -> tuple[list[Any], list[Residues]]:
    """Plain arrays, and integers modulo powers of two."""
    parts = [x for _, x in pytree.parts_with_names(tree, is_residues)]
    return [x for x in parts if not is_residues(x)], [
        x for x in parts if is_residues(x)
    ]


def bytes_of(tree: PyTree) -> bytes:
    """Plain arrays, one after the other, then integers modulo powers of two."""
    plain, residues = _parted(tree)
    arrays = [np.ascontiguousarray(x).tobytes() for x in plain]
    packed = residue_bits.pack(
        [(np.asarray(x.words), x.modulus_bits) for x in residues]
    )
    return b"".join([*arrays, packed])


def from_bytes(data: memoryview, form: PyTree) -> Any:
    """The inverse of `bytes_of`.

    Raises:
        ValueError: for bytes that it does not make.
    """
    plain, residues = _parted(form)
    packed = [(x.words.shape, x.modulus_bits) for x in residues]
    sizes = [pytree.count_bytes(x) for x in plain]
    expected = sum(sizes) + residue_bits.packed_size(packed)
    if len(data) != expected:
        raise ValueError(
            f"Expected {expected} bytes after the header, got {len(data)}."
        )
    ends = itertools.accumulate(sizes, initial=0)
    arrays = iter(
        [
            _array(data[at : at + size], x)
            for x, size, at in zip(plain, sizes, ends, strict=False)
        ]
    )
    words = iter(residue_bits.unpack(data[sum(sizes) :], packed))

    def filled(x: Any) -> Any:
        if is_residues(x):
            return dataclasses.replace(x, words=next(words))
        return next(arrays)

    return jax.tree.map(filled, form, is_leaf=is_residues)


def _array(data: memoryview, form: Any) -> np.ndarray:
    """An array like the form, which shares memory with its bytes.

    Raises:
        ValueError: for bools that are neither zero nor one.
    """
    if form.dtype == np.bool_ and set(data) - {0, 1}:
        raise ValueError("Expected bools as zero and one.")
    return np.frombuffer(data, form.dtype).reshape(form.shape)
