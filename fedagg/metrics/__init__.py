"""What `federated_evaluation` measures: sums over examples, and what comes of them.

A metric is a pair `(sums, finalize)`: `sums(outputs, targets)` are numbers of each
example, a tree of arrays `[b, ...]`, and `finalize(sums)` is made of their sum, over a
client's examples or over everybody's. So one of your own is a few lines::

    def within(distance):
        def sums(outputs, targets):
            near = jnp.abs(outputs - targets) <= distance
            return near, jnp.ones(len(targets))

        return sums, lambda total: total[0] / total[1]

Where nothing was counted, all are NaN.
"""

from fedagg.metrics._metrics import (
    accuracy,
    auc,
    calibration,
    calibration_error,
    confusion_matrix,
    mean_loss,
    perplexity,
)

__all__ = [
    "accuracy",
    "auc",
    "calibration",
    "calibration_error",
    "confusion_matrix",
    "mean_loss",
    "perplexity",
]
