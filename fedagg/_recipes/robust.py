"""Means that broken clients cannot spoil, as they are and in fewer bits.

`robust_aggregator()` is TensorFlow Federated's recommended mean of floats, and
`compression_aggregator()` the same with messages of a quarter of the size.
"""

from fedagg._aggregator import Aggregator
from fedagg._bounding.recommended import Choice, recommended_bounding
from fedagg._compression.quantization import quantization
from fedagg._execution.ways import SumOver
from fedagg._rounds.aggregator import aggregator
from fedagg._rounds.mean import mean
from fedagg._sentence import prints_as_its_call


@prints_as_its_call
def robust_aggregator(
    *,
    zeroing: Choice = True,
    clipping: Choice = True,
    weighted: bool = True,
    sum_over: SumOver | None = None,
) -> Aggregator:
    """A mean that a broken client in fifty cannot spoil.

    Clients whose largest entry is far out, or that hold a NaN, are set to zero: above
    `2 C + 1`, where `C` follows the 0.98 quantile of largest entries from 10, by a
    factor of ten at most a round. The others are clipped to an L2 norm that follows the
    0.8 quantile from 1. Then comes the (weighted) mean.

    Where more than one client in fifty is broken, or holds a NaN, the 0.98 quantile is
    theirs, and `zeroing/bound` grows from round to round; clipping still holds, but
    garbage is no longer set to zero. Then give a bound, `zeroing=10.0`, or take a rule:
    `combining(trimmed_mean(f))`.

    The defaults and the numbers are TensorFlow Federated's, but for clients that are
    absent or hold a NaN. Equivalent to::

        aggregator(
            zeroing(
                quantile_bound(
                    10.0, 0.98, math.log(10.0), multiplier=2.0, increment=1.0
                )
            ),
            clipping(quantile_bound(1.0, 0.8, 0.2)),
            mean(),
        )

    without the stage whose option is False, and with a bound of your own in place of
    that of its stage.

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
    bits: int = 8,
    threshold: int = 20000,
    sum_over: SumOver | None = None,
) -> Aggregator:
    """A robust mean whose large tensors travel in codes of a few bits.

    As `robust_aggregator`, and each client's tensors of more than `threshold` entries
    travel as codes of `bits` bits, rounded randomly without bias: `quantization`, of
    the value times its weight. With the defaults a large model takes about a quarter of
    the bytes; one without such tensors travels as it is, until `threshold=0` codes all.
    `message_bits` has the size. Needs a key each round.

    The defaults are TensorFlow Federated's. Equivalent to::

        aggregator(
            zeroing(
                quantile_bound(
                    10.0, 0.98, math.log(10.0), multiplier=2.0, increment=1.0
                )
            ),
            clipping(quantile_bound(1.0, 0.8, 0.2)),
            mean(),
            quantization(8, 20000),
        )

    Reports what `robust_aggregator` does.

    Args:
        zeroing: as in `robust_aggregator`.
        clipping: likewise.
        weighted: likewise.
        bits: of a code, from 1 to 16.
        threshold: the largest number of entries of a tensor that is left alone.
        sum_over: as in `robust_aggregator`.

    Raises:
        TypeError: as `robust_aggregator` does.
        ValueError: as `robust_aggregator` does; in `next`, without a key.

    Reference: TensorFlow Federated 0.87, `tff.learning.compression_aggregator`.
    """
    stages = [
        *recommended_bounding(zeroing, clipping),
        mean(weighted=weighted),
        quantization(bits, threshold),
    ]
    return aggregator(*stages, sum_over=sum_over)
