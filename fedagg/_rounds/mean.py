"""The weighted mean."""

import jax
import jax.numpy as jnp

from fedagg._trees import checks, pytree
from fedagg._types import Output, PyTree, Stage, Update


def mean(*, weighted: bool = True) -> Stage:
    """Divides the weighted sum of the values by the sum of the weights.

    With no client present, the mean is zero. A NaN or an infinity in a present client's
    value reaches the mean: put `zeroing` before this. The last stage that changes a
    client's value, as a rule: those behind it see value times weight.

    Reports `mean/weight` `[]`, the sum of the weights, or the number of clients present
    where not `weighted`.

    Args:
        weighted: if False, every present client counts the same.

    Raises:
        TypeError: in `client`, for a leaf that is not of a float dtype.

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
        Decentralized Data", 2017, algorithm 1.
    """

    def client(shared: PyTree, update: Update, key: jax.Array | None):
        del shared, key
        checks.check_floating(update.value, "mean")
        if not weighted:
            return update._replace(value=pytree.widen(update.value)), jnp.float32(1.0)
        value = pytree.scale(update.weight, update.value)
        return update._replace(value=value), update.weight

    def server(state: PyTree, total: PyTree, note: jax.Array, key: jax.Array | None):
        del key
        # The total of no clients is zero, and so is its quotient by one.
        divisor = jnp.where(note > 0.0, note, 1.0)
        return Output(state, pytree.divide(total, divisor), {"mean/weight": note})

    return Stage(lambda template: (), lambda state: (), client, server)
