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
from fedagg._messages.marks import Noised
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree
from fedagg._trees.kinds import described
from fedagg._types import Bound, Output, PyTree, Stage, Traits, Update


class BoundingNote(NamedTuple):
    """What a client adds to its message. Summed over the present clients."""

    count: PyTree  # [] one if the client was above the bound; () if nobody counts
    bound: PyTree  # what the bound learns from, marked if that is noised


@prints_as_its_call
def zeroing(
    bound: Bound | float,
    *,
    norm_order: float = math.inf,
    keep_weight: bool = True,
    counted: bool = True,
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

    No noise hides that number, or what a bound learns without noise. Before a private
    stage, `gaussian_noise` say, give `counted=False`, and a bound that is a number or
    learns with noise, which `guarantee` then composes:

    | guarantee | of a noised bound and `counted=False` |
    | --- | --- |
    | protected | a client, with the bit that the bound learns of it in each round |
    | relation | that of the private stage after it |
    | against | all who see what comes out; not the server, which sees sums |
    | sampling | that of the private stage after it |
    | outside | the value itself, which the private stage noises; a key that is known |

    Args:
        bound: the largest norm to keep, over all leaves of a value together. Positive.
        norm_order: 1, 2 or infinity.
        keep_weight: whether the client still counts.
        counted: whether clients report that they were set to zero. With a memory, a
            client who does not keeps what its work returned.
        name: what the metrics are filed under.

    Raises:
        ValueError: if `bound` is a number and not positive, or `norm_order` is another.
        TypeError: in `client`, for a leaf that is not of a float dtype.

    Reference: TensorFlow Federated, `tff.aggregators.zeroing_factory`.
    """
    bound = as_bound(bound)
    is_number = isinstance(norm_order, (int, float))
    if not is_number or norm_order not in (1.0, 2.0, math.inf):
        raise ValueError(
            "norm_order must be 1, 2 or math.inf, got "
            f"norm_order={described(norm_order)}."
        )

    def client(shared: PyTree, update: Update, key: jax.Array | None):
        del key
        checks.check_floating(update.value, name)
        limit, norm = bound.value(shared), pytree.norm(update.value, norm_order)
        kept = (norm <= limit) & (norm < jnp.inf)
        weight = update.weight if keep_weight else jnp.where(kept, update.weight, 0.0)
        note = _note(~kept if counted else None, bound, shared, norm)
        return Update(pytree.keep(kept, update.value), weight), note

    refused = (lambda note: note.count > 0.0) if counted else None
    return _bounding(bound, client, name, counted, refused)


@prints_as_its_call
def clipping(
    bound: Bound | float, *, counted: bool = True, name: str = "clipping"
) -> Stage:
    """Scales each client's value down to an L2 norm of at most `bound`.

    One client then moves the sum by at most `bound`, before any weighting.

    | a value | |
    | --- | --- |
    | within the bound | stays as it is to the bit |
    | with a NaN or an infinity | stays unbounded: put `zeroing` before this |
    | whose norm overflows, 1.8e19 in float32 | is scaled to zero |

    Reports `{name}/bound` `[]`, this round's bound, and `{name}/count` `[]`, the number
    of clients scaled down. As in `zeroing`, no noise hides what clients report; before
    a private stage:

    | guarantee | of a noised bound and `counted=False` |
    | --- | --- |
    | protected | a client, with the bit that the bound learns of it in each round |
    | relation | that of the private stage after it |
    | against | all who see what comes out; not the server, which sees sums |
    | sampling | that of the private stage after it |
    | outside | the value itself, which the private stage noises; a key that is known |

    Args:
        bound: the largest norm, over all leaves of a value together. Positive.
        counted: whether clients report that they were scaled down.
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
        note = _note(norm > limit if counted else None, bound, shared, norm)
        return update._replace(value=value), note

    return _bounding(bound, client, name, counted)


def _note(
    is_above: jax.Array | None, bound: Bound, shared: PyTree, norm: jax.Array
) -> BoundingNote:
    count = () if is_above is None else is_above.astype(jnp.float32)
    learnt = bound.note(shared, norm)
    return BoundingNote(count, learnt if bound.mechanism is None else Noised(learnt))


def _bounding(
    bound: Bound,
    client: Callable,
    name: str,
    counted: bool,
    refused: Callable[[BoundingNote], jax.Array] | None = None,
) -> Stage:
    """The sum as it is; the bound used and the clients above it as metrics."""
    mechanism = bound.mechanism

    def server(state: PyTree, total: PyTree, note: BoundingNote, key: jax.Array | None):
        metrics = {f"{name}/bound": bound.value(bound.broadcast(state))}
        if counted:
            metrics[f"{name}/count"] = note.count
        learnt = note.bound if mechanism is None else note.bound.value
        return Output(bound.update(state, learnt, key), total, metrics)

    traits = Traits(
        name,
        is_bound=True,
        tells=counted or bound.tells,
        counts=(f"{name}/count",) if counted else (),
        mechanisms=() if mechanism is None else (mechanism,),
        refused=refused,
    )
    return Stage(lambda template: bound.init(), bound.broadcast, client, server, traits)
