"""Bounding what one client can do to the sum.

`zeroing(10.0)` removes a client whose largest entry is above ten, or a NaN; after it,
`clipping(1.0)` scales the others down to a norm of one.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._bounding.bounds import as_bound
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree
from fedagg._types import Bound, Output, PyTree, Stage, Traits, Update


class BoundingNote(NamedTuple):
    """What a client adds to its message. Summed over the present clients."""

    count: jax.Array  # [] one if the client was above the bound
    bound: PyTree  # what the bound learns from


@prints_as_its_call
def zeroing(
    bound: Bound | float,
    *,
    norm_order: float = math.inf,
    keep_weight: bool = True,
    name: str = "zeroing",
) -> Stage:
    """Sets the value of a client to zero where its norm is above `bound`.

    | a norm | |
    | --- | --- |
    | equal to the bound | is kept |
    | NaN or infinite | is above every bound; TensorFlow Federated lets NaN through |

    So stages after this one see finite values only. The client keeps its weight in a
    mean, and has a norm of zero for a `clipping` after this, unless `keep_weight` is
    False: then it is absent from here on.

    Reports `{name}/bound` `[]`, this round's bound, and `{name}/count` `[]`, the number
    of clients set to zero.

    Args:
        bound: the largest norm to keep, over all leaves of a value together. Positive.
        norm_order: 1, 2 or infinity.
        keep_weight: whether the client still counts.
        name: what the metrics are filed under.

    Raises:
        ValueError: if `bound` is a number and not positive, or `norm_order` is another.
        TypeError: in `client`, for a leaf that is not of a float dtype.

    Reference: TensorFlow Federated, `tff.aggregators.zeroing_factory`.
    """
    bound = as_bound(bound)
    if norm_order not in (1.0, 2.0, math.inf):
        raise ValueError(f"norm_order must be 1, 2 or infinity, got {norm_order=}.")

    def client(shared: PyTree, update: Update, key: jax.Array | None):
        del key
        checks.check_floating(update.value, name)
        limit, norm = bound.value(shared), pytree.norm(update.value, norm_order)
        kept = (norm <= limit) & (norm < jnp.inf)
        weight = update.weight if keep_weight else jnp.where(kept, update.weight, 0.0)
        note = BoundingNote((~kept).astype(jnp.float32), bound.note(shared, norm))
        return Update(pytree.keep(kept, update.value), weight), note

    return _bounding(bound, client, name, refused=lambda note: note.count > 0.0)


@prints_as_its_call
def clipping(bound: Bound | float, *, name: str = "clipping") -> Stage:
    """Scales each client's value down to an L2 norm of at most `bound`.

    One client then moves the sum by at most `bound`, before any weighting.

    | a value | |
    | --- | --- |
    | within the bound | stays as it is to the bit |
    | with a NaN or an infinity | stays unbounded: put `zeroing` before this |
    | whose norm overflows, 1.8e19 in float32 | is scaled to zero |

    Reports `{name}/bound` `[]`, this round's bound, and `{name}/count` `[]`, the number
    of clients scaled down.

    Args:
        bound: the largest norm, over all leaves of a value together. Positive.
        name: what the metrics are filed under.

    Raises:
        ValueError: if `bound` is a number and not positive.
        TypeError: in `client`, for a leaf that is not of a float dtype.

    Reference: Andrew et al., "Differentially Private Learning with Adaptive Clipping",
        2021, section 2.
    """
    bound = as_bound(bound)

    def client(shared: PyTree, update: Update, key: jax.Array | None):
        del key
        checks.check_floating(update.value, name)
        limit, norm = bound.value(shared), pytree.norm(update.value)
        is_within = norm <= limit
        # Divided only where it counts: the norm may be zero, and the quotient's
        # derivative infinite.
        factor = jnp.where(is_within, 1.0, limit / jnp.where(is_within, 1.0, norm))
        value = pytree.scale(factor, update.value)
        note = BoundingNote(
            (norm > limit).astype(jnp.float32), bound.note(shared, norm)
        )
        return update._replace(value=value), note

    return _bounding(bound, client, name)


def _bounding(
    bound: Bound,
    client: Callable,
    name: str,
    refused: Callable[[BoundingNote], jax.Array] | None = None,
) -> Stage:
    """The sum as it is; the bound used and the clients above it as metrics."""

    def server(state: PyTree, total: PyTree, note: BoundingNote, key: jax.Array | None):
        limit = bound.value(bound.broadcast(state))
        metrics = {f"{name}/bound": limit, f"{name}/count": note.count}
        return Output(bound.update(state, note.bound, key), total, metrics)

    traits = Traits(name, is_bound=True, refused=refused)
    return Stage(lambda template: bound.init(), bound.broadcast, client, server, traits)
