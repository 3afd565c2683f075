"""A model: parameters alone, or collections with the parameters under "params"."""

from collections.abc import Mapping

from fedagg._trees import pytree
from fedagg._types import PyTree


def check_is_no_module(variables: PyTree) -> None:
    """Raises a TypeError for a module in place of its variables."""
    kinds = [f"{x.__module__}.{x.__name__}" for x in type(variables).__mro__]
    if any(x.startswith("flax.nnx.") and x.endswith(".Module") for x in kinds):
        raise TypeError(
            "variables: expected the model's variables, got a module of flax.nnx. Give "
            "the first of what nnx_loss(model, loss) returned."
        )
    if any(x.startswith("flax.linen.") and x.endswith(".Module") for x in kinds):
        raise TypeError(
            "variables: expected the model's variables, got a module of flax.linen. "
            "Give what model.init(key, inputs) returned."
        )


def check_has_parameters(variables: PyTree) -> None:
    if not pytree.flatten(split_model(variables)[0])[0]:
        raise ValueError(
            "variables: expected a model with parameters, as model.init(key, inputs) "
            f"returns it, got {variables!r}."
        )


def plain_model(variables: PyTree) -> PyTree:
    """The model with plain dicts in place of `FrozenDict` and other kinds of dict."""
    from flax.core import FrozenDict  # takes longer to import than all of fedagg

    if isinstance(variables, (dict, FrozenDict)):
        return {name: plain_model(x) for name, x in variables.items()}
    return variables


def split_model(variables: PyTree) -> tuple[PyTree, PyTree]:
    """The parameters and the other collections: None if all are parameters."""
    if not isinstance(variables, Mapping) or "params" not in variables:
        return variables, None
    rest = {name: x for name, x in variables.items() if name != "params"}
    return variables["params"], rest


def join_model(parameters: PyTree, collections: PyTree) -> PyTree:
    """The inverse of `split_model`."""
    return parameters if collections is None else {"params": parameters, **collections}
