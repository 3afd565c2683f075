"""Bounds on a client's statistic: fixed, or learnt as a quantile over clients.

`quantile_bound(1.0, 0.8, 0.2)`, as a bound for `clipping`, follows the 0.8 quantile of
the clients' norms, from 1 on; a number is a bound that never moves.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._noise.sum_grid import ROUNDED, SumGrid, draw_error, integer_noise
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks
from fedagg._trees.keys import key_of_round
from fedagg._trees.kinds import described
from fedagg._types import Bound, PyTree

# A geometric estimate stays in this range, from where it can always come back: neither
# zero nor infinity would ever move again.
_SMALLEST, _LARGEST = 1e-30, 1e30


class NoisedEstimate(NamedTuple):
    """State of a quantile that is learnt with noise."""

    estimate: jax.Array  # []
    rounds: jax.Array  # [] uint32, so far


class QuantileNote(NamedTuple):
    """What a client reports. Summed over the present clients."""

    below: jax.Array  # [] one half if at most the estimate, else minus one half
    count: jax.Array | None  # [] one, or None where the number of clients is not asked


def as_bound(bound: Bound | float) -> Bound:
    """A number as a bound that never moves; a `Bound` as it is.

    Raises:
        TypeError: if it is neither.
        ValueError: if it is a number and not positive.
    """
    if isinstance(bound, Bound):
        return bound
    try:
        checks.check_above_zero(bound=bound)
    except TypeError:
        raise TypeError(
            "bound must be a positive number or a Bound, as quantile_bound(...) returns"
            f" it, got bound={described(bound)}."
        ) from None
    limit = float(bound)
    return Bound(
        init=lambda: (),
        broadcast=lambda state: state,
        value=lambda shared: jnp.float32(limit),
        note=lambda shared, x: (),
        update=lambda state, note, key: state,
        sentence=repr(bound),
        sensitivity=0.0,
        update_noised=lambda state, note: state,
    )


@prints_as_its_call
def quantile_bound(
    initial_estimate: float,
    target_quantile: float,
    learning_rate: float,
    *,
    multiplier: float = 1.0,
    increment: float = 0.0,
    below_estimate_stddev: float = 0.0,
    expected_num_clients: float | None = None,
    geometric_update: bool = True,
) -> Bound:
    """Learns a quantile of a client statistic, one bit per client and round.

    Each client reports whether its statistic is at most the estimate `C`; NaN is not.
    With `p` the fraction that is, the estimate moves to `C * exp(-rate * (p - q))`, or
    to `C - rate * (p - q)` without `geometric_update`. The bound in use is
    `multiplier * C + increment`, and not below zero; clients compare with `C` itself.

    | | clients are counted | `expected_num_clients` is given |
    | --- | --- | --- |
    | `p` is over | the clients present | that public number, as privacy asks for |
    | no clients | the estimate stays | `p = 1/2` |
    | more clients than expected | | `p` is within [0, 1] |
    | `C`, geometric | within 1e-30 and 1e30 | the same |

    (TensorFlow Federated's estimate becomes NaN in a round without clients, and stays
    so.) Without `below_estimate_stddev` the estimate is a function of the clients' data
    with no noise in it, hence not private, and neither is anything that it acts on.
    With it, and `expected_num_clients`, the bound is a clip for `gaussian_noise`, which
    draws the noise on the count itself; and for a `zeroing` before that, which costs
    what its `mechanism` says: each round one `gaussian(2 * below_estimate_stddev)`. The
    key is to be secret, as in `gaussian_noise`; each round draws from one of its own.
    Noise is the discrete Gaussian on a grid of integers, as there, and the count is
    exact up to 2**23 clients.

    | guarantee | with `below_estimate_stddev` and `expected_num_clients` |
    | --- | --- |
    | protected | a client, with the bit that it reports in each round |
    | relation | that of the private stage that it is in, or before |
    | against | all who see what comes out; not the server, which sees sums |
    | sampling | that of the private stage that it is in, or before |
    | outside | the value itself, which the private stage noises; a key that is known |

    Args:
        initial_estimate: the first `C`. Positive.
        target_quantile: `q`, the fraction of clients to have at most `C`, in [0, 1].
        learning_rate: the rate above. Positive.
        multiplier: factor between `C` and the bound in use. Positive.
        increment: added to it. Not negative.
        below_estimate_stddev: standard deviation of Gaussian noise on the sum of the
            bits, each plus or minus one half. Needs `expected_num_clients`, and a key
            in `next`.
        expected_num_clients: a public denominator in place of the number of clients,
            the `clients_per_round` of private stages.
        geometric_update: whether steps are factors, as norms want, or differences.

    Raises:
        ValueError: if an argument is out of range; in `next`, if there is noise to draw
            and no key.

    Reference: Andrew et al., "Differentially Private Learning with Adaptive Clipping",
        2021, section 2.
    """
    checks.check_positive(initial_estimate=initial_estimate)
    checks.check_within("[0, 1]", target_quantile=target_quantile)
    checks.check_positive(learning_rate=learning_rate, multiplier=multiplier)
    checks.check_not_negative(
        increment=increment, below_estimate_stddev=below_estimate_stddev
    )
    is_counted = expected_num_clients is None
    if not is_counted:
        checks.check_positive(expected_num_clients=expected_num_clients)
    is_noised = below_estimate_stddev > 0.0
    if is_noised and is_counted:
        raise ValueError(
            "below_estimate_stddev needs expected_num_clients: noise hides a client "
            "only if the denominator does not depend on the clients either."
        )

    # A client moves the sum by one of these clips, a half. Noise of a little more than
    # was asked for rounds Gaussian noise of just that, see `accounted`.
    grid = SumGrid.of(2.0 * below_estimate_stddev, expected_num_clients or 1.0)
    deviation = math.sqrt(grid.deviation**2 + ROUNDED**2)
    most = 2.0**30 / grid.steps

    def value(estimate: jax.Array) -> jax.Array:
        return jnp.maximum(multiplier * estimate + increment, 0.0)

    def note(estimate: jax.Array, x: jax.Array) -> QuantileNote:
        # Centred, a client moves the sum by one half at most, and 0/0 cannot arise.
        below = jnp.where(x <= estimate, jnp.float32(0.5), jnp.float32(-0.5))
        return QuantileNote(below, jnp.float32(1.0) if is_counted else None)

    def noised_halves(below: jax.Array, key: jax.Array) -> jax.Array:
        # A sum of halves is exact in float32 up to 2**23 clients.
        halves = jnp.clip(2.0 * below, -most, most) * grid.steps
        whole = jnp.round(halves).astype(jnp.int32)
        both = whole + integer_noise(deviation, key, whole)
        return both.astype(jnp.float32) / (2.0 * grid.steps)

    def update(state: PyTree, note: QuantileNote, key: jax.Array | None):
        if is_noised:
            key = checks.check_key(key, "quantile_bound", "noise")
            key = key_of_round(key, state.rounds)
            note = note._replace(below=noised_halves(note.below, key))
        return update_noised(state, note)

    def update_noised(state: PyTree, note: QuantileNote) -> PyTree:
        if not is_noised:
            return moved(state, note)
        return NoisedEstimate(moved(state.estimate, note), state.rounds + 1)

    def moved(estimate: jax.Array, note: QuantileNote) -> jax.Array:
        if note.count is None:
            count = jnp.float32(expected_num_clients)
        else:
            # Without clients the quotient is zero, and the estimate stays.
            count = jnp.maximum(note.count, 1.0)
        fraction = jnp.clip(note.below / count + 0.5, 0.0, 1.0)
        step = learning_rate * (fraction - target_quantile)
        if geometric_update:
            new = jnp.clip(estimate * jnp.exp(-step), _SMALLEST, _LARGEST)
        else:
            new = estimate - step
        return new if note.count is None else jnp.where(note.count > 0.0, new, estimate)

    def init() -> PyTree:
        first = jnp.float32(initial_estimate)
        return NoisedEstimate(first, jnp.uint32(0)) if is_noised else first

    return Bound(
        init=init,
        broadcast=lambda state: state.estimate if is_noised else state,
        value=value,
        note=note,
        update=update,
        # Where clients are counted, nobody noises their number.
        sensitivity=math.inf if is_counted else 0.5,
        stddev=below_estimate_stddev,
        update_noised=update_noised,
        draw_error=draw_error(deviation) if is_noised else None,
    )
