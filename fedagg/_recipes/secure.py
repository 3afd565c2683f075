"""A mean of which the server learns nothing but sums."""

from fedagg._aggregator import Aggregator
from fedagg._bounding.bounds import quantile_bound
from fedagg._bounding.recommended import Choice, recommended_bounding
from fedagg._execution.ways import SumOver
from fedagg._rounds.aggregator import aggregator
from fedagg._rounds.chain import chain
from fedagg._rounds.mean import mean
from fedagg._secure.secure_sum import secure_sum
from fedagg._sentence import prints_as_its_call


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
    with `fedagg.secagg`, whose sums of the same messages are these to the bit;
    `server_view` lists what is seen.

    The defaults are TensorFlow Federated's. Its sums are of 32 bits a client; here all
    clients together have 32 bits, so that the steps of the value are `largest_cohort`
    times as coarse, 5e-5 of an entry times its weight at first. Equivalent to::

        robust = chain(
            zeroing(
                quantile_bound(
                    10.0, 0.98, math.log(10.0), multiplier=2.0, increment=1.0
                )
            ),
            clipping(quantile_bound(1.0, 0.8, 0.2)),
            mean(),
        )
        largest = quantile_bound(50.0, 0.95, 1.0, multiplier=2.0)
        aggregator(
            secure_sum(
                robust, largest, largest_cohort=1000, largest_weight=2**20 - 1
            )
        )

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
