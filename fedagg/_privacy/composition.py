"""A run of rounds as an event of dp-accounting, or as Rényi divergences."""

import math
from typing import Any, NamedTuple

import numpy as np

from fedagg._mechanism import Mechanism, RenyiCurve
from fedagg._privacy.samplers import Sampler, poisson
from fedagg._trees import checks
from fedagg._trees.kinds import described

# How far, in clips, one client can move a sum.
_DISTANCES = {"add_or_remove": 1.0, "zero_out": 1.0, "replace_one": 2.0}
NEIGHBORS, ACCOUNTANTS = tuple(_DISTANCES), ("pld", "rdp")
_FARTHEST = 45.0
_ORDERS = [*range(2, 65), *range(72, 257, 8), 320, 384, 448, 512]


class Run(NamedTuple):
    """What is composed."""

    mechanisms: tuple[Mechanism, ...]  # of Gaussian noise, all parts of each round
    curves: tuple[RenyiCurve, ...]  # likewise, of integers
    rounds: int
    neighbors: str
    sampler: Sampler


def sampler_of(participation: float | Sampler) -> Sampler:
    """A chance as a sampler; a sampler as it is."""
    if isinstance(participation, Sampler):
        return participation
    try:
        checks.check_within("(0, 1]", participation=participation)
    except TypeError:
        raise TypeError(
            "participation: expected a chance in (0, 1], or a sampler as poisson(0.01) "
            f"returns it, got {described(participation)}."
        ) from None
    sampler = poisson(participation)
    return sampler if participation < 1.0 else sampler._replace(sentence="all clients")


def spent(run: Run, delta: float, accountant: str, earlier: Any = None) -> float:
    """The epsilon of a run, and of an event of dp-accounting before it."""
    library()
    if run.curves:
        if earlier is not None:
            raise ValueError(
                "earlier: a Rényi curve is no event of dp-accounting, and is not "
                "composed with one."
            )
        return _spent_on_curves(run, delta)
    event, relation = event_of(run)
    if earlier is not None:
        event = library().ComposedDpEvent([earlier, event])
    if any(x.noise_multiplier == 0.0 for x in run.mechanisms):
        return math.inf
    made = _accountant(accountant, relation)
    if not made.supports(event):
        raise ValueError(
            f"accountant={accountant!r} does not know {run.sampler} with "
            f"neighbors={run.neighbors!r}. "
            + (
                "cohorts of a fixed size go with neighbors='replace_one' or 'zero_out' "
                "and accountant='rdp'."
                if run.sampler.size is not None
                else "accountant='pld' does."
            )
        )
    moved = _distance(run)
    if accountant == "pld" and earlier is None and moved > _FARTHEST:
        # By proposition 1.3 of Bun and Steinke 2016, and as if nobody were sampled: a
        # distribution of losses of thousands takes minutes and gigabytes.
        return moved * moved / 2.0 + moved * math.sqrt(-2.0 * math.log(delta))
    return float(made.compose(event).get_epsilon(delta))


def _distance(run: Run) -> float:
    """How far a client moves all that is released, in units of the noise."""
    times = run.sampler.participations(run.rounds)
    pattern = run.rounds, run.sampler.separation, times
    moved = math.hypot(*(_moved(x, pattern) for x in run.mechanisms))
    return moved * _DISTANCES[run.neighbors]


def event_of(run: Run) -> tuple[Any, Any]:
    """The run as an event, and the neighboring relation that it is an event of.

    Gaussian noise of several parts of a round amounts to one, of the norm of what is
    moved in units of the noise. Where rounds in which a client may be have orthogonal
    columns, each costs what one does alone, and each may be sampled.

    dp-accounting's events have noise in units of the clip. Where its accountants do not
    double the distance for `replace_one` themselves, noise is halved here.

    Raises:
        ValueError: if nothing is proven of these mechanisms with such a sampler.

    Reference: Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A
        Unified Approach to Private Training", 2023, theorems 2 and 4.
    """
    if any(x.curve is not None for x in run.mechanisms):
        raise ValueError(
            "integers for noise are accounted by a Rényi curve, of which dp-accounting "
            "has no event."
        )
    dp, sampler = library(), run.sampler
    relations = dp.NeighboringRelation
    relation = relations.ADD_OR_REMOVE_ONE
    _check_neighbors(run)
    times = sampler.participations(run.rounds)
    bands = max((x.bands for x in run.mechanisms), default=1)
    is_sampled = sampler.rate < 1.0
    apart = bands <= sampler.separation
    if is_sampled and not apart:
        raise ValueError(_unproven(run, bands))
    alone = (run.rounds, run.rounds, 1)
    pattern = alone if apart else (run.rounds, sampler.separation, times)
    moved = math.hypot(*(_moved(x, pattern) for x in run.mechanisms))
    if moved == 0.0:
        return dp.NoOpDpEvent(), relation
    multiplier, distance = 1.0 / moved, _DISTANCES[run.neighbors]
    event = dp.GaussianDpEvent(multiplier / distance)
    if is_sampled and sampler.size is not None:
        relation = relations.REPLACE_ONE
        # The accountant reads the quotient of the two sizes only.
        event = dp.SampledWithoutReplacementDpEvent(1, sampler.rate, event)
    elif is_sampled:
        if run.neighbors == "replace_one":
            relation = relations.REPLACE_ONE
            event = dp.GaussianDpEvent(multiplier)
        event = dp.PoissonSampledDpEvent(sampler.rate, event)
    return (dp.SelfComposedDpEvent(event, times) if apart else event), relation


