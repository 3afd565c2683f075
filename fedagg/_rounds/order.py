"""Which stages may come after which, by what they declare of themselves."""

from collections.abc import Sequence
from typing import Any

from fedagg._types import Stage, Traits


def check_order(stages: Sequence[Any]) -> None:
    """Checks stages that are to make a chain.

    Raises:
        TypeError: if one of them is no stage.
        ValueError: if one comes where it would give a wrong number, or no guarantee.
    """
    for position, stage in enumerate(stages):
        if not isinstance(stage, Stage):
            raise TypeError(
                f"stages: expected a Stage at position {position}, got {stage!r}."
            )
    named = [x.traits.name or f"stages[{i}]" for i, x in enumerate(stages)]
    for i, stage in enumerate(stages):
        for j, before in enumerate(stages[:i]):
            _check_pair(before.traits, stage.traits, named[j], named[i])


def _check_pair(one: Traits, other: Traits, before: str, after: str) -> None:
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
    if (one.divides and other.is_private) or (one.is_private and other.divides):
        divides, private = (before, after) if one.divides else (after, before)
        raise ValueError(
            f"{divides} divides by the clients' own weights, which no noise hides. "
            f"Leave it out: {private} divides by a public number."
        )


def traits_of_chain(stages: Sequence[Stage]) -> Traits:
    """The traits of stages in sequence, as of one stage."""
    all_traits = [stage.traits for stage in stages]
    return Traits(
        name=f"chain({', '.join(x.name or 'a stage' for x in all_traits)})",
        only_reads=all(x.only_reads for x in all_traits),
        codes=any(x.codes for x in all_traits),
        is_secret=any(x.is_secret for x in all_traits),
        is_private=any(x.is_private for x in all_traits),
        is_bound=any(x.is_bound for x in all_traits),
        weighs=any(x.weighs for x in all_traits),
        divides=any(x.divides for x in all_traits),
        mechanisms=sum((x.mechanisms for x in all_traits), ()),
    )
