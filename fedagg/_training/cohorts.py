"""Cohorts of a run, on their way: who they are, their data, and what they keep."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fedagg._privacy.samplers import Cohort
from fedagg._training.memories import ClientMemories
from fedagg._training.prefetching import prefetch
from fedagg._trees import pytree, table
from fedagg._trees.table import ClientTable
from fedagg._types import Output, PyTree


class Fetched(NamedTuple):
    """A cohort that is ready to train."""

    draws: PyTree  # the sampler's state after it
    numbers: Any  # [room], of anybody where absent
    data: PyTree
    weights: Any  # [room]
    memory: PyTree  # rows of what they keep on the host, or None


def fetched(
    draw: Callable[[Any, jax.Array], tuple[Any, Cohort]],
    draws: PyTree,
    key: jax.Array,
    rounds: int,
    client_data: PyTree,
    sizes: np.ndarray,
    memories: ClientMemories | None,
) -> Generator[Fetched]:
    """So many cohorts, each drawn and fetched while the one before trains."""

    def drawn() -> Iterator[Fetched]:
        state = draws
        for _ in range(rounds):
            state, cohort = draw(state, key)
            rows = np.asarray(cohort.rows)
            yield Fetched(state, rows, None, cohort.weights * sizes[rows], None)

    with contextlib.ExitStack() as stack:
        with_data = (x._replace(data=_rows_of(client_data, x.numbers)) for x in drawn())
        ahead = stack.enter_context(contextlib.closing(prefetch(with_data)))
        if memories is None:
            yield from ahead
            return
        # Drawn once more, which takes little, since a cohort's rows are read by itself.
        kept = memories.rounds(x.numbers for x in drawn())
        kept = stack.enter_context(contextlib.closing(kept))
        for cohort, (_, memory) in zip(ahead, kept, strict=True):
            yield cohort._replace(memory=memory)


def trained(
    next_round: Callable[..., Any],
    state: PyTree,
    cohort: Fetched,
    key: jax.Array,
    memories: ClientMemories | None,
) -> Output:
    """A round of the cohort, after which memories have what those keep who were there.

    Rows of who was absent may be anybody's.
    """
    given = state, cohort.data, cohort.weights, key
    if memories is None:
        return next_round(*given)
    output, kept = next_round(*given, memory=cohort.memory)
    there = np.asarray(cohort.weights) > 0.0
    rows = jax.tree.map(lambda x: np.asarray(x)[there], kept)
    memories[np.asarray(cohort.numbers)[there]] = rows
    return output


def _rows_of(client_data: PyTree, rows: np.ndarray) -> PyTree:
    """The data of a cohort, copied from the host where they are there."""

    def of_table(x: ClientTable) -> ClientTable:
        is_here = isinstance(pytree.flatten(x.examples)[0][0], jax.Array)
        return x[rows] if is_here else x.gathered(rows)

    return table.map_data(of_table, lambda x: x[rows], client_data)
