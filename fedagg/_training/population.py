"""What each client of a population keeps between its rounds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._trees import checks, pytree
from fedagg._trees.weights import is_present
from fedagg._types import PyTree


class RememberingWork(NamedTuple):
    """Client work that keeps something of each client from round to round.

    Control variates, personal layers, the state of an optimizer, error-feedback memory:
    what a client keeps is never summed, and no server step sees it.
    `federated_averaging(work, ..., clients=n)` has the memories of all clients in its
    state; without `clients` they are given to each round and come back from it.

    Attributes:
        init: `(variables) -> memory`, of a client that was in no round yet. It keeps
            its structure, shapes and dtypes from round to round.
        work: `(variables, row, key, memory) -> (change, metrics, memory)`, one client's
            round.
    """

    init: Callable[[PyTree], PyTree]
    work: Callable[
        [PyTree, Any, jax.Array | None, PyTree],
        tuple[PyTree, dict[str, jax.Array], PyTree],
    ]


def first_memory(work: Any, variables: PyTree) -> PyTree:
    """What a client of no round keeps, as arrays."""
    memory = jax.tree.map(jnp.asarray, work.init(variables))
    if not pytree.flatten(memory)[0]:
        raise ValueError(
            "client_work: its init returned no arrays, so that there is nothing to "
            "keep. Give the function alone, without a memory."
        )
    return memory


def first_memories(work: Any, variables: PyTree, clients: int) -> PyTree:
    """The same for each of so many clients."""
    return jax.tree.map(
        lambda x: jnp.tile(x[None], (clients, *[1] * x.ndim)),
        first_memory(work, variables),
    )


def parted(client_data: PyTree) -> tuple[PyTree, Any]:
    """Client data and numbers, from the pair of them."""
    if not (isinstance(client_data, tuple) and len(client_data) == 2):
        raise TypeError(
            "client_data: this training keeps something of each of its clients and "
            "takes a pair (client_data, numbers), where numbers [n] say who is in the "
            f"round; got a {type(client_data).__name__}."
        )
    return client_data


def check_numbers(numbers: Any, n: int, clients: int, weights: jax.Array) -> jax.Array:
    """The numbers of a round's clients `[n]`.

    Raises:
        TypeError: for what are no integers.
        ValueError: for another shape; or, where numbers are known before tracing, a
            present client's number that is unknown or that another one has.
    """
    if not isinstance(numbers, jax.Array):
        numbers = np.asarray(numbers)
    if not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise TypeError(
            f"numbers: expected integers, those of clients, got {numbers.dtype}."
        )
    if numbers.shape != (n,):
        raise ValueError(
            f"numbers: expected shape ({n},), one for each client of the round; got "
            f"{numbers.shape}."
        )
    if not isinstance(numbers, jax.core.Tracer):
        there = np.ones(n, bool)
        if not isinstance(weights, jax.core.Tracer):
            there = np.asarray(is_present(weights))
        _check_known(np.asarray(numbers)[there], clients)
    return jnp.asarray(numbers)


def _check_known(numbers: np.ndarray, clients: int) -> None:
    unknown = numbers[(numbers < 0) | (numbers >= clients)]
    if unknown.size:
        raise ValueError(
            f"numbers: expected 0 to {clients - 1}, since clients={clients}; got "
            f"{unknown[0]}."
        )
    found, times = np.unique(numbers, return_counts=True)
    if found.size < numbers.size:
        raise ValueError(
            f"numbers: client {found[times > 1][0]} is {times.max()} times in the "
            "round, and would keep one of as many memories. Draw clients without "
            "replacement."
        )


def check_clients(client_work: Any, clients: int | None) -> None:
    """Raises a ValueError for `clients` beside work that remembers nothing."""
    if clients is None:
        return
    checks.check_whole(1, clients=clients)
    if not isinstance(client_work, RememberingWork):
        raise ValueError(
            f"clients={clients} is for work that remembers, which keeps something of "
            "each of them: give RememberingWork(init, work)."
        )


def function_of(client_work: Any) -> Callable[..., Any]:
    """The function of a client, of work that remembers or not."""
    is_remembering = isinstance(client_work, RememberingWork)
    return client_work.work if is_remembering else client_work


def check_memory(client_work: Any, memory: PyTree) -> None:
    """Raises a ValueError if there is none for work that remembers."""
    if memory is None and isinstance(client_work, RememberingWork):
        raise ValueError(
            "memory: the work remembers, got memory=None. Give next memory=, one row "
            "for each client, or federated_averaging clients=, how many there are."
        )
