"""The distributed discrete Gaussian mechanism."""

import math

import numpy as np

from fedagg._client_noise.distributed_noise import distributed_noise, noised_curve
from fedagg._client_noise.integer_laws import discrete_gaussian
from fedagg._privacy.accounting import RenyiCurve
from fedagg._sentence import prints_as_its_call
from fedagg._types import PyTree, Stage


@prints_as_its_call
def discrete_gaussian_noise(
    noise_multiplier: float,
    clip: float,
    clients_per_round: float,
    *,
    bits: int = 20,
    smallest_cohort: int | None = None,
    largest_cohort: int | None = None,
    target_quantile: float | None = None,
    learning_rate: float = 0.2,
    count_stddev: float | None = None,
    rotation: str = "hadamard",
    beta: float = math.exp(-0.5),
    wrap_probability: float = 1e-4,
    seed: int = 0,
    name: str = "discrete_gaussian_noise",
) -> Stage:
    """As `skellam_noise`, with integers of a Gaussian law.

    Each client adds an integer `i` to an entry with a chance in proportion to
    `exp(-i**2 / (2 s**2))`. A sum of such draws is not of the same law. It is all the
    nearer to it, the larger the noise: `discrete_gaussian_curve` accounts for the
    difference, which is nothing to speak of where a client's noise is of three steps or
    more. All else is as in `skellam_noise`.

    Reports what `skellam_noise` does.

    Args:
        noise_multiplier: standard deviation of the noise on the sum, in units of
            `clip`. Zero adds none and hides nothing.
        clip: the largest norm, or the first of them. Positive.
        clients_per_round: the denominator, a number that is known beforehand.
        bits: as in `skellam_noise`.
        smallest_cohort: as in `skellam_noise`.
        largest_cohort: as in `skellam_noise`.
        target_quantile: as in `skellam_noise`.
        learning_rate: as in `skellam_noise`.
        count_stddev: as in `skellam_noise`.
        rotation: "hadamard" or "dft".
        beta: as in `skellam_noise`.
        wrap_probability: as in `skellam_noise`.
        seed: what rotations are drawn from. Public.
        name: what the metrics are filed under.

    Raises:
        ValueError: if an argument is out of range; in `init` and `client`, if bits are
            too few, with the numbers; in `client`, without a key.
        TypeError: if `clip` is a `Bound`; in `init` and `client`, for a leaf that is
            not of a float dtype.

    Reference: Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism
        for Federated Learning with Secure Aggregation", 2021, section 4.
    """
    return distributed_noise(
        discrete_gaussian,
        noise_multiplier,
        clip,
        clients_per_round,
        bits=bits,
        smallest_cohort=smallest_cohort,
        largest_cohort=largest_cohort,
        target_quantile=target_quantile,
        learning_rate=learning_rate,
        count_stddev=count_stddev,
        kind=rotation,
        beta=beta,
        wrap_probability=wrap_probability,
        seed=seed,
        name=name,
    )


def discrete_gaussian_curve(
    template: PyTree,
    noise_multiplier: float,
    clients_per_round: float,
    *,
    bits: int = 20,
    smallest_cohort: int | None = None,
    largest_cohort: int | None = None,
    target_quantile: float | None = None,
    count_stddev: float | None = None,
    rotation: str = "hadamard",
    beta: float = math.exp(-0.5),
    wrap_probability: float = 1e-4,
) -> RenyiCurve:
    """The Rényi divergences of a round with `discrete_gaussian_noise`, for `epsilon`.

    Neighbors and orders are as in `skellam_curve`.

    Args:
        template: one client's value, arrays or `jax.ShapeDtypeStruct`.
        noise_multiplier: as given to the stage, and so are all that follow.
        clients_per_round: likewise.
        bits: likewise.
        smallest_cohort: likewise.
        largest_cohort: likewise.
        target_quantile: likewise.
        count_stddev: likewise.
        rotation: likewise.
        beta: likewise.
        wrap_probability: likewise.

    Raises:
        ValueError: if an argument is out of range, or bits are too few.

    Reference: Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism
        for Federated Learning with Secure Aggregation", 2021, proposition 14.
    """
    return noised_curve(
        discrete_gaussian_divergence,
        template,
        noise_multiplier,
        clients_per_round,
        bits=bits,
        smallest_cohort=smallest_cohort,
        largest_cohort=largest_cohort,
        target_quantile=target_quantile,
        count_stddev=count_stddev,
        kind=rotation,
        beta=beta,
        wrap_probability=wrap_probability,
        name="discrete_gaussian_curve",
    )


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