def _moved(mechanism: Mechanism, pattern: tuple[int, int, int]) -> float:
    """How far a client moves what is noised, in units of the noise."""
    if mechanism.noise_multiplier == 0.0:
        return math.inf
    return mechanism.sensitivity(*pattern) / mechanism.noise_multiplier


def _check_neighbors(run: Run) -> None:
    if run.neighbors == "add_or_remove" and not run.sampler.by_client:
        raise ValueError(
            f"neighbors='add_or_remove' does not go with {run.sampler}: who else is in "
            "a cohort depends on whether a client is there. Take neighbors='zero_out' "
            "or 'replace_one', or poisson or cyclic for a sampler."
        )


def _unproven(run: Run, bands: float) -> str:
    """Why a sampled run is refused, and what to take."""
    names = ", ".join(map(repr, run.mechanisms))
    if bands == math.inf:
        return (
            f"{names} is correlated over rounds, and {run.sampler} draws clients at "
            "random: nothing is proven of both together. Account without the draw, "
            "participation=cyclic(period) or separated(...), or take noise that is "
            "drawn anew in each round."
        )
    return (
        f"{names} is correlated over {bands} rounds, and {run.sampler} lets a client "
        f"come again after {run.sampler.separation}. Take participation="
        f"cyclic({bands}, rate) or of a longer period, or fewer bands."
    )


def _spent_on_curves(run: Run, delta: float) -> float:
    _check_neighbors(run)
    if any(x.bands > 1 for x in run.mechanisms):
        raise ValueError(
            "noise that is correlated over rounds is not composed with a curve of "
            "integers."
        )
    rate, distance = run.sampler.rate, _DISTANCES[run.neighbors]
    if rate < 1.0 and (run.neighbors == "replace_one" or run.sampler.size is not None):
        raise ValueError(
            "a curve of a sampled round goes with neighbors='add_or_remove' or "
            f"'zero_out' and clients drawn each by itself; got {run.sampler} and "
            f"neighbors={run.neighbors!r}."
        )
    square = sum(_moved(x, (run.rounds, run.rounds, 1)) ** 2 for x in run.mechanisms)

    def curve(order: int, distance: float) -> float:
        gaussian = order * distance**2 * square / 2.0
        return gaussian + sum(x(order, distance) for x in run.curves)

    times = run.sampler.participations(run.rounds)
    losses = [times * _sampled(curve, order, distance, rate) for order in _ORDERS]
    found, _ = library().rdp.compute_epsilon(np.array(_ORDERS), losses, delta)
    return float(found)


def _sampled(curve: RenyiCurve, order: int, distance: float, rate: float) -> float:
    """The curve's divergence where each client is in a round by chance."""
    if rate == 1.0:
        return curve(order, distance)
    terms = [
        (order - 1) * math.log1p(-rate) + math.log1p((order - 1) * rate),
        *(
            math.log(1.0 if k == 2 else 3.0)
            + math.log(math.comb(order, k))
            + (order - k) * math.log1p(-rate)
            + k * math.log(rate)
            + (k - 1) * curve(k, distance)
            for k in range(2, order + 1)
        ),
    ]
    return max(0.0, float(np.logaddexp.reduce(terms))) / (order - 1)


def _accountant(kind: str, relation: Any) -> Any:
    dp = library()
    made = dp.pld.PLDAccountant if kind == "pld" else dp.rdp.RdpAccountant
    return made(neighboring_relation=relation)


def library() -> Any:
    """dp-accounting.

    Raises:
        ImportError: if it is not there.
    """
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise ImportError(
            "epsilon needs dp-accounting: pip install 'fedagg[privacy]'."
        ) from error
    return dp_accounting
