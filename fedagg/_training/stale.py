"""Training from models of several ages: changes of an old one are discounted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedagg._training import population
from fedagg._training.population import RememberingWork
from fedagg._training.server_step import ServerStep
from fedagg._trees import checks, pytree, rowwise
from fedagg._trees.buffers import told
from fedagg._types import PyTree, Update


class Aged(NamedTuple):
    """The variables of a training whose clients began at different steps."""

    newest: PyTree  # what the server moves
    models: PyTree  # [k, ...], what clients began with


class StaleRow(NamedTuple):
    """A client's data, and how old its model is."""

    data: PyTree
    place: jax.Array  # [] int32, of its model
    staleness: jax.Array  # [] float32


def work_on_stale(
    client_work: Callable[..., Any] | RememberingWork, discount: Callable
) -> Callable[..., Any] | RememberingWork:
    """The same work on `Aged` variables and a `StaleRow`, its change discounted."""
    of_one = population.function_of(client_work)

    def work(variables: Aged, row: StaleRow, key: Any, *memory: PyTree) -> Any:
        model = rowwise.take(variables.models, row.place)
        made = of_one(model, row.data, key, *memory)
        if not (isinstance(made, tuple) and made):
            return made  # which the training refuses
        factor = told("discount", discount, row.staleness)
        return _discounted(factor, made[0]), *made[1:]

    if isinstance(client_work, RememberingWork):
        return RememberingWork(client_work.init, work)
    return work


def step_of_newest(step: ServerStep) -> ServerStep:
    """The same step of `Aged` variables."""

    def moved(variables: Aged, change: PyTree, metrics: dict, state: PyTree):
        newest, state = step.step(variables.newest, change, metrics, state)
        return variables._replace(newest=newest), state

    return ServerStep(
        lambda variables: step.init(variables.newest),
        moved,
        lambda variables: step.template(variables.newest),
    )


def _discounted(factor: jax.Array, change: Any) -> Any:
    """The change times its factor, in its own dtypes."""
    if isinstance(change, Update):
        return change._replace(value=_discounted(factor, change.value))
    change = jax.tree.map(jnp.asarray, change)
    checks.check_floating(change, "buffered_averaging")
    return pytree.cast_like(pytree.scale(factor, change), change)
