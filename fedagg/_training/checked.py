"""What client work is given and what a loss returns, if they are what they must be."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._training.models import in_containers_of, split_model
from fedagg._trees import checks, pytree
from fedagg._trees.kinds import array_leaves, types_of
from fedagg._trees.table import ClientTable
from fedagg._types import PyTree, Update


def checked_row(row: Any) -> tuple[PyTree, jax.Array | int, jax.Array]:
    """Examples, where the client's begin, and which of those that follow it has."""
    if isinstance(row, ClientTable):
        examples = jax.tree.map(jnp.asarray, row.examples)
        return examples, row.starts, jnp.arange(row.largest) < row.sizes
    is_pair = isinstance(row, (tuple, list)) and len(row) == 2
    if is_pair and isinstance(row[1], (np.ndarray, jax.Array)):
        examples, mask = jax.tree.map(jnp.asarray, row)
        if mask.ndim == 1 and mask.dtype == jnp.bool_:
            return examples, 0, mask
    raise TypeError(
        "client_data: local_training takes a ClientTable, or a pair (examples, mask), "
        "the mask [m] of bools, which say what examples a client has, as pad_clients "
        f"makes it; got a row of shapes {jax.tree.map(jnp.shape, row)}. Give "
        "ClientTable.of(datasets); or client_data, weights = pad_clients(datasets), "
        "and next(state, client_data, weights, key); or with a mask of all true, "
        "(examples, jnp.ones((n, m), bool))."
    )


def check_collections(changed: Mapping[str, PyTree], model: PyTree) -> None:
    """Raises a ValueError for collections that the model does not have."""
    had = sorted(split_model(model)[1] or {})
    if more := sorted(changed.keys() - had):
        raise ValueError(
            f"loss: returned a collection {more[0]!r}, which the model does not have: "
            f"beside its parameters, under 'params', it has {had}. Begin with it in "
            "the variables given to init, or return losses, {}."
        )


def checked_losses(made: Any, shape: tuple[int, ...]) -> tuple[jax.Array, PyTree]:
    """What a loss returned, if it is the loss of each example, and collections."""
    if (
        not isinstance(made, tuple)
        or len(made) != 2
        or not isinstance(made[1], Mapping)
    ):
        raise TypeError(
            "loss: expected a pair (losses, collections); with no collections that "
            f"change, return losses, {{}}. Got {types_of(made)}."
        )
    losses = array_leaves(made[0], "loss")
    is_array = isinstance(losses, (np.ndarray, np.generic, jax.Array))
    if not is_array or not jnp.issubdtype(losses.dtype, jnp.floating):
        got = f"dtype {losses.dtype}" if is_array else types_of(made[0])
        raise TypeError(
            f"loss: expected losses of a float dtype, [b], got {got}. Integers have no "
            "gradient."
        )
    losses = jnp.asarray(losses)
    if losses.shape != shape:
        raise ValueError(
            f"loss: expected the loss of each example, of shape {list(shape)}; got "
            f"{list(losses.shape)}. Leave the mean over examples out; drop an axis of "
            "one; take the mean over what an example is made of, such as tokens: "
            "losses.mean(axis=1)."
        )
    return losses, made[1]


def checked_work(made: Any, variables: PyTree) -> Any:
    """What client work returned, its change in the containers of the model.

    Raises:
        ValueError: for a change that is not like the model.
    """
    if not isinstance(made, tuple) or not made or isinstance(made, Update):
        return made  # which the aggregator refuses
    given = made[0].value if isinstance(made[0], Update) else made[0]
    change = in_containers_of(given, variables)
    expected, got = pytree.shapes(variables), pytree.shapes(change)
    if got != expected:
        raise ValueError(
            "client_work: expected a change with the shapes of the model, "
            f"{expected}; got {got}. A loss is no work: local_training(loss, "
            "optimizer) makes work of it."
        )
    if isinstance(made[0], Update):
        change = made[0]._replace(value=change)
    return change, *made[1:]


def check_state(kind: type, state: Any, model: str) -> None:
    """Raises a TypeError for a state of another training; says where its model is."""
    if not isinstance(state, kind):
        raise TypeError(
            "state: expected the state that init or the last round returned, got a "
            f"{type(state).__name__}. next takes (state, client_data, weights, key), "
            f"and the model is {model}."
        )


def count_clients_of(client_data: PyTree) -> int:
    """How many there are, or an error that says how their data are stacked."""
    try:
        return checks.count_clients(client_data, "client_data")
    except ValueError as error:
        raise ValueError(
            f"{error} Of a list of data sets: client_data, weights = "
            "pad_clients(datasets), or ClientTable.of(datasets), of which a cohort is "
            "table[[3, 1, 4]]."
        ) from None
