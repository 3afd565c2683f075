"""Which stages may come after which, by what they declare of themselves."""

from collections.abc import Iterable, Sequence
from typing import Any

from fedagg._sentence import prints_as_its_call
from fedagg._trees.kinds import check_kind
from fedagg._types import Stage, Traits


@prints_as_its_call
def without_guarantee(stage: Stage) -> Stage:
    """The same stage, for a round that is to have no guarantee of privacy.

    In a round with a private stage, as `gaussian_noise`, what is learnt or reported of
    clients without noise is refused: a bound that follows it decides which clients are
    in later sums, and no epsilon is finite. This says that it is meant. Then metrics of
    the clients' work come out as well, and `guarantee` refuses the round.

    `aggregator(without_guarantee(zeroing(bound)), noise)` noises what `noise` does, and
    promises nothing.

    Args:
        stage: one that tells of clients, or any other.

    Raises:
        TypeError: if it is no stage.

    Reference: Dwork and Roth, "The Algorithmic Foundations of Differential Privacy",
        2014, section 2.3.
    """
    check_kind(Stage, stage=stage)
    return stage._replace(traits=stage.traits._replace(without_guarantee=True))


def check_order(stages: Sequence[Any]) -> None:
    """Checks stages that are to make a chain.

    Raises:
        TypeError: if one of them is no stage.
        ValueError: if one comes where it would give a wrong number, or no guarantee.
    """
    for position, stage in enumerate(stages):
        check_kind(Stage, **{f"stages[{position}]": stage})
    named = [x.traits.name or f"stages[{i}]" for i, x in enumerate(stages)]
    for i, stage in enumerate(stages):
        for j, before in enumerate(stages[:i]):
            _check_pair(before.traits, stage.traits, named[j], named[i])
    _check_guarantee([x.traits for x in stages], named)


def _check_guarantee(traits: list[Traits], named: list[str]) -> None:
    """Raises a ValueError if something is told beside a private stage."""
    if any(x.without_guarantee for x in traits):
        return
    together = list(zip(traits, named, strict=True))
    private = [name for x, name in together if x.is_private]
    telling = [name for x, name in together if x.tells]
    if private and telling:
        raise ValueError(refusal(telling[0], private[0]))


def refusal(telling: str, private: str) -> str:
    """Why there is no guarantee, and what to do."""
    return (
        f"{telling} tells of clients' values what no noise hides, and with it "
        f"{private} has no finite epsilon. zeroing and clipping tell nothing with "
        "counted=False and a bound that is a number, or a quantile_bound with "
        "below_estimate_stddev. without_guarantee(stage) says that none is meant."
    )


def _check_pair(one: Traits, other: Traits, before: str, after: str) -> None:
    if (one.divides and other.is_private) or (one.is_private and other.divides):
        divides, private = (before, after) if one.divides else (after, before)
        raise ValueError(
            f"{after} comes after {before}, and {divides} divides by the clients' own "
            f"weights, which no noise hides. Leave it out: {private} divides by a "
            "public number."
        )
    if (one.codes and other.is_private) or (one.is_private and other.codes):
        raise ValueError(
            f"{after} comes after {before}, and they do not go together, in either "
            "order: noise is for a sum of clipped values, and codes are neither "
            "clipped nor a sum. For few bits and a guarantee: "
            "distributed_dp_aggregator(..., bits=...)."
        )
    if not other.only_reads:
        undeclared = (
            f"{after} comes after {before} and does not declare that "
            "it only reads, Traits(only_reads=True):"
        )
        if one.is_private:
            raise ValueError(
                f"{undeclared} what is clipped for the noise on its sum must reach the "
                f"sum as it is. Put {after} before {before}."
            )
        if one.codes:
            raise ValueError(
                f"{undeclared} it would work on codes. Put {after} before {before}."
            )
        if one.is_secret:
            raise ValueError(
                f"{undeclared} it would work on integers that wrap around. Put it "
                f"inside {before}."
            )
    if one.weighs and other.is_bound:
        raise ValueError(
            f"{after} comes after {before}, and would bound value "
            f"times weight. Put {after} before {before}."
        )


def position_of_noise(stages: Sequence[Stage]) -> int:
    """That of the private stage, after which sums have no noise; the end without."""
    if any(stage.traits.without_guarantee for stage in stages):
        return len(stages)
    private = (i for i, stage in enumerate(stages) if stage.traits.is_private)
    return next(private, len(stages))


def traits_of_chain(stages: Sequence[Stage]) -> Traits:
    """The traits of stages in sequence, as of one stage."""
    all_traits = [stage.traits for stage in stages]
    return Traits(
        name=f"chain({', '.join(x.name or 'a stage' for x in all_traits)})",
        only_reads=all(x.only_reads for x in all_traits),
        codes=any(x.codes for x in all_traits),
        transforms=any(x.transforms for x in all_traits),
        is_secret=any(x.is_secret for x in all_traits),
        is_private=any(x.is_private for x in all_traits),
        wraps=any(x.wraps for x in all_traits),
        is_bound=any(x.is_bound for x in all_traits),
        weighs=any(x.weighs for x in all_traits),
        divides=any(x.divides for x in all_traits),
        tells=any(x.tells for x in all_traits),
        without_guarantee=any(x.without_guarantee for x in all_traits),
        has_sizes=any(x.has_sizes for x in all_traits),
        counts=sum((x.counts for x in all_traits), ()),
        weight=next((x.weight for x in all_traits if x.weight), ""),
        mechanisms=sum((x.mechanisms for x in all_traits), ()),
        smallest_cohort=max(
            _given(x.smallest_cohort for x in all_traits), default=None
        ),
        largest_cohort=min(_given(x.largest_cohort for x in all_traits), default=None),
    )


def _given(numbers: Iterable[int | None]) -> list[int]:
    return [x for x in numbers if x is not None]
