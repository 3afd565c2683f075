"""Times a peer, inside the peer's environment, and prints a line of JSON a row.

What this module imports has to run on the oldest JAX in any of these environments, and
without fedagg.
"""

import argparse
import functools
import importlib
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import options, reference
from benchmarks import reference_of_rules as rules
from benchmarks.inputs import Size, cut, make_stack, make_weights
from benchmarks.peers.rounds import Clients, Round
from benchmarks.sampling import Sample, everything, sample

EXPECTED = {
    "sum": reference.total,
    "mean": reference.mean,
    "clipped mean": reference.clipped_mean,
    "robust": reference.robust_mean,
    "median": rules.median,
    "trimmed mean": rules.trimmed_mean,
    "mean around median": rules.mean_around_median,
    "Krum": rules.krum,
    "multi-Krum": rules.multi_krum,
    "Bulyan": rules.bulyan,
    "geometric median": rules.geometric_median,
    "centered clipping": reference.clipped_mean,
    "CAF": rules.caf,
    "nearest neighbors, trimmed mean": rules.mixed_trimmed_mean,
    "adaptive clipping, trimmed mean": rules.clipped_trimmed_mean,
    "bucketing, centered clipping": rules.mean_of_buckets,
    "minimum diameter": rules.minimum_diameter,
    "SMEA": rules.smea,
}
_TOLERANCE = 1e-4  # ten times that of fedagg: some add a norm up in float32


class Workload(NamedTuple):
    """What the rows of one size share."""

    stack: np.ndarray  # [n, d]
    weights: np.ndarray  # [n]
    read: Callable[[], Any]  # the floor of a round


def main() -> None:
    chosen = _options()
    # What a peer prints, and the servers that it starts, must not get in between.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    end = time.perf_counter() + chosen.seconds
    peer = importlib.import_module(chosen.module)
    for leaves, size in itertools.product(chosen.leaves, chosen.sizes):
        offered = rows(
            *(peer.rounds, size, leaves, end, chosen.aggregators, chosen.sampled)
        )
        for row in offered:
            print(json.dumps({"size": size, "leaves": leaves, **row}), file=out)
            out.flush()


def rows(
    rounds: Callable[[Clients], Iterator[Round]],
    size: Size,
    leaves: int,
    end: float,
    aggregators: Sequence[str] = tuple(EXPECTED),
    sampled: bool = False,
) -> Iterator[dict]:
    """Checks and times what a peer offers of these, until it is `end`.

    Of rules it is enough to compare a sample of the columns.
    """
    workload = _prepare(size)
    updates = [cut(row, leaves) for row in workload.stack]
    copies = [{name: x.copy() for name, x in update.items()} for update in updates]
    for row in rounds(Clients(workload.stack, copies, workload.weights.tolist())):
        if row.aggregator not in aggregators:
            continue
        named = {"aggregator": row.aggregator, "calls": row.calls}
        if time.perf_counter() > end:
            yield {**named, "skipped": "out of time, see --minutes"}
            continue
        try:
            got = _run(row._replace(run=row.compared or row.run))[0]
            want = _expected(size, row.expected or row.aggregator, sampled)
            check(as_vector(got)[_compared(size, sampled).columns], want)
            yield {**named, **_measure(row, workload.read)}
        except Exception as error:  # whatever a peer raises is its answer
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            yield {**named, "skipped": reason}


def check(got: np.ndarray, want: np.ndarray) -> None:
    """A wrong row must not look fast. What is wanted as NaN may be anything.

    Raises:
        ValueError: if an entry is off by more than the tolerance times its size and
            the median entry's.
    """
    allowed = _TOLERANCE * (np.abs(want) + np.nanmedian(np.abs(want)))
    worst = np.nanmax(np.abs(got - want) / allowed)
    if not worst <= 1.0:
        raise ValueError(f"wrong, an entry is off by {worst:.3g} tolerances")


def as_vector(value: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(value)])


@functools.cache
def _prepare(size: Size) -> Workload:
    stack, weights = make_stack(size), make_weights(size)
    compiled = jax.jit(lambda w, x: w @ x).lower(weights, stack).compile()
    arrays = np.asarray(stack), np.asarray(weights)
    return Workload(*arrays, lambda: compiled(weights, stack))


@functools.cache
def _compared(size: Size, sampled: bool) -> Sample:
    return (sample if sampled else everything)(_prepare(size).stack)


@functools.cache
def _expected(size: Size, of: str | Callable, sampled: bool) -> np.ndarray:
    fn = EXPECTED[of] if isinstance(of, str) else of
    return _compared(size, sampled).expected(fn, _prepare(size).weights)


def _measure(row: Round, read: Callable[[], Any]) -> dict:
    """Times read and round turn by turn, as `benchmarks.measuring` does."""
    turns = []
    start = time.perf_counter()
    while not _enough(len(turns), time.perf_counter() - start):
        _timed(read)  # what a round leaves behind in threads and caches slows one read
        turns.append((_timed(read)[1], _run(row)[1]))
    return {
        "ratio": statistics.median(mine / plain for plain, mine in turns),
        "milliseconds": 1e3 * statistics.median(mine for _, mine in turns),
        "read_milliseconds": 1e3 * statistics.median(plain for plain, _ in turns),
    }


def _enough(turns: int, spent: float) -> bool:
    return turns >= 100 or (spent > 0.6 and turns >= 3) or spent > 4.0


def _run(row: Round) -> tuple[Any, float]:
    inputs = row.inputs if row.copy is None else row.copy(row.inputs)
    return _timed(row.run, inputs)


def _timed(run: Callable[..., Any], *inputs: Any) -> tuple[Any, float]:
    """The result and the seconds until it is there."""
    start = time.perf_counter()
    result = jax.block_until_ready(run(*inputs))
    return result, time.perf_counter() - start


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("module", help="where the peer's rounds are")
    parser.add_argument("--sizes", nargs="+", type=options.size, required=True)
    parser.add_argument("--leaves", nargs="+", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--aggregators", nargs="+", required=True)
    parser.add_argument("--sampled", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
