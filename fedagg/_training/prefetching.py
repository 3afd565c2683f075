"""Cohorts that are on their way to the device while the one before trains."""

import collections
import concurrent.futures
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import jax

from fedagg._trees import checks
from fedagg._trees.kinds import described
from fedagg._types import PyTree

_END = object()


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
    return _prefetched(iter(cohorts), ahead, sharding)


def _prefetched(
    cohorts: Iterator[PyTree], ahead: int, sharding: Any
) -> Generator[PyTree]:
    def fetch() -> Any:
        cohort = next(cohorts, _END)
        return cohort if cohort is _END else jax.device_put(cohort, sharding)

    pool = concurrent.futures.ThreadPoolExecutor(1, "fedagg-prefetch")
    try:
        waiting = collections.deque(pool.submit(fetch) for _ in range(ahead))
        while (cohort := waiting.popleft().result()) is not _END:
            waiting.append(pool.submit(fetch))
            yield cohort
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
