"""Parts of a value, by the paths of its leaves."""

import fnmatch
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from fedagg._trees import pytree
from fedagg._types import PyTree, Stage


def groups_of_leaves(
    value: PyTree, groups: Mapping[str, Stage | None], labels: Any
) -> list[str]:
    """The group of each leaf.

    Raises:
        ValueError: for a leaf without a group, and a group without a leaf.
    """
    paths = pytree.paths(value)
    if labels is None:
        found = [_first_match(path, groups) for path in paths]
        hint = " The first pattern that matches takes a leaf; '*' is for what is left."
    else:
        found, hint = _labelled(value, labels), ""
    known = ", ".join(map(repr, groups))
    for path, name in zip(paths, found, strict=True):
        if name not in groups:
            label = f" but {name!r}" if name else ""
            raise ValueError(
                f"groups: {path or 'the only leaf'} is in none{label}; there are "
                f"{known}.{hint}"
            )
    if without := sorted(groups.keys() - set(found)):
        raise ValueError(
            f"groups: no leaf is in {without[0]!r}; there are {', '.join(paths)}.{hint}"
        )
    return found


def _labelled(value: PyTree, labels: Any) -> list[str]:
    names = labels(value) if callable(labels) else labels
    try:
        return pytree.leaf_by_leaf(names, value)
    except ValueError as error:
        raise ValueError(
            f"labels: expected names in a tree like the value: {error}"
        ) from error


def _first_match(path: str, patterns: Mapping[str, Any]) -> str:
    return next((x for x in patterns if fnmatch.fnmatchcase(path, x)), "")


def parts_by_group(
    value: PyTree, groups: list[str], names: list[str]
) -> dict[str, PyTree]:
    """For each name its part of the value, with None for the leaves of others."""
    leaves, structure = pytree.flatten(value)
    pairs = list(zip(leaves, groups, strict=True))
    return {
        name: pytree.unflatten(structure, [x if y == name else None for x, y in pairs])
        for name in names
    }


def together(template: PyTree, groups: list[str], values: dict[str, PyTree]) -> PyTree:
    """One tree of all groups' values, zero where none is sent."""
    leaves, structure = pytree.flatten(template)
    rest = {name: iter(pytree.flatten(x)[0]) for name, x in values.items()}
    found = [
        next(rest[name]) if name in rest else jnp.zeros(x.shape, x.dtype)
        for x, name in zip(leaves, groups, strict=True)
    ]
    return pytree.unflatten(structure, found)
