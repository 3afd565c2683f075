"""The Skellam mechanism: clients add differences of Poisson variables."""

import math

from fedagg._client_noise.distributed_noise import distributed_noise, noised_curve
from fedagg._client_noise.integer_laws import skellam
from fedagg._privacy.accounting import RenyiCurve
from fedagg._sentence import prints_as_its_call
from fedagg._types import PyTree, Stage


@prints_as_its_call
def skellam_noise(
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
    name: str = "skellam_noise",
) -> Stage:
    """A mean in which the clients' own noise hides what any one of them holds.

    For a sum that the server cannot look into: put it, in a `chain` with what comes
    before, into `secure_modular_sum` with the same `bits` and `largest_cohort`. All
    that the server learns has the noise in it, and no party is trusted to add it.

    A client's value is taken as one vector, rotated, scaled down to an L2 norm of at
    most `clip`, and rounded randomly to integers on a grid, anew while that makes it
    longer than a bound. It adds an integer to each entry, the difference of two Poisson
    variables, and sends all modulo `2**bits`. The server rotates the sum back, and
    divides it by `clients_per_round`, which is public and does not follow the clients
    present.

    Noise is calibrated to `smallest_cohort`: that many clients together add a deviation
    of `noise_multiplier` clips to each entry of the sum, those that are more add to it.
    Sums of fewer, or of more than `largest_cohort`, come out as zero, and the state
    stays. Sums of Skellam variables are Skellam, whoever drops out. `skellam_curve`
    makes a guarantee of it for `epsilon`: of who holds what, not of who takes part,
    which the server of a secure sum knows. A client who adds no noise, or tells others
    what it drew, is one fewer in `smallest_cohort`. So is a client whose key is known:
    in a deployment each makes its own, where `aggregator` makes all from one.

    With `target_quantile` the clip begins at `clip` and follows that quantile of the
    norms, as in `adaptive_gaussian_noise`: each client sends whether it was below the
    clip, with noise of its own as well, so that nothing is learnt without.
    `noise_multiplier` is then that of both together, and the count's part of it is set
    by `count_stddev`.

    The step is as fine as `bits` allow, until a client's noise is 1800 steps, and is
    constant as a part of the clip. Draws are exact to 64 bits: their law is within
    2**-50 of the true one in total variation, so that those of a hundred clients with a
    million entries add 1e-7 to delta at most. An entry of the sum wraps around with a
    chance of about `wrap_probability`, which costs accuracy and no privacy.

    Every client present counts once, whatever its weight. A value with a NaN or an
    infinite norm counts as zero, and above the clip. Stages before this must not make a
    client absent by what it holds, as `zeroing(..., keep_weight=False)` does, and what
    they report or learn is not noised.

    Reports `{name}/clip` `[]`, `{name}/stddev` `[]`, the noise's in an entry of the
    mean, `{name}/noised_norm` `[]` and `{name}/signal_to_noise` `[]`, as
    `gaussian_noise` does, and `{name}/is_released` `[]`, one if the cohort was neither
    too small nor too large.

    Args:
        noise_multiplier: standard deviation of the noise on the sum, in units of
            `clip`. Zero adds none and hides nothing.
        clip: the largest norm, over all leaves of a value together, or the first of
            them. Positive.
        clients_per_round: the denominator, a number that is known beforehand.
        bits: the modulus is `2**bits`, from 2 to 32.
        smallest_cohort: the fewest clients that a sum is released of, dropouts taken
            off. None stands for `clients_per_round`.
        largest_cohort: the most that may be present. None stands for
            `clients_per_round`.
        target_quantile: fraction of clients to leave as they are, in [0, 1], for a clip
            that is learnt. None keeps it.
        learning_rate: how fast the clip moves. Positive.
        count_stddev: standard deviation of the noise on the count of clients below the
            clip, as in `adaptive_gaussian_noise`.
        rotation: "hadamard" or "dft".
        beta: the chance that a rounding may be too long, in [0, 1). Zero takes a bound
            that none exceeds, and more noise.
        wrap_probability: the chance above, in (0, 1).
        seed: what rotations are drawn from. Public.
        name: what the metrics are filed under.

    Raises:
        ValueError: if an argument is out of range; in `init` and `client`, if bits are
            too few, with the numbers; in `client`, without a key.
        TypeError: if `clip` is a `Bound`; in `init` and `client`, for a leaf that is
            not of a float dtype.

    Reference: Agarwal, Kairouz and Liu, "The Skellam Mechanism for Differentially
        Private Federated Learning", 2021, sections 3 and 4.
    """
    return distributed_noise(
        skellam,
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


def skellam_curve(
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
    """The Rényi divergences of a round with `skellam_noise`, for `epsilon`.

    With `neighbors="add_or_remove"` a client's value is told from zeros; with
    `"replace_one"` from another value. Orders are integers. The curve does not depend
    on the clip. A `participation` below one in `epsilon` takes it that nobody knows who
    takes part, while the server of a secure sum does: against it, leave that at one.

    Args:
        template: one client's value, arrays or `jax.ShapeDtypeStruct`.
        noise_multiplier: as given to `skellam_noise`, and so are all that follow.
        clients_per_round: likewise.
        bits: likewise.
        smallest_cohort: likewise.
        largest_cohort: likewise.
        target_quantile: likewise. Of this and the next, 0.5 and None are those of
            `distributed_dp_aggregator`.
        count_stddev: likewise.
        rotation: likewise.
        beta: likewise.
        wrap_probability: likewise.

    Raises:
        ValueError: if an argument is out of range, or bits are too few.

    Reference: Agarwal, Kairouz and Liu, "The Skellam Mechanism for Differentially
        Private Federated Learning", 2021, theorem 3.5.
    """
    return noised_curve(
        _divergence,
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
        name="skellam_curve",
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
