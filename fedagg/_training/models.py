"""A model: parameters alone, or collections with the parameters under "params".

Whatever kinds of dicts and other containers it is made of come back as what they were.
"""

import sys
from collections.abc import Mapping

from fedagg._trees import pytree
from fedagg._types import PyTree


def check_is_no_module(variables: PyTree) -> None:
    """Raises a TypeError for a module in place of its variables."""
    for name, instead in (
        ("flax.nnx", "the first of what nnx_loss(model, loss) returned"),
        ("flax.linen", "what model.init(key, inputs) returned"),
    ):
        library = sys.modules.get(name)  # who has a module of it has imported it
        if library is not None and isinstance(variables, library.Module):
            raise TypeError(
                "variables: expected the model's variables, got a module of "
                f"{name}. Give {instead}."
            )


def check_has_parameters(variables: PyTree) -> None:
    if not pytree.flatten(split_model(variables)[0])[0]:
        raise ValueError(
            "variables: expected a model with parameters, as model.init(key, inputs) "
            f"returns it, got {variables!r}."
        )


def in_containers_of(tree: PyTree, other: PyTree) -> PyTree:
    """The leaves of a tree in the containers of another, where their paths agree.

    A `FrozenDict`, an `OrderedDict` and a dict with the same leaves are three
    structures to JAX, and what a model's `apply` or a client's work returns may be of
    another one than what it was given.
    """
    if pytree.is_alike(tree, other):
        return tree
    leaves = dict(pytree.leaves_with_names(tree))
    names = [name for name, _ in pytree.leaves_with_names(other)]
    if sorted(leaves) != sorted(names):
        return tree
    _, structure = pytree.flatten(other)
    return pytree.unflatten(structure, [leaves[name] for name in names])


def split_model(variables: PyTree) -> tuple[PyTree, PyTree]:
    """The parameters and a dict of other collections: None if all are parameters."""
    if not isinstance(variables, Mapping) or "params" not in variables:
        return variables, None
    rest = {name: x for name, x in variables.items() if name != "params"}
    return variables["params"], rest


def join_model(parameters: PyTree, collections: PyTree, like: PyTree) -> PyTree:
    """The inverse of `split_model`, in the containers of a model."""
    if collections is None:
        return in_containers_of(parameters, like)
    return in_containers_of({"params": parameters, **collections}, like)


def with_parameters(model: PyTree, parameters: PyTree) -> PyTree:
    """The same collections, with other parameters."""
    return join_model(parameters, split_model(model)[1], model)


def with_collections(model: PyTree, changed: Mapping[str, PyTree]) -> PyTree:
    """The model with new values of some of its collections."""
    return in_containers_of({**model, **changed}, model) if changed else model
