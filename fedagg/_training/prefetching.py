"""Cohorts that are on their way to the device while the one before trains."""

import collections
import concurrent.futures
from collections.abc import Generator, Iterable, Iterator
from typing import Any, TypeVar

import jax

from fedagg._trees import checks
from fedagg._trees.kinds import described
from fedagg._types import PyTree

T = TypeVar("T")

_END: Any = object()


def prefetch(
    cohorts: Iterable[PyTree], *, ahead: int = 1, sharding: Any = None
) -> Generator[PyTree]:
    """Yields cohorts from the host, the next ones read and copied meanwhile.

    A thread takes from `cohorts` and puts arrays on the device. So `cohorts` may read
    files, or be a generator of `table.gathered(numbers)`. What it raises is raised
    here, in its turn.

    Args:
        cohorts: trees of arrays.
        ahead: how many are fetched before they are asked for. Positive; each takes
            memory on the device.
        sharding: where to, as `jax.device_put` takes it.

    Raises:
        TypeError: if `cohorts` is nothing to iterate over.
        ValueError: if `ahead` is not a positive integer.
    """
    checks.check_whole(1, ahead=ahead)
    if not isinstance(cohorts, Iterable):
        raise TypeError(
            "cohorts: expected something to iterate over, such as "
            "(table.gathered(numbers) for numbers in rounds), got "
            f"{described(cohorts)}."
        )
    return fetched_ahead((jax.device_put(x, sharding) for x in cohorts), ahead)


def fetched_ahead(cohorts: Iterator[T], ahead: int) -> Generator[T]:
    """Yields them in their order, with so many more fetched by a thread meanwhile."""
    pool = concurrent.futures.ThreadPoolExecutor(1, "fedagg-prefetch")

    def fetch() -> concurrent.futures.Future:
        return pool.submit(next, cohorts, _END)

    try:
        waiting = collections.deque(fetch() for _ in range(ahead))
        while (cohort := waiting.popleft().result()) is not _END:
            waiting.append(fetch())
            yield cohort
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
