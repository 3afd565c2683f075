"""What a peer is given, and what it offers to be timed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Update = dict[str, np.ndarray]


class Clients(NamedTuple):
    """What the clients sent."""

    stack: np.ndarray  # [n, d]
    updates: list[Update]  # per client a row of the stack, cut into leaves
    weights: list[float]  # whole numbers


class Round(NamedTuple):
    """One line of the table, ready to run."""

    aggregator: str  # as benchmarks.contenders names it
    calls: str  # what is called, by its name in the peer
    run: Callable[[Any], Any]  # inputs -> a tree of arrays, leaves as in the updates
    inputs: Any  # in the form in which the peer's users have them
    copy: Callable[[Any], Any] | None = None  # of the inputs, where run writes to them
    # What it means to give `[d]`, of stack and weights, where that is not the same.
    expected: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    # What is compared in place of run, where that depends on a draw.
    compared: Callable[[Any], Any] | None = None
