"""A client's message as a vector of the protocol, and the protocol's total as a sum.

The words of all parts come after one another, in the order of the message's leaves.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedagg._aggregator import Aggregator
from fedagg._messages.message import Message
from fedagg._messages.payload import inside, is_payload, parts_of
from fedagg._messages.residues import Residues
from fedagg._trees import pytree
from fedagg._trees.kinds import array_leaves, check_kind
from fedagg._types import PyTree

_MOST_CLIENTS = 2**32 - 1


class Form(NamedTuple):
    """What the protocol has to know of an aggregator."""

    message: PyTree  # of a client, as shapes and dtypes
    length: int  # of its vector
    bits: int  # of an entry
    smallest_cohort: int
    largest_cohort: int


def form_of(aggregator: Aggregator, template: PyTree) -> Form:
    """The form of an aggregator's messages.

    Raises:
        ValueError: if a part would be in the clear, or parts have different bits.
        TypeError: if `aggregator` is none with a message.
    """
    check_kind(Aggregator, aggregator=aggregator)
    message = aggregator.message(array_leaves(template, "template"))
    parts = _parts(message)
    smallest = largest = None
    if aggregator.stage is not None:
        traits = aggregator.stage.traits
        smallest, largest = traits.smallest_cohort, traits.largest_cohort
    return Form(
        message,
        sum(x.words.size for x in parts),
        parts[0].modulus_bits,
        2 if smallest is None else max(2, smallest),
        _MOST_CLIENTS if largest is None else largest,
    )


def vector_of(message: PyTree) -> np.ndarray:
    """Makes a client's message a vector for `Client`, uint32 `[length]`.

    Args:
        message: what `steps.client` of an aggregator under a secure sum returned.

    Raises:
        ValueError: if a part of it would be in the clear, with its name: metrics of a
            client's work, for which it is to return none.
        TypeError: for what no client sends.

    Reference: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving
        Machine Learning", 2017, section 4.
    """
    if not isinstance(message, Message):
        kind = type(message).__name__
        raise TypeError(
            f"message: expected what `client` of an aggregator's steps returned, got a "
            f"{kind}. One that keeps a memory returns (message, memory)."
        )
    words = [np.asarray(x.words, np.uint32).reshape(-1) for x in _parts(message)]
    return np.concatenate(words)


def total_of(aggregator: Aggregator, template: PyTree, total: np.ndarray) -> PyTree:
    """Makes the sum of vectors, `Server.total`, the total that `steps.server` takes.

    Args:
        aggregator: the round.
        template: one client's value, as in `Plan.for_aggregator`.
        total: uint32 `[length]`.

    Raises:
        ValueError: if the sum has another length or dtype, and as
            `Plan.for_aggregator` does.
        TypeError: if `aggregator` is no Aggregator with a message.

    Reference: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving
        Machine Learning", 2017, section 4.
    """
    form = form_of(aggregator, template)
    total = np.asarray(total)
    if total.dtype != np.uint32 or total.shape != (form.length,):
        shown = f"{total.dtype} {list(total.shape)}"
        raise ValueError(f"Expected a sum uint32 [{form.length}], got {shown}.")
    leaves, structure = pytree.flatten(form.message)
    ends = np.cumsum([0, *(x.size for x in leaves)])
    words = [
        jnp.asarray(total[start:end]).reshape(x.shape)
        for x, start, end in zip(leaves, ends, ends[1:], strict=False)
    ]
    return pytree.unflatten(structure, words)


def _parts(message: PyTree) -> list[Residues]:
    """The parts of a message, all of them integers modulo one power of two.

    Raises:
        ValueError: for any others.
    """
    found = _under("", message)
    bits = {x.modulus_bits for _, x in found}
    if len(bits) > 1:
        listed = ", ".join(f"{path} modulo 2**{x.modulus_bits}" for path, x in found)
        raise ValueError(
            f"Expected one modulus, since more bits than a part has would tell more of "
            f"its sum than is meant; got {listed}. Give all secure sums the same bits."
        )
    if not bits:
        raise ValueError("Expected a message with something in it.")
    return [x for _, x in found]


def _under(path: str, x: PyTree) -> list[tuple[str, Residues]]:
    found = []
    for name, part in parts_of(x):
        here = path + name
        if isinstance(part, Residues):
            found.append((here, part))
        elif is_payload(part) and part.marks and part.is_added:
            for inner, y in inside(part):
                found += _under(here + inner, y)
        else:
            raise ValueError(
                f"{here.removeprefix('.')} would be in the clear: only what is under a "
                "secure sum goes through the protocol. Put all stages into "
                "secure_sum, or secure_modular_sum."
            )
    return found
