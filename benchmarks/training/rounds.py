"""What somebody who trains is given, and what they offer to be timed."""

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.training.workloads import Parameters, Workload


class Job(NamedTuple):
    """A round that is to be run."""

    workload: Workload
    start: Parameters  # of the model that clients train, and get at the start
    frozen: Parameters  # those beside them, which stay as they are
    way: str  # to sum, as the table names it; peers have one


class Round(NamedTuple):
    """How somebody runs it, with all prepared that lasts for many rounds."""

    calls: str  # what is called, by its name there
    run: Callable[[], Any]  # from the start to the next model, which is ready
    parameters: Callable[[Any], Parameters]  # of what `run` returned
    held: Callable[[], float | None] = lambda: None  # MB beside inputs and outputs


class NotRun(Exception):
    """Says in a line why a workload is left out."""
