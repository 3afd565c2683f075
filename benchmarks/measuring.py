"""Times a compiled round against a plain read of the same bytes, turn by turn."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.contenders import Row
from benchmarks.inputs import as_vector

PyTree = Any

_MOST_TEMPORARY_BYTES = 6e9
_TOLERANCE = 1e-5


class Measured(NamedTuple):
    """The columns of a row."""

    ratio: float  # to the plain read, median of the ratios turn by turn
    milliseconds: float  # median
    compile_seconds: float  # tracing and compiling
    temporary_bytes: float  # of the compiled program; NaN where it does not say


def compile_read(weights: jax.Array, stack: jax.Array) -> Callable[[], Any]:
    """The floor of a round: one read of all bytes, as a product with a vector."""
    compiled = jax.jit(lambda w, x: w @ x).lower(weights, stack).compile()
    return lambda: compiled(weights, stack)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def measure(
    row: Row, tree: PyTree, weights: jax.Array, want: np.ndarray, read: Callable
) -> Measured | str:
    """Compiles, checks and times one row; else gives the reason why not.

    Args:
        row: what runs.
        tree: the updates, leaves `[n, ...]`.
        weights: `[n]`.
        want: the value that must come out, `[d]`.
        read: the plain read.

    Raises:
        AssertionError: if another value comes out.
    """
    state = row.init(jax.tree.map(lambda x: x[0], tree))
    arguments = _place(row.mesh, state, tree, weights)
    start = time.perf_counter()
    compiled = jax.jit(row.round).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    temporary = math.nan if memory is None else memory.temp_size_in_bytes
    if temporary > _MOST_TEMPORARY_BYTES:
        return f"{temporary / 1e6:,.0f} MB of temporaries"

    _check(row, np.asarray(as_vector(compiled(*arguments).value)), want)
    turns = []
    start = time.perf_counter()
    while not _enough(len(turns), time.perf_counter() - start):
        turns.append((seconds(read), seconds(lambda: compiled(*arguments))))
    ratio = statistics.median(mine / plain for plain, mine in turns)
    milliseconds = 1e3 * statistics.median(mine for _, mine in turns)
    return Measured(ratio, milliseconds, compile_seconds, temporary)


def _enough(turns: int, spent: float) -> bool:
    """Many turns of a fast row, three of a slow one, one of a very slow one."""
    return turns >= 100 or (spent > 0.6 and turns >= 3) or spent > 4.0


def _place(mesh: jax.sharding.Mesh | None, state: PyTree, *clients: PyTree) -> tuple:
    if mesh is None:
        return state, *clients
    everywhere = jax.sharding.NamedSharding(mesh, jax.P())
    spread = jax.sharding.NamedSharding(mesh, jax.P("clients"))
    return jax.device_put(state, everywhere), *jax.device_put(clients, spread)


def _check(row: Row, got: np.ndarray, want: np.ndarray) -> None:
    """A wrong row must not look fast.

    An entry may be off by the tolerance times its size, or the median entry's.
    """
    allowed = _TOLERANCE * (np.abs(want) + np.median(np.abs(want)))
    worst = np.max(np.abs(got - want) / allowed)
    if not worst <= 1.0:
        raise AssertionError(
            f"{row.aggregator}, {row.way}: an entry is off by {worst:.3g} tolerances."
        )
