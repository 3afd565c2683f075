"""The distributed discrete Gaussian mechanism."""

import math
from typing import Unpack

import numpy as np

from fedagg._client_noise.mechanism import ClientNoise, Law, Settings, clip_of
from fedagg._client_noise.skellam import skellam
from fedagg._mechanism import RenyiCurve
from fedagg._noise import integer_laws
from fedagg._sentence import prints_as_its_call
from fedagg._types import Bound, PyTree, Stage


@prints_as_its_call
def discrete_gaussian(
    noise_multiplier: float,
    clip: Bound | float,
    clients_per_round: float,
    *,
    name: str = "discrete_gaussian_noise",
    **settings: Unpack[Settings],
) -> ClientNoise:
    """As `skellam`, with integers of a Gaussian law.

    Each client adds an integer `i` to an entry with a chance in proportion to
    `exp(-i**2 / (2 s**2))`. A sum of such draws is not of the same law. It is all the
    nearer to it, the larger the noise: the curve accounts for the difference, which is
    negligible where a client's noise is of three steps or more. All else is as in
    `skellam`.

    | guarantee | |
    | --- | --- |
    | protected | a client, with all that it holds, over all rounds together |
    | relation | "zero_out", "replace_one": that it takes part is known |
    | against | all, the server too, to whom a secure sum shows the sum alone |
    | sampling | none, `cyclic` of a rate of one, `separated` |
    | outside | clients who add no noise, beyond those `smallest_cohort` leaves out |

    Args:
        noise_multiplier: as in `skellam`.
        clip: as in `skellam`.
        clients_per_round: as in `skellam`.
        name: what the metrics are filed under.
        **settings: what `skellam` takes besides.

    Raises:
        ValueError: as `skellam` does.
        TypeError: as `skellam` does.

    Reference: Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism
        for Federated Learning with Secure Aggregation", 2021, section 4, and
        proposition 14.
    """
    noise = skellam(noise_multiplier, clip, clients_per_round, name=name, **settings)
    return noise._replace(law=_LAW)


@prints_as_its_call
def discrete_gaussian_noise(
    noise_multiplier: float,
    clip: float,
    clients_per_round: float,
    *,
    target_quantile: float | None = None,
    learning_rate: float = 0.2,
    name: str = "discrete_gaussian_noise",
    **settings: Unpack[Settings],
) -> Stage:
    """The stage of `discrete_gaussian`, as `skellam_noise` is that of `skellam`.

    | guarantee | |
    | --- | --- |
    | protected | a client, with all that it holds, over all rounds together |
    | relation | "zero_out", "replace_one": that it takes part is known |
    | against | all, the server too, in a secure sum; without one not the server |
    | sampling | none, `cyclic` of a rate of one, `separated` |
    | outside | clients who add no noise, beyond those `smallest_cohort` leaves out |

    Args:
        noise_multiplier: as in `skellam_noise`, and so are all that follow.
        clip: likewise.
        clients_per_round: likewise.
        target_quantile: likewise.
        learning_rate: likewise.
        name: likewise.
        **settings: likewise.

    Raises:
        ValueError: as `skellam` does.
        TypeError: if `clip` is a `Bound`; and as `skellam` does.

    Reference: Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism
        for Federated Learning with Secure Aggregation", 2021, section 4.
    """
    bound = clip_of(clip, target_quantile, learning_rate, clients_per_round)
    return discrete_gaussian(
        noise_multiplier, bound, clients_per_round, name=name, **settings
    ).stage()


def discrete_gaussian_curve(
    template: PyTree,
    noise_multiplier: float,
    clients_per_round: float,
    *,
    target_quantile: float | None = None,
    **settings: Unpack[Settings],
) -> RenyiCurve:
    """The Rényi divergences of a round with `discrete_gaussian_noise`, for `epsilon`.

    Args:
        template: one client's value, arrays or `jax.ShapeDtypeStruct`.
        noise_multiplier: as given to the stage, and so are all that follow.
        clients_per_round: likewise.
        target_quantile: likewise.
        **settings: likewise.

    Raises:
        ValueError: if an argument is out of range, or bits are too few.

    Reference: Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism
        for Federated Learning with Secure Aggregation", 2021, proposition 14.
    """
    bound = clip_of(1.0, target_quantile, 1.0, clients_per_round)
    noise = discrete_gaussian(noise_multiplier, bound, clients_per_round, **settings)
    return noise.curve(template)


def discrete_gaussian_divergence(
    order: int, l2: float, l1: float, size: int, stddev: float, clients: int
) -> float:
    """The Rényi divergence of a sum of noise moved by integers of these norms, at most.

    That of one discrete Gaussian, and how far the sum of several is from one.
    """
    if stddev == 0.0:
        return math.inf
    k = np.arange(1, clients)
    apart = 10.0 * float(np.sum(np.exp(-2.0 * math.pi**2 * stddev**2 * k / (k + 1))))
    l2, l1 = (norm / (stddev * math.sqrt(clients)) for norm in (l2, l1))
    return min(
        order * l2**2 / 2.0 + apart * size,
        order * (l2**2 + 2.0 * apart * l1 + apart**2 * size) / 2.0,
        order * (l2 + apart * math.sqrt(size)) ** 2 / 2.0,
    )


_LAW = Law(integer_laws.discrete_gaussian, discrete_gaussian_divergence)
