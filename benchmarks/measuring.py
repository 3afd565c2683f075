"""Times a compiled round against a plain read of the same bytes, turn by turn."""

import math
import statistics
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.contenders import CASES, Row
from benchmarks.inputs import Size, as_vector, make_stack, make_weights
from benchmarks.sampling import sample
from fedagg import Output

PyTree = Any

_MOST_TEMPORARY_BYTES = 6e9


class Measured(NamedTuple):
    """The columns of a row."""

    ratio: float  # to the plain read, median of the ratios turn by turn
    milliseconds: float  # median
    compile_seconds: float  # tracing and compiling
    temporary_bytes: float  # of the compiled program; NaN where it does not say


class Compiled(NamedTuple):
    """A round, ready to run again and again."""

    run: Callable[[], Output]
    seconds: float  # tracing and compiling
    temporary_bytes: float  # NaN where the program does not say


class Workload(NamedTuple):
    """What the rows of one size share."""

    stack: jax.Array  # [n, d]
    weights: jax.Array  # [n]
    read: Callable[[], Any]  # the floor of a round
    expected: dict[str, np.ndarray]  # per aggregator [d], or of a sample's columns
    errors: dict[str, float]  # per compressor, its squared error at most
    columns: np.ndarray | slice = slice(None)  # that are compared


def prepare(size: Size, names: Collection[str]) -> Workload:
    """Makes the updates, and what each of the named aggregators should give."""
    stack, weights = make_stack(size), make_weights(size)
    expected = {
        name: CASES[name].expected(
            np.asarray(CASES[name].spoil(stack)), np.asarray(weights, np.float64)
        )
        for name in names
    }
    errors = {
        name: error(np.asarray(stack), np.asarray(weights, np.float64))
        for name in names
        if (error := CASES[name].error) is not None
    }
    return Workload(stack, weights, _compile_read(weights, stack), expected, errors)


def prepare_sampled(size: Size, names: Collection[str]) -> Workload:
    """The same of rules, which are compared in a sample of the columns."""
    stack, weights = make_stack(size), make_weights(size)
    read, some = _compile_read(weights, stack), sample(np.asarray(stack))
    expected = {
        name: some.expected(CASES[name].expected, np.asarray(weights)) for name in names
    }
    return Workload(stack, weights, read, expected, {}, some.columns)


def _compile_read(weights: jax.Array, stack: jax.Array) -> Callable[[], Any]:
    """One read of all bytes, as a product with a vector."""
    compiled = jax.jit(lambda w, x: w @ x).lower(weights, stack).compile()
    return lambda: compiled(weights, stack)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def median_seconds(run: Callable[[], Any], repetitions: int = 20) -> float:
    return statistics.median(seconds(run) for _ in range(repetitions))


def compile_round(row: Row, tree: PyTree, weights: jax.Array) -> Compiled:
    """Compiles a row's round for updates with leaves `[n, ...]`."""
    state = row.init(jax.tree.map(lambda x: x[0], tree))
    arguments = _place(row.mesh, state, tree, weights)
    start = time.perf_counter()
    compiled = jax.jit(row.round).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    temporary = math.nan if memory is None else memory.temp_size_in_bytes
    return Compiled(lambda: compiled(*arguments), compile_seconds, temporary)


def measure(row: Row, tree: PyTree, workload: Workload) -> Measured | str:
    """Compiles, checks and times one row; else gives the reason why not.

    Raises:
        AssertionError: if another value than expected comes out.
    """
    run, compile_seconds, temporary = compile_round(row, tree, workload.weights)
    if temporary > _MOST_TEMPORARY_BYTES:
        return f"{temporary / 1e6:,.0f} MB of temporaries"

    got = np.asarray(as_vector(run().value)[workload.columns])
    want = workload.expected[row.aggregator]
    if row.aggregator in workload.errors:
        error = float(np.sum((got - want) ** 2))
        if not error <= 1.1 * workload.errors[row.aggregator]:
            raise AssertionError(f"{row.aggregator}: squared error {error:.3g}.")
    else:
        check(f"{row.aggregator}, {row.way}", got, want)
    turns = []
    start = time.perf_counter()
    while not _enough(len(turns), time.perf_counter() - start):
        turns.append((seconds(workload.read), seconds(run)))
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


def check(
    what: str, got: np.ndarray, want: np.ndarray, tolerance: float = 1e-5
) -> None:
    """A wrong row must not look fast.

    An entry may be off by the tolerance times its size, or the median entry's. One of
    whom NaN is wanted may be anything.

    Raises:
        AssertionError: if an entry is off by more.
    """
    allowed = tolerance * (np.abs(want) + np.nanmedian(np.abs(want)))
    worst = np.nanmax(np.abs(got - want) / allowed)
    if not worst <= 1.0:
        raise AssertionError(f"{what}: an entry is off by {worst:.3g} tolerances.")
