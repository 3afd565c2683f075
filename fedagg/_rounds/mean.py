"""The weighted mean."""

import jax
import jax.numpy as jnp

from fedagg._messages.marks import WeightNote
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree
from fedagg._types import PyTree, Stage, Traits, Update


@prints_as_its_call
def mean(*, weighted: bool = True) -> Stage:
    """Divides the weighted sum of the values by the sum of the weights.

    With no client present, the mean is zero. A NaN or an infinity in a present client's
    value reaches the mean: put `zeroing` before this. The last stage that changes a
    client's value, as a rule: those after it see value times weight.

    Reports `mean/weight` `[]`, the sum of the weights, or the number of clients present
    where not `weighted`.

    Args:
        weighted: if False, every present client counts the same.

    Raises:
        TypeError: in `client`, for a leaf that is not of a float dtype.

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
        Decentralized Data", 2017, algorithm 1.
    """

    def client(update: Update, key: jax.Array | None):
        del key
        checks.check_floating(update.value, "mean")
        if not weighted:
            value = pytree.widen(update.value)
            return update._replace(value=value), WeightNote(jnp.float32(1.0))
        value = pytree.scale(update.weight, update.value)
        return update._replace(value=value), WeightNote(update.weight)

    def server(total: PyTree, note: WeightNote, key: jax.Array | None):
        del key
        # The total of no clients is zero, and so is its quotient by one.
        divisor = jnp.where(note.weight > 0.0, note.weight, 1.0)
        return pytree.divide(total, divisor), {"mean/weight": note.in_ones()}

    traits = Traits("mean", weighs=weighted, divides=True, weight="mean/weight")
    return Stage.stateless(client, server, traits)
