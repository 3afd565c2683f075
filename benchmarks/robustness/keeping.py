"""Finished trainings on disk, so that a run that was stopped goes on."""

import itertools
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.robustness.settings import Grid, Run


class Kept(NamedTuple):
    """Runs that came together, and the seconds since others came before them."""

    seconds: float
    runs: list[Run]


def folder_of(work: Path, who: str, grid: Grid) -> Path:
    """Where trainings as long as the grid's are, whatever else it crosses."""
    return work / f"{who}-{grid.steps}-{grid.every}"


def read(path: Path) -> list[Kept]:
    """What was kept; a last line that was cut short is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    told = [json.loads(x) for x in lines if x.endswith("\n")]
    return [Kept(seconds, [Run(*run) for run in runs]) for seconds, runs in told]


def keeping(path: Path, found: Iterable[list[Run]]) -> Iterator[Kept]:
    """Each is written before the next is asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text() if path.exists() else ""
    if not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])
    with path.open("a") as file:
        last = time.perf_counter()
        for runs in found:
            now = time.perf_counter()
            kept, last = Kept(now - last, runs), now
            print(json.dumps(kept), file=file, flush=True)
            yield kept


def wanted(grid: Grid) -> set[tuple]:
    """Of each of the grid's trainings, what it is told apart by."""
    return {*itertools.product(*grid[:7], range(grid.seeds))}


def told_apart(run: Run) -> tuple:
    return run[:8]


def whole(runs: Iterable[Run], grid: Grid) -> list[Run]:
    """Those of the grid, where all trainings of a rule's place in it are there."""
    found = {told_apart(run): run for run in runs}
    missing = {_place(x) for x in wanted(grid) - found.keys()}
    return [found[x] for x in sorted(wanted(grid)) if _place(x) not in missing]


def _place(x: tuple) -> tuple:
    rule, mixer, _, similarity, liars, *_ = x
    return rule, mixer, similarity, liars
