"""Means that hide whether a client took part, or what it holds.

`dp_aggregator(1.0, 100)` has its noise from the server, and is DP-FedAvg with adaptive
clipping; `distributed_dp_aggregator(1.0, 100)` has it from the clients, under a secure
sum.
"""

from fedagg._aggregator import Aggregator
from fedagg._bounding.bounds import quantile_bound
from fedagg._bounding.recommended import Choice, recommended_bounding
from fedagg._client_noise.discrete_gaussian import discrete_gaussian
from fedagg._client_noise.skellam import skellam
from fedagg._execution.ways import SumOver
from fedagg._privacy.gaussian import adaptive_gaussian_noise
from fedagg._rounds import order
from fedagg._rounds.aggregator import aggregator
from fedagg._rounds.chain import chain
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks


@prints_as_its_call
def dp_aggregator(
    noise_multiplier: float,
    clients_per_round: float,
    *,
    zeroing: Choice = False,
    without_guarantee: bool = False,
    sum_over: SumOver | None = None,
) -> Aggregator:
    """A mean with noise that hides whether any one client took part.

    Clients are clipped to the median of their norms, learnt from 0.1 on, and the mean
    over `clients_per_round` and the clip are noised: `adaptive_gaussian_noise`. One
    that holds a NaN or an infinity counts as zero. Every client present counts once,
    whatever its weight. Needs a key each round. With `noise_multiplier=1.0` and
    `clients_per_round=100`, equivalent to::

        aggregator(adaptive_gaussian_noise(1.0, 100))

    | guarantee | |
    | --- | --- |
    | protected | a client, with all that it holds, over all rounds together |
    | relation | "zero_out", "replace_one"; "add_or_remove" but for a fixed size |
    | against | all who see what comes out; not the server, which sees sums |
    | sampling | none, `poisson`, `fixed_size`, `cyclic`, `separated` |
    | outside | a key that is known; a client in two rows, or behind two clients |

    Batch statistics share the clip and its noise with the parameters, and are mostly
    the larger: take a model that normalizes without them, by `GroupNorm` say, or leave
    them out with `grouped`.

    All that comes out is noised. The defaults are TensorFlow Federated's but for
    `zeroing=True`, which learns without noise who is set to zero in later rounds: no
    epsilon is finite then, so that it needs `without_guarantee=True`.

    Reports what `adaptive_gaussian_noise` and `zeroing(counted=without_guarantee)` do.

    Args:
        noise_multiplier: total noise of values and clip, in units of sensitivity, for
            `guarantee` and `epsilon`. Less than a tenth of `clients_per_round`.
        clients_per_round: the denominator, a number that is known beforehand.
        zeroing: a bound above which clients are set to zero, a number or one that
            learns with noise; True for one that learns without, as in
            `robust_aggregator`.
        without_guarantee: that none is meant, as the function of that name says.
        sum_over: a way to sum, as `aggregator` takes it.

    Raises:
        ValueError: if an argument is out of range, or something is learnt without noise
            and a guarantee is meant; in `next`, without a key.

    Reference: TensorFlow Federated, `tff.learning.dp_aggregator`.
    """
    stages = recommended_bounding(zeroing, False, counted=without_guarantee)
    noise = adaptive_gaussian_noise(noise_multiplier, clients_per_round)
    noise = order.without_guarantee(noise) if without_guarantee else noise
    return aggregator(*stages, noise, sum_over=sum_over)


@prints_as_its_call
def distributed_dp_aggregator(
    noise_multiplier: float,
    clients_per_round: int,
    bits: int = 20,
    *,
    zeroing: Choice = False,
    without_guarantee: bool = False,
    rotation: str = "hadamard",
    mechanism: str = "skellam",
    smallest_cohort: int | None = None,
    largest_cohort: int | None = None,
    sum_over: SumOver | None = None,
) -> Aggregator:
    """A mean of which the server learns nothing but noised sums.

    All that is learnt of a client's value is noised; `server_view` lists what the
    server sees. Needs a key each round. With `noise_multiplier=1.0` and
    `clients_per_round=100`, equivalent to::

        noise = skellam(1.0, quantile_bound(0.1, 0.5, 0.2), 100, bits=20)
        aggregator(noise.secure_sum())

    | guarantee | |
    | --- | --- |
    | protected | a client, with all that it holds, over all rounds together |
    | relation | "zero_out", "replace_one": that it takes part is known |
    | against | all, the server too, to whom a secure sum shows the sum alone |
    | sampling | none, `cyclic` of a rate of one, `separated` |
    | outside | clients who add no noise, beyond those `smallest_cohort` leaves out |

    The defaults are TensorFlow Federated's but for `zeroing`, as in `dp_aggregator`,
    and the divisor: it takes the number of clients present, and has less noise than was
    asked for where clients drop out.

    Reports what `zeroing`, `skellam_noise` and `secure_modular_sum` do, each `[]`.

    Args:
        noise_multiplier: total noise of values and clip, in units of sensitivity. Less
            than a tenth of `clients_per_round`.
        clients_per_round: the denominator, a number that is known beforehand.
        bits: sums are made modulo `2**bits`.
        zeroing: as in `dp_aggregator`, of bounds a number.
        without_guarantee: likewise.
        rotation: "hadamard" or "dft".
        mechanism: "skellam" or "discrete_gaussian".
        smallest_cohort: as in `skellam`: with fewer, the mean is zero.
        largest_cohort: likewise.
        sum_over: a way to sum, as `aggregator` takes it.

    Raises:
        ValueError: as `dp_aggregator` does; in `init` and `next`, if bits are too few.

    Reference: TensorFlow Federated 0.87, `tff.learning.ddp_secure_aggregator`.
    """
    checks.check_choice(tuple(_MECHANISMS), mechanism=mechanism)
    noise = _MECHANISMS[mechanism](
        noise_multiplier,
        quantile_bound(0.1, 0.5, 0.2),
        clients_per_round,
        bits=bits,
        smallest_cohort=smallest_cohort,
        largest_cohort=largest_cohort,
        rotation=rotation,
    )
    stages = recommended_bounding(zeroing, False, counted=without_guarantee)
    if without_guarantee:
        stages.append(order.without_guarantee(chain()))
    hidden = noise.secure_sum(*stages)
    return aggregator(hidden, sum_over=sum_over)


_MECHANISMS = {"skellam": skellam, "discrete_gaussian": discrete_gaussian}
