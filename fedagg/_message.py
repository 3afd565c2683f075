"""The size of what a client sends."""

import jax

from fedagg import _tree
from fedagg._types import PyTree, Stage, Update


def message_bits(stage: Stage, template: PyTree) -> int:
    """Bits of the message that a client sends, its value and its notes together.

    The message is what the stage's client side makes of an update like the template,
    and its size that of its arrays as they are: a value of 4-bit codes takes half a
    byte an entry. It is known without running anything; sizes that depend on the data,
    as those of `elias_gamma_encode`, are not counted here.

    Args:
        stage: one stage, or several as `chain` puts them together.
        template: one client's value, arrays or `jax.ShapeDtypeStruct`.

    Raises:
        ValueError, TypeError: what the stage raises for such a value.
    """

    def message(value: PyTree, key: jax.Array) -> PyTree:
        shared = stage.broadcast(stage.init(template))
        update, note = stage.client(shared, Update(value, jax.numpy.float32(1.0)), key)
        return update.value, note

    sent = jax.eval_shape(message, _tree.abstract(template), jax.random.key(0))
    return 8 * _tree.count_bytes(sent)
