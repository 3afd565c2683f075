"""Recommended compositions."""

from fedagg._aggregator import Aggregator
from fedagg._bounding.bounds import quantile_bound
from fedagg._bounding.recommended import Choice, recommended_bounding
from fedagg._client_noise.discrete_gaussian import discrete_gaussian
from fedagg._client_noise.skellam import skellam
from fedagg._compression.quantization import quantization
from fedagg._execution.ways import SumOver
from fedagg._privacy.gaussian import adaptive_gaussian_noise
from fedagg._rounds import order
from fedagg._rounds.aggregator import aggregator
from fedagg._rounds.chain import chain
from fedagg._rounds.mean import mean
from fedagg._secure.secure_sum import secure_sum
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks


@prints_as_its_call
def robust_aggregator(
    *,
    zeroing: Choice = True,
    clipping: Choice = True,
    weighted: bool = True,
    sum_over: SumOver | None = None,
) -> Aggregator:
    """A mean that a few broken clients cannot spoil.

    Clients whose largest entry is far out, or that hold a NaN, are set to zero: above
    `2 C + 1`, where `C` follows the 0.98 quantile of largest entries from 10, by a
    factor of ten at most a round. The others are clipped to an L2 norm that follows the
    0.8 quantile from 1. Then comes the (weighted) mean.

    The defaults and the numbers are TensorFlow Federated's, but for clients that are
    absent or hold a NaN.

    Reports `zeroing/bound`, `zeroing/count`, `clipping/bound`, `clipping/count` and
    `mean/weight`, each `[]`, where the stage is in use.

    Args:
        zeroing: whether to set far-out clients to zero, or the bound to do it by.
        clipping: whether to clip, or the bound to clip to.
        weighted: whether the mean takes weights.
        sum_over: a way to sum, as `aggregator` takes it.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if a bound is not positive.

    Reference: TensorFlow Federated, `tff.learning.robust_aggregator`.
    """
    stages = [*recommended_bounding(zeroing, clipping), mean(weighted=weighted)]
    return aggregator(*stages, sum_over=sum_over)


@prints_as_its_call
def compression_aggregator(
    *,
    zeroing: Choice = True,
    clipping: Choice = True,
    weighted: bool = True,
    sum_over: SumOver | None = None,
) -> Aggregator:
    """A mean of messages of about a quarter of the size, robust to broken clients.

    As `robust_aggregator`, and each client's tensors of more than 20,000 entries travel
    as codes of 8 bits, rounded randomly without bias: `quantization()`, of the value
    times its weight. Needs a key each round.

    The defaults are TensorFlow Federated's. Reports what `robust_aggregator` does.

    Args:
        zeroing: as in `robust_aggregator`, and so are all that follow.
        clipping: likewise.
        weighted: likewise.
        sum_over: likewise.

    Raises:
        TypeError: as `robust_aggregator` does.
        ValueError: as `robust_aggregator` does; in `next`, without a key.

    Reference: TensorFlow Federated 0.87, `tff.learning.compression_aggregator`.
    """
    stages = [
        *recommended_bounding(zeroing, clipping),
        mean(weighted=weighted),
        quantization(),
    ]
    return aggregator(*stages, sum_over=sum_over)


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
    whatever its weight. Needs a key each round.

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
def secure_aggregator(
    *,
    zeroing: Choice = True,
    clipping: Choice = True,
    weighted: bool = True,
    largest_cohort: int = 1000,
    largest_weight: float = 2**20 - 1,
    sum_over: SumOver | None = None,
) -> Aggregator:
    """A mean of which the server learns nothing but sums, robust to broken clients.

    As `robust_aggregator`, with the whole message under `secure_sum`: the value times
    its weight within a bound that follows twice the 0.95 quantile of the largest
    entries from 100, weights, counts, and what bounds learn. It simulates a deployment
    with `fedagg.secagg` to the bit; `server_view` lists what is seen.

    The defaults are TensorFlow Federated's. Its sums are of 32 bits a client; here all
    clients together have 32 bits, so that the steps of the value are `largest_cohort`
    times as coarse, 5e-5 of an entry times its weight at first.

    Reports what `robust_aggregator` and `secure_sum` do, each `[]`.

    Args:
        zeroing: whether to set far-out clients to zero, or the bound to do it by.
        clipping: whether to clip, or the bound to clip to.
        weighted: whether the mean takes weights.
        largest_cohort: the most clients that may be present in a round. With more, the
            mean is NaN.
        largest_weight: the largest weight of a client; those above are left out, and
            counted.
        sum_over: a way to sum, as `aggregator` takes it.

    Raises:
        ValueError: if a sum could wrap around, with the numbers.

    Reference: TensorFlow Federated, `tff.learning.secure_aggregator`.
    """
    stages = [*recommended_bounding(zeroing, clipping), mean(weighted=weighted)]
    largest = quantile_bound(50.0, 0.95, 1.0, multiplier=2.0)
    hidden = secure_sum(
        chain(*stages),
        largest,
        largest_cohort=largest_cohort,
        largest_weight=largest_weight if weighted else 1.0,
    )
    return aggregator(hidden, sum_over=sum_over)


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

    It is `noise.secure_sum()` with `noise = skellam(noise_multiplier,
    quantile_bound(0.1, 0.5, 0.2), clients_per_round, bits=bits)` and the other options
    given here, and has the guarantee of `noise.curve(template)`, in the relations
    `"zero_out"` and `"replace_one"`: the server knows who takes part. All that is
    learnt of a client's value is noised; `server_view` lists what the server sees.
    Needs a key each round.

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
