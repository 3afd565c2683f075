"""The Skellam mechanism: clients add differences of Poisson variables."""

import math
from typing import Unpack

from fedagg._bounding.bounds import as_bound
from fedagg._client_noise.distributed_noise import report_of
from fedagg._client_noise.grid import calibrate
from fedagg._client_noise.mechanism import ClientNoise, Law, Settings, clip_of
from fedagg._compression.rotation import check_rotation
from fedagg._mechanism import RenyiCurve
from fedagg._noise import integer_laws
from fedagg._privacy.private import check_positive
from fedagg._sentence import prints_as_its_call
from fedagg._types import Bound, PyTree, Stage


@prints_as_its_call
def skellam(
    noise_multiplier: float,
    clip: Bound | float,
    clients_per_round: float,
    *,
    bits: int = 20,
    smallest_cohort: int | None = None,
    largest_cohort: int | None = None,
    count_stddev: float | None = None,
    rotation: str = "hadamard",
    beta: float = math.exp(-0.5),
    wrap_probability: float = 1e-4,
    seed: int = 0,
    name: str = "skellam_noise",
) -> ClientNoise:
    """A mean in which the clients' own noise hides what any one of them holds.

    For a sum that the server cannot look into: `aggregator(noise.secure_sum())` is such
    a round, and `guarantee` has the epsilon of it. All that the server learns has the
    noise in it, and no party is trusted to add it.

    A client's value is taken as one vector, rotated, scaled down to an L2 norm of at
    most `clip`, and rounded randomly to integers on a grid, anew while that makes it
    longer than a bound. It adds an integer to each entry, the difference of two Poisson
    variables, and sends all modulo `2**bits`. The server rotates the sum back, and
    divides it by `clients_per_round`, which is public and does not follow the clients
    present.

    | guarantee | |
    | --- | --- |
    | protected | a client, with all that it holds, over all rounds together |
    | relation | "zero_out", "replace_one": that it takes part is known |
    | against | all, the server too, to whom a secure sum shows the sum alone |
    | sampling | none, `cyclic` of a rate of one, `separated` |
    | outside | clients who add no noise, beyond those `smallest_cohort` leaves out |

    Noise is calibrated to `smallest_cohort`: that many clients together add a deviation
    of `noise_multiplier` clips to each entry of the sum, those that are more add to it.
    Sums of Skellam variables are Skellam, whoever drops out.

    | what happens | what comes of it |
    | --- | --- |
    | fewer clients than `smallest_cohort`, or none | zeros; the state stays |
    | more clients than `largest_cohort` | zeros; the state stays |
    | a client of any weight above zero | it counts once |
    | a NaN or an infinite norm | the client counts as zero, and above the clip |
    | a client adds no noise, or tells what it drew | one fewer in `smallest_cohort` |
    | others know a client's key | one fewer in `smallest_cohort` |
    | an entry of the sum wraps around | less accuracy, and no less privacy |

    A client in two rows of a cohort moves the sum by two clips. In a deployment each
    client makes a key of its own, `secret_key()`, where `aggregator` makes all from
    one; each round draws from another key, made with the number of rounds that the
    server tells, and a client that does not trust it takes a new key each time. Stages
    before this are refused if they make a client absent by what it holds, as
    `zeroing(..., keep_weight=False)` does, or report or learn something without noise.

    With a `quantile_bound` for a clip, each client sends whether it was below, with
    noise of its own as well, so that nothing is learnt without. `noise_multiplier` is
    then that of both together, and the count's part of it is set by `count_stddev`. The
    denominator of the fraction below is `clients_per_round` where the bound has none.

    The step is as fine as `bits` allow, until a client's noise is 1800 steps, and is
    constant as a part of the clip. Draws are exact to 64 bits: their law is within
    2**-50 of the true one in total variation, so that those of a hundred clients with a
    million entries add 1e-7 to delta at most.

    The stage reports `{name}/clip` `[]`, `{name}/stddev` `[]`, the noise's in an entry
    of the mean, `{name}/noised_norm` `[]` and `{name}/signal_to_noise` `[]`, as
    `gaussian_noise` does, and `{name}/is_released` `[]`, one if the cohort was neither
    too small nor too large. The deviation is the planned one, that of `smallest_cohort`
    clients: of those present it would tell how many they are.

    Args:
        noise_multiplier: standard deviation of the noise on the sum, in units of
            `clip`. Zero adds none and hides nothing.
        clip: the largest norm, over all leaves of a value together: a positive number,
            or a `quantile_bound` that learns it.
        clients_per_round: the denominator, a number that is known beforehand.
        bits: the modulus is `2**bits`, from 2 to 32.
        smallest_cohort: the fewest clients that a sum is released of, dropouts taken
            off. None stands for `clients_per_round`.
        largest_cohort: the most that may be present. None stands for
            `clients_per_round`, or for `smallest_cohort` if that is larger.
        count_stddev: standard deviation of the noise on the count of clients below a
            learnt clip, as in `adaptive_gaussian_noise`.
        rotation: "hadamard" or "dft".
        beta: the chance that a rounding may be too long, in [0, 1). Zero takes a bound
            that none exceeds, and more noise.
        wrap_probability: about the chance of an entry of the sum to wrap around, in
            (0, 1).
        seed: what rotations are drawn from. Public.
        name: what the metrics are filed under.

    Raises:
        ValueError: if an argument is out of range, or `clip` learns from more than one
            bit of a client; of the stage, in `init` and `client`, if bits are too few,
            with the numbers, and in `client`, without a key.
        TypeError: of the stage, in `init` and `client`, for a leaf that is not of a
            float dtype.

    Reference: Agarwal, Kairouz and Liu, "The Skellam Mechanism for Differentially
        Private Federated Learning", 2021, sections 3 and 4, and theorem 3.5.
    """
    if not isinstance(clip, Bound):
        check_positive(clip=clip)
    bound = as_bound(clip)
    calibration = calibrate(
        noise_multiplier,
        clients_per_round,
        bits=bits,
        smallest_cohort=smallest_cohort,
        largest_cohort=largest_cohort,
        beta=beta,
        wrap_probability=wrap_probability,
        learns=report_of(bound) is not None,
        count_stddev=count_stddev,
    )
    check_rotation(rotation=rotation)
    return ClientNoise(
        _LAW, bound, clients_per_round, calibration, rotation, seed, name
    )


