"""The guarantee of an aggregator, from what its own stages declare."""

import math
from typing import Any, NamedTuple

from fedagg._aggregator import Aggregator
from fedagg._mechanism import Mechanism
from fedagg._messages.reveals import check_server, revealed
from fedagg._privacy.composition import (
    ACCOUNTANTS,
    NEIGHBORS,
    Run,
    event_of,
    sampler_of,
    spent,
)
from fedagg._privacy.samplers import Sampler
from fedagg._trees import checks
from fedagg._trees.kinds import described, instead
from fedagg._types import PyTree, Stage


class Guarantee(NamedTuple):
    """What `guarantee` found. Prints as a sentence."""

    epsilon: float
    delta: float  # as asked for, and what draws that are not quite of their law add
    neighbors: str
    rounds: int
    mechanisms: tuple[Mechanism, ...]
    sampler: Sampler
    of_draws: float = 0.0  # that part of delta
    unknown_draws: tuple[Mechanism, ...] = ()  # of whose draws no error is known

    def event(self) -> tuple[Any, Any]:
        """All rounds as a `DpEvent`, and the `NeighboringRelation` to compose it with.

        Both are dp-accounting's.

        Raises:
            ValueError: if there is none: integers for noise are accounted by a curve.
        """
        return event_of(
            Run(self.mechanisms, (), self.rounds, self.neighbors, self.sampler)
        )

    def __str__(self) -> str:
        return (
            f"epsilon {self.epsilon:.2f}, delta {self.delta:g}, {self.neighbors}: "
            f"{self.rounds} rounds of {', '.join(map(repr, self.mechanisms))}, "
            f"{self.sampler}{self._on_draws()}"
        )

    def _on_draws(self) -> str:
        """What draws do to delta, if that is worth a word."""
        said = ""
        if self.of_draws > 0.01 * self.delta:
            said += f"; of delta {self.of_draws:.2g} for draws"
        if self.unknown_draws:
            names = ", ".join(map(repr, self.unknown_draws))
            said += f"; without an error of draws in floats, of {names}"
        return said


def guarantee(
    aggregator: Aggregator | Stage,
    template: PyTree,
    rounds: int,
    delta: float,
    *,
    neighbors: str,
    participation: float | Sampler = 1.0,
    accountant: str = "pld",
) -> Guarantee:
    """The differential privacy of rounds of this aggregator, as its stages declare it.

    What is accounted is what runs: the mechanisms are those of the stages themselves,
    all parts that they noise together, a learnt clip's as well. Each part of a client's
    message is looked up too. One that no noise hides, and that follows the client's
    value or the size of its weight, is refused by name; such as a `zeroing` sends that
    counts, or learns without noise. So is a stage after the noise that reports or
    learns something of the sum, which has none yet; and `neighbors="add_or_remove"`, or
    a chance to be there, where a part tells who is there, as a secure sum's.

    A client in two rows of a cohort moves the sum by two clips. Samplers draw each
    client once; in a `ClientTable` a private round leaves out all rows but the first.

    | | |
    | --- | --- |
    | protected | a client, with all of its value in all rounds |
    | against | who sees values, metrics and what clients are told, in every round |
    | not against | the server itself, unless clients noise, under a secure sum |
    | outside | keys that are known; a client twice in a cohort; draws in floats, of a |
    | | privatizer or a bound of one's own, which the result names |

    Integers are drawn from tables to `2**-96`. How far they are from their law comes to
    the `delta` of the result, `1 + exp(epsilon)` times that of all entries and rounds:
    a million entries in a thousand rounds of `gaussian_noise` add 4e-13 for an epsilon
    of six.

    Args:
        aggregator: what `aggregator`, `federated_averaging` or a recipe made, or a
            stage.
        template: one client's value, arrays or `jax.ShapeDtypeStruct`; of a training,
            the model.
        rounds: how many rounds are released.
        delta: as in `epsilon`, and so are all that follow.
        neighbors: likewise.
        participation: likewise; the sampler that cohorts are drawn with.
        accountant: likewise.

    Raises:
        ValueError: if a stage does not declare its noise, a part has none or a stage
            reads a sum before its noise; and as
            `epsilon` does.
        TypeError: if `aggregator` is neither, or a pair made by hand.
        ImportError: if `dp-accounting` is not there.

    Reference: Dwork and Roth, "The Algorithmic Foundations of Differential Privacy",
        2014, section 3.5; McMahan et al., "Learning Differentially Private Recurrent
        Language Models", 2018, section 2.
    """
    checks.check_whole(1, rounds=rounds)
    checks.check_within("(0, 1)", delta=delta)
    run = run_of(aggregator, template, rounds, neighbors, participation, accountant)
    found = spent(run, delta, accountant)
    unknown = [x for x in run.mechanisms if x.draw_error is None]
    off = run.rounds * sum(_draw_error(x, template) for x in run.mechanisms)
    of_draws = _of_draws(found, off)
    return Guarantee(
        found,
        min(1.0, delta + of_draws),
        run.neighbors,
        run.rounds,
        run.mechanisms,
        run.sampler,
        of_draws,
        tuple(unknown),
    )


