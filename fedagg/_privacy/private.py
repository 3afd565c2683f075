"""What private stages share: the clip, the split of the noise, and the metrics."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from fedagg._bounding.bounds import quantile_bound
from fedagg._noise.sum_grid import LEAST_CLIP, SumGrid
from fedagg._trees import checks, pytree
from fedagg._trees.template import Template
from fedagg._trees.weights import is_present
from fedagg._types import Bound, PyTree, Update


def clipped(
    update: Update,
    limit: jax.Array,
    grid: SumGrid,
    largest_weight: float | None,
    name: str,
    spare: float = 0.0,
) -> tuple[Update, jax.Array]:
    """The update as integers within a norm of `limit`, and the norm `[]` it had.

    Within that less the steps to spare.

    A value whose norm is NaN or infinite becomes zero. Where there is a largest weight,
    the value is multiplied by the client's share of it; a client's weight is one from
    here on.
    """
    checks.check_floating(update.value, name)
    norm = pytree.norm(update.value)
    most = grid.largest_norm(update.value, name, spare)
    is_within = norm <= limit * most
    factor = jnp.where(is_within, grid.steps / limit, grid.steps * most / norm)
    if largest_weight is not None:
        factor *= jnp.minimum(update.weight, largest_weight) / largest_weight
    # Nothing scales an infinite norm down, so that the client counts as zero.
    value = grid.integers(pytree.keep(norm < jnp.inf, update.value), factor)
    weight = jnp.where(is_present(update.weight), jnp.float32(1.0), 0.0)
    return Update(value, weight), norm


def check_clip(**numbers: Any) -> None:
    """Raises an error for what is no clip: a positive number, and not too small.

    Squares of smaller norms leave the range of float32.
    """
    check_positive(**numbers)
    for argument, number in numbers.items():
        if number < LEAST_CLIP:
            raise ValueError(
                f"{argument} must be {LEAST_CLIP:g} or more, got {number!r}: squares "
                "of smaller norms leave the range of float32. Scale values up."
            )


def metrics_of(
    name: str,
    clip: jax.Array | float,
    stddev: jax.Array | float | None,
    value: PyTree,
) -> dict[str, jax.Array]:
    """The metrics of a private stage: functions of what it releases, and of no more.

    The signal's size is estimated as that of the noised value less what noise of this
    deviation adds to it on average, and reported in units of the latter.
    """
    norm = pytree.norm(value)
    metrics = {f"{name}/clip": jnp.float32(clip), f"{name}/noised_norm": norm}
    if stddev is None:
        return metrics
    stddev = jnp.float32(stddev)
    expected = stddev * math.sqrt(max(1, Template.of(value).size))
    # Without noise the ratio is infinite, or zero where there is no signal either.
    ratio = jnp.where(norm > 0.0, norm / expected, 0.0)
    signal = jnp.sqrt(jnp.maximum(jnp.square(ratio) - 1.0, 0.0))
    return metrics | {f"{name}/stddev": stddev, f"{name}/signal_to_noise": signal}


def check_multiplier(noise_multiplier: float) -> None:
    """Raises an error for what is no size of noise."""
    checks.check_not_negative(noise_multiplier=noise_multiplier)


def check_positive(**numbers: Any) -> None:
    """Raises an error that names the first argument that is no positive number."""
    for argument, number in numbers.items():
        if isinstance(number, Bound):
            raise TypeError(
                f"{argument} must be a number: a Bound learns from the clients, and "
                "takes its part of the noise. See adaptive_gaussian_noise."
            )
    checks.check_positive(**numbers)


def check_largest_weight(largest_weight: float | None) -> None:
    """Raises an error for what is neither None nor a positive number."""
    if largest_weight is not None:
        check_positive(largest_weight=largest_weight)


def learnt_clip(
    noise_multiplier: float,
    clients_per_round: float,
    initial_clip: float,
    target_quantile: float,
    learning_rate: float,
    count_stddev: float | None,
) -> Bound:
    """A clip that follows a quantile of norms, from a count with its part of the noise.

    Raises:
        ValueError: if an argument is out of range, or the count's noise alone is below
            the total.
    """
    check_positive(initial_clip=initial_clip, clients_per_round=clients_per_round)
    _, stddev = split_noise(noise_multiplier, clients_per_round, count_stddev)
    checks.check_not_negative(count_stddev=stddev)
    return quantile_bound(
        initial_clip,
        target_quantile,
        learning_rate,
        below_estimate_stddev=stddev,
        expected_num_clients=clients_per_round,
    )


def split_noise(
    noise_multiplier: float, clients_per_round: float, count_stddev: float | None
) -> tuple[float, float]:
    """The multiplier left for values, and the deviation of the noise on the count.

    A client moves the count of those below, each plus or minus one half, by one half.

    Raises:
        ValueError: if the count's noise alone is below the total.
    """
    check_multiplier(noise_multiplier)
    is_given = count_stddev is not None
    if count_stddev is None:
        count_stddev = 0.05 * clients_per_round if noise_multiplier > 0.0 else 0.0
    left = _left(noise_multiplier, count_stddev, 0.5)
    if left is None and is_given:
        raise ValueError(
            "count_stddev must be more than half of noise_multiplier, got "
            f"{count_stddev=} and {noise_multiplier=}."
        )
    if left is None:
        raise ValueError(
            "noise_multiplier must be less than a tenth of clients_per_round, got "
            f"{noise_multiplier=} and {clients_per_round=}: the clip is learnt from a "
            "count with noise of a twentieth of clients_per_round. Take more clients, "
            "or a fixed clip, with gaussian_noise."
        )
    return left, count_stddev


def multiplier_left(
    noise_multiplier: float, stddev: float, sensitivity: float
) -> float:
    """The multiplier left for values by a clip that learns with noise like this.

    Raises:
        ValueError: if the noise on what it learns from is below the total alone.
    """
    left = _left(noise_multiplier, stddev, sensitivity)
    if left is None:
        raise ValueError(
            f"clip must learn with noise of more than {sensitivity} times "
            f"noise_multiplier, got {stddev=} and {noise_multiplier=}."
        )
    return left


def _left(multiplier: float, stddev: float, sensitivity: float) -> float | None:
    """What noise on a sum of this sensitivity leaves, or None if nothing.

    Reference: Andrew et al., "Differentially Private Learning with Adaptive Clipping",
        2021, theorem 1.
    """
    if multiplier == 0.0 or sensitivity == 0.0:
        return multiplier
    own = stddev / sensitivity
    if not own > multiplier:
        return None
    return (multiplier**-2 - own**-2) ** -0.5
