"""What is taken from the runs of a grid: hyperparameters by the worst attack."""

import itertools
import math
from collections.abc import Iterable

import numpy as np

from benchmarks.robustness.settings import Run

Row = dict
_WHERE = ("rule", "mixer", "similarity", "liars")


def ends(who: str, runs: Iterable[Run], every: int) -> list[Row]:
    """The accuracy under each attack, once rate and momentum are chosen.

    As in ByzFL's benchmark, they are those whose worst attack leaves the best accuracy
    on digits for validation, a mean over seeds, at its best look. Accuracies are on
    digits for testing, at that look.
    """
    rows = []
    for where, group in _grouped(runs, *_WHERE):
        tried = dict(_grouped(group, "rate", "momentum"))
        chosen = max(
            tried, key=lambda x: min(map(_best, _by_attack(tried[x]).values()))
        )
        for attack, seeds in _by_attack(tried[chosen]).items():
            look = int(np.argmax(_validation(seeds)))
            found = [run.test[look] for run in seeds]
            rows.append(
                {
                    "who": who,
                    **dict(zip(_WHERE, where, strict=True)),
                    "attack": attack,
                    "accuracy": round(float(np.mean(found)), 4),
                    "spread": round(float(np.std(found, ddof=1)), 4),
                    "rate": chosen[0],
                    "momentum": chosen[1],
                    "step": look * every,
                    "seeds": len(found),
                }
            )
    return rows


def worst(rows: Iterable[Row]) -> dict[tuple, Row]:
    """Of each rule where it stands, the attack that leaves the least."""
    least: dict[tuple, Row] = {}
    for row in (x for x in rows if "accuracy" in x):
        where = tuple(row[x] for x in ("who", *_WHERE))
        least[where] = min(least.get(where, row), row, key=lambda x: x["accuracy"])
    return least


def gaps(rows: Iterable[Row]) -> dict[tuple, float]:
    """Between fedagg's worst cases and others', in deviations from seed to seed.

    The deviation is that of a difference of one seed's accuracies.
    """
    least = worst(rows)
    found = {}
    for (who, *where), theirs in least.items():
        ours = least.get(("fedagg", *where))
        if who != "fedagg" and ours is not None:
            gap = abs(ours["accuracy"] - theirs["accuracy"])
            deviation = math.hypot(ours["spread"], theirs["spread"])
            found[who, *where] = gap / deviation if gap else 0.0
    return found


def _by_attack(runs: list[Run]) -> dict[str, list[Run]]:
    return {attack: group for (attack,), group in _grouped(runs, "attack")}


def _validation(seeds: list[Run]) -> np.ndarray:
    return np.mean([run.validation for run in seeds], axis=0)


def _best(seeds: list[Run]) -> float:
    return float(np.max(_validation(seeds)))


def _grouped(runs: Iterable[Run], *names: str) -> list[tuple[tuple, list[Run]]]:
    def key(run: Run) -> tuple:
        return tuple(getattr(run, name) for name in names)

    ordered = sorted(runs, key=key)
    return [(x, list(group)) for x, group in itertools.groupby(ordered, key)]