def _draw_error(mechanism: Mechanism, template: PyTree) -> float:
    return 0.0 if mechanism.draw_error is None else mechanism.draw_error(template)


def _of_draws(epsilon: float, off: float) -> float:
    """What a distance in total variation of all that is released adds to delta.

    With `P` and `Q` for what is accounted of neighbors, and as much for what runs, no
    further than `off` from each, an event has `P' <= P + off`, that is at most
    `exp(epsilon) Q + delta + off`, and `Q <= Q' + off`.
    """
    if off == 0.0 or epsilon == math.inf:
        return 0.0
    return min(1.0, off * (1.0 + math.exp(min(epsilon, 700.0))))


def run_of(
    aggregator: Aggregator | Stage,
    template: PyTree,
    rounds: int,
    neighbors: str,
    participation: float | Sampler,
    accountant: str,
) -> Run:
    """What the rounds of an aggregator are to an accountant."""
    checks.check_choice(NEIGHBORS, neighbors=neighbors)
    checks.check_choice(ACCOUNTANTS, accountant=accountant)
    sampler = sampler_of(participation)
    stage = aggregator.stage if isinstance(aggregator, Aggregator) else aggregator
    if not isinstance(stage, Stage):
        raise TypeError(
            "aggregator: expected a Stage, or an Aggregator of stages that are summed, "
            f"got {described(aggregator)}.{instead(Aggregator, aggregator)}"
        )
    mechanisms = stage.traits.mechanisms
    if stage.traits.without_guarantee:
        raise ValueError(
            f"{stage.traits.name}: a stage was given to without_guarantee, so that "
            "there is none."
        )
    if not mechanisms:
        raise ValueError(
            f"{stage.traits.name}: no stage declares the noise that makes it private, "
            "Traits(mechanisms=...). gaussian_noise does, and so do dp_aggregator, "
            "banded_noise, tree_noise and skellam; matrix_factorization_noise takes a "
            "mechanism. For noise of each client, local_gaussian_noise, take epsilon "
            "with neighbors='replace_one'."
        )
    _check_revealed(stage, template, neighbors, sampler)
    curves = tuple(x.curve(template) for x in mechanisms if x.curve is not None)
    return Run(mechanisms, curves, int(rounds), neighbors, sampler)


def _check_revealed(
    stage: Stage, template: PyTree, neighbors: str, sampler: Sampler
) -> None:
    """Raises a ValueError for a message with parts that spoil the guarantee."""
    check_server(stage, template)
    found = revealed(stage, template)
    by_value = [x.part for x in found if x.by_value or x.by_size]
    if by_value:
        raise ValueError(
            f"{', '.join(by_value)} of {stage.traits.name} follows the client's value, "
            "or its weight, and is not noised, so that no epsilon is finite. Leave the "
            "stage out that notes it, or have it tell nothing: zeroing has "
            "counted=False. server_view lists all parts."
        )
    by_weight = [x.part for x in found if x.by_weight]
    if by_weight and (neighbors == "add_or_remove" or sampler.rate < 1.0):
        raise ValueError(
            f"{', '.join(by_weight)} of {stage.traits.name} tells who is there: take "
            "neighbors='zero_out' or 'replace_one', which hide what a client holds, "
            "and no chance to be there: participation=1.0, cyclic(period) or "
            f"separated(...). Got {neighbors=} and {sampler}."
        )
