"""What a client sends, and its size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._messages.residues import is_residues
from fedagg._trees import pytree
from fedagg._types import PyTree, Stage, Update


class Message(NamedTuple):
    """What a client sends."""

    value: PyTree
    note: PyTree


def message_of(stage: Stage, template: PyTree) -> Message:
    """The message of a client with a value like the template, as shapes and dtypes."""
    shared = jax.eval_shape(lambda x: stage.broadcast(stage.init(x)), template)

    def message(shared: PyTree, value: PyTree, key: jax.Array) -> Message:
        update, note = stage.client(shared, Update(value, jnp.float32(1.0)), key)
        return Message(update.value, note)

    return jax.eval_shape(message, shared, pytree.abstract(template), jax.random.key(0))


def message_bits(stage: Stage, template: PyTree) -> int:
    """Bits of the message that a client sends, its value and its notes together.

    The message is what the stage's client side makes of an update like the template,
    and its size that of its arrays as they are: a value of 4-bit codes takes half a
    byte an entry, an integer under a secure sum the bits of the modulus. It is known
    without running anything; sizes that depend on the data, which `elias_gamma` counts,
    are not in it.

    Args:
        stage: one stage, or several as `chain` puts them together.
        template: one client's value, arrays or `jax.ShapeDtypeStruct`.

    Raises:
        ValueError, TypeError: what the stage raises for such a value.
    """
    sent = message_of(stage, template)
    return sum(map(_bits, pytree.parts(sent, is_residues)))


def _bits(x: PyTree) -> int:
    """Those of an array, or of residues, which travel packed."""
    if is_residues(x):
        return x.words.size * x.bits
    return 8 * pytree.count_bytes(x)
