"""The bounds that recommended compositions begin with."""

import math

from fedagg._bounding.bounding import clipping as clipping_stage
from fedagg._bounding.bounding import zeroing as zeroing_stage
from fedagg._bounding.bounds import quantile_bound
from fedagg._trees.kinds import described
from fedagg._types import Bound, Stage

# Whether to bound, by the default bound; or the bound.
Choice = bool | float | Bound


def recommended_bounding(
    zeroing: Choice, clipping: Choice, *, counted: bool = True
) -> list[Stage]:
    """TensorFlow Federated's zeroing and clipping, or those by other bounds."""
    largest = quantile_bound(10.0, 0.98, math.log(10.0), multiplier=2.0, increment=1.0)
    norms = quantile_bound(1.0, 0.8, 0.2)
    chosen = _chosen("zeroing", zeroing, largest), _chosen("clipping", clipping, norms)
    stages = zip(chosen, (zeroing_stage, clipping_stage), strict=True)
    return [stage(x, counted=counted) for x, stage in stages if x is not None]


def _chosen(argument: str, choice: Choice, default: Bound) -> Bound | float | None:
    """The bound that an argument asks for: True the default, False none."""
    if isinstance(choice, bool):
        return default if choice else None
    if isinstance(choice, (int, float, Bound)):
        return choice
    raise TypeError(
        f"{argument}: expected True, False, a number or a Bound, as quantile_bound(...)"
        f" returns it, got {described(choice)}. Without it: {argument}=False."
    )
