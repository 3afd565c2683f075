"""The steps of a round, driven for all clients in one program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from fedagg._aggregator import Next
from fedagg._execution.program import Kept, Program
from fedagg._execution.ways import SumOver
from fedagg._messages.marks import in_units
from fedagg._messages.message import Message
from fedagg._rounds.steps import Work, client_step
from fedagg._trees import checks, pytree, rowwise, table
from fedagg._trees.keys import as_key, fold_key
from fedagg._trees.kinds import check_work
from fedagg._trees.remembered import check_stacked, check_value
from fedagg._trees.weights import as_weights, is_present, unit_of
from fedagg._types import Output, PyTree, Stage, Traits

# Stream of the server's key beside the clients', which are numbered from zero.
_SERVER = 2**32 - 1


class Clients(NamedTuple):
    """The clients of a round, stacked."""

    row: PyTree  # the update, or what `work` makes it of
    weight: jax.Array  # [n]
    index: jax.Array  # [n] uint32
    memory: PyTree  # what each kept of earlier rounds, or None


class Server(NamedTuple):
    """What the driver asks of the server."""

    broadcast: Callable[[PyTree], PyTree]  # state -> shared
    # (message, told, key of the client) -> what is summed of it, and stacked.
    receive: Callable[[Message, PyTree, Any], tuple[Message, PyTree]]
    # (state, total, stacked, key, like) -> Output, its value in the dtypes of `like`.
    finish: Callable[[PyTree, Message, PyTree, jax.Array | None, PyTree], Output]
    as_it_is: bool = False  # whether absent clients' values may come as they are
    told: Callable[[PyTree], PyTree] = lambda state: ()  # what `receive` is told


def driven(stage: Stage, server: Server, sum_over: SumOver) -> Next:
    """`next` of a round: clients make messages, which are summed some way."""

    def next(
        state: PyTree,
        updates: PyTree,
        weights: Any = None,
        key: jax.Array | None = None,
        *,
        work: Work | None = None,
        memory: PyTree = None,
    ) -> Any:
        key = as_key(key)
        if work is None:
            check_stacked(state, updates)
        else:
            check_work(work, memory)
        clients, examples = _clients(updates, weights, work, memory, stage.traits)
        is_in_proportion = _is_in_proportion(stage.traits)
        unit = unit_of(clients.weight) if is_in_proportion else jnp.float32(1.0)
        clients = clients._replace(weight=clients.weight / unit)
        values = []  # a client's value, as shapes and dtypes

        def look(value: PyTree) -> None:
            if work is None:
                check_value(state, value, "updates")
            values.append(value)

        def contribution(
            work: Any,
            shared: PyTree,
            of_server: PyTree,
            key: Any,
            examples: list,
            client: Clients,
        ):
            row, weight, index, memory = client
            row = table.together(row, examples)
            key = fold_key(key, index)
            told = stage, shared, row, weight, key, memory, work
            made = client_step(*told, look=look, as_it_is=server.as_it_is)
            message, kept = (made, None) if memory is None else made
            summed, stacked = server.receive(message, of_server, key)
            return summed, Kept((stacked, kept))

        # All arrays that clients share are arguments, for `across` to hand on.
        shared = server.broadcast(state)
        bound = None if work is None else pytree.as_partial(work)
        given = bound, shared, server.told(state), key, examples
        program = Program.of(Partial(contribution, *given), clients)
        total, together = sum_over(program, clients)
        stacked, kept = together.value
        if is_in_proportion:
            total = total._replace(note=in_units(total.note, unit))
        output = server.finish(state, total, stacked, fold_key(key, _SERVER), values[0])
        if memory is not None:
            _check_kept(kept, clients.memory)
        return output if memory is None else (output, kept)

    return next


def _check_kept(kept: PyTree, memory: PyTree) -> None:
    """Raises a TypeError if a way to sum added up what clients keep."""
    if pytree.shapes(kept) != pytree.shapes(memory):
        raise TypeError(
            "sum_over: this way to sum adds up what clients keep, which is to be "
            "stacked: hand its function to one of fedagg's, which do."
        )


def _is_in_proportion(traits: Traits) -> bool:
    """Whether weights matter in proportion to each other alone."""
    return traits.weighs and traits.divides and not traits.is_secret


def _clients(
    updates: PyTree, weights: Any, work: Work | None, memory: PyTree, traits: Traits
) -> tuple[Clients, list[PyTree]]:
    """The clients of a round, from the arguments of `next`, and examples in tables."""
    n = checks.count_clients(updates)
    if memory is not None:
        if work is None:
            raise ValueError(
                "memory: expected work beside it, which returns what clients keep, got "
                "work=None. Give next(..., work=work, memory=memory)."
            )
        found = checks.count_clients(memory, "memory")
        if found != n:
            raise ValueError(
                f"memory: expected a row for each of {n} clients, got {found}."
            )
    rows, examples = table.apart(updates)
    if examples and work is None:
        raise TypeError(
            "updates: a ClientTable holds examples, of which only work makes an update."
        )
    weights = as_weights(weights, n)
    if traits.is_private:
        weights = _once(rows, weights)
    rows = table.without_examples_of_absent(rows, is_present(weights))
    clients = Clients(
        jax.tree.map(jnp.asarray, rows),
        weights,
        jnp.arange(n, dtype=jnp.uint32),
        jax.tree.map(jnp.asarray, memory),
    )
    return clients, examples


def _once(rows: PyTree, weights: jax.Array) -> jax.Array:
    """The weights, zero where a present row before is of the same client of a table.

    In both rows it would move a sum by two clips.
    """
    parts = pytree.parts_with_names(rows, lambda x: isinstance(x, table.Places))
    places = [x for _, x in parts if isinstance(x, table.Places)]
    if not places:
        return weights
    keys = [y for x in places for y in (x.starts, x.sizes)]
    return jnp.where(rowwise.is_first(is_present(weights), *keys), weights, 0.0)