@prints_as_its_call
def skellam_noise(
    noise_multiplier: float,
    clip: float,
    clients_per_round: float,
    *,
    target_quantile: float | None = None,
    learning_rate: float = 0.2,
    name: str = "skellam_noise",
    **settings: Unpack[Settings],
) -> Stage:
    """The stage of `skellam`, to be put in a secure sum of the same bits and cohort.

    Short for `skellam(...).stage()`. With a `target_quantile` the clip is
    `quantile_bound(clip, target_quantile, learning_rate)`, and begins at `clip`.

    | guarantee | |
    | --- | --- |
    | protected | a client, with all that it holds, over all rounds together |
    | relation | "zero_out", "replace_one": that it takes part is known |
    | against | all, the server too, in a secure sum; without one not the server |
    | sampling | none, `cyclic` of a rate of one, `separated` |
    | outside | clients who add no noise, beyond those `smallest_cohort` leaves out |

    Args:
        noise_multiplier: as in `skellam`.
        clip: the largest norm, or the first of them. Positive.
        clients_per_round: as in `skellam`.
        target_quantile: fraction of clients to leave as they are, in [0, 1], for a clip
            that is learnt. None keeps it.
        learning_rate: how fast the clip moves. Positive.
        name: what the metrics are filed under.
        **settings: what `skellam` takes besides.

    Raises:
        ValueError: as `skellam` does.
        TypeError: if `clip` is a `Bound`, which `skellam` takes; and as `skellam` does.

    Reference: Agarwal, Kairouz and Liu, "The Skellam Mechanism for Differentially
        Private Federated Learning", 2021, sections 3 and 4.
    """
    bound = clip_of(clip, target_quantile, learning_rate, clients_per_round)
    noise = skellam(noise_multiplier, bound, clients_per_round, name=name, **settings)
    return noise.stage()


def skellam_curve(
    template: PyTree,
    noise_multiplier: float,
    clients_per_round: float,
    *,
    target_quantile: float | None = None,
    **settings: Unpack[Settings],
) -> RenyiCurve:
    """The Rényi divergences of a round with `skellam_noise`, for `epsilon`.

    Short for `skellam(...).curve(template)`, which says more. It does not depend on the
    clip.

    Args:
        template: one client's value, arrays or `jax.ShapeDtypeStruct`.
        noise_multiplier: as given to `skellam_noise`, and so are all that follow.
        clients_per_round: likewise.
        target_quantile: likewise. It is 0.5 in `distributed_dp_aggregator`.
        **settings: likewise.

    Raises:
        ValueError: if an argument is out of range, or bits are too few.

    Reference: Agarwal, Kairouz and Liu, "The Skellam Mechanism for Differentially
        Private Federated Learning", 2021, theorem 3.5.
    """
    bound = clip_of(1.0, target_quantile, 1.0, clients_per_round)
    return skellam(noise_multiplier, bound, clients_per_round, **settings).curve(
        template
    )


def skellam_divergence(order: int, l2: float, l1: float, variance: float) -> float:
    """The Rényi divergence of Skellam noise moved by integers of these norms, at most.

    That of the Gaussian, and what the tails of the Skellam law add.
    """
    if variance == 0.0:
        return math.inf
    gaussian = order * l2**2 / (2.0 * variance)
    near = ((2.0 * order - 1.0) * l2**2 + 6.0 * l1) / (4.0 * variance**2)
    return gaussian + min(near, 3.0 * l1 / (2.0 * variance))


def _divergence(
    order: int, l2: float, l1: float, size: int, stddev: float, clients: int
) -> float:
    del size
    return skellam_divergence(order, l2, l1, clients * stddev**2)


_LAW = Law(integer_laws.skellam, _divergence)
