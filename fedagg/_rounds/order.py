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
    for position, stage in enumerate(stages):
        for before in stages[:position]:
            _check_pair(before, stage)


def _check_pair(before: Stage, after: Stage) -> None:
    one, other = before.traits, after.traits
    if not other.only_reads:
        undeclared = (
            f"{_named(after)} comes after {_named(before)} and does not declare that "
            "it only reads, Traits(only_reads=True):"
        )
        if one.is_private:
            raise ValueError(
                f"{undeclared} what is clipped for the noise on its sum must reach the "
                f"sum as it is. Put {_named(after)} before {_named(before)}."
            )
        if one.codes:
            raise ValueError(
                f"{undeclared} it would work on codes. Put {_named(after)} before "
                f"{_named(before)}."
            )
        if one.is_secret:
            raise ValueError(
                f"{undeclared} it would work on integers that wrap around. Put it "
                f"inside {_named(before)}."
            )
    if one.weighs and other.is_bound:
        raise ValueError(
            f"{_named(after)} comes after {_named(before)}, and would bound value "
            f"times weight. Put {_named(after)} before {_named(before)}."
        )
    if (one.divides and other.is_private) or (one.is_private and other.divides):
        divides, private = (one, other) if one.divides else (other, one)
        raise ValueError(
            f"{divides.name or 'a stage'} divides by the clients' own weights, which "
            f"no noise hides. Leave it out: {private.name or 'a private stage'} "
            "divides by a public number."
        )


def traits_of_chain(stages: Sequence[Stage]) -> Traits:
    """What is known of stages in sequence."""
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
    )


def _named(stage: Stage) -> str:
    return stage.traits.name or f"a stage of your own ({stage})"
