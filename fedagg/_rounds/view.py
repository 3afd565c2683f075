"""What a client sends, before it is sent: its size, and what the server sees of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedagg._aggregator import Aggregator
from fedagg._messages.message import Message, count_bits
from fedagg._messages.payload import inside, is_payload, parts_of
from fedagg._messages.reveals import acted_on
from fedagg._rounds.steps import message_of
from fedagg._trees.kinds import array_leaves, described, instead
from fedagg._types import PyTree, Stage


class Seen(NamedTuple):
    """A part of the message, and how it reaches the server."""

    part: str  # its path, beginning with "value" or "note"
    shape: tuple[int, ...]
    dtype: str
    how: str  # "in the clear", "plain sum" or "secure sum modulo 2**bits"
    noised: bool  # whether what is released of its sum is noised for privacy
    follows: bool = False  # whether what was learnt without noise acts on it


class ServerView(NamedTuple):
    """All parts of a message. Prints as a table."""

    parts: tuple[Seen, ...]

    def __str__(self) -> str:
        rows = [("part", "shape", "dtype", "the server sees")]
        rows += [(x.part, str(list(x.shape)), x.dtype, x.how) for x in self.parts]
        if any(x.noised or x.follows for x in self.parts):
            released = [_released(x) for x in self.parts]
            noise = ["released with noise", *released]
            rows = [(*row, x) for row, x in zip(rows, noise, strict=True)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join(lines)


def _released(x: Seen) -> str:
    if x.follows:
        return "NO: a bound without noise"
    return "yes" if x.noised else "NO"


def server_view(
    aggregator: Aggregator | Stage, template: PyTree, *, row: PyTree = None
) -> ServerView:
    """Lists, leaf by leaf, what reaches the server of what a client sends.

    "in the clear": of each client by itself, as what must be decoded before it is
    added, or what a rule combines. "plain sum": the server needs the sum only, but sees
    each client's part unless something else adds for it. "secure sum modulo 2**bits":
    the sum of integers is all that it learns. Of a training, with a `row`, metrics that
    its work sends are listed as well, each a plain sum of the metric times the weight
    and one of weights. To an `aggregator` work is not known before `next`, and its
    metrics come on top. After a private stage none is sent, but for those that
    `noised_metrics` takes, which are notes.

    What is seen is not what is private: a sum tells of its parts, and a bound that
    clients taught without noise tells of them in later rounds too. Where a stage noises
    sums at the server, the view says of each part whether what is released of it (in
    the value, in metrics, in what later rounds use) is noised. "NO" is that of a part
    without noise, as a count, and of all parts that something learnt without noise acts
    on, whatever noise they have: no epsilon is finite. The server itself sees sums
    before their noise, but for those of integers that clients noise, as in
    `skellam_noise`, which are marked too. Noise that makes a value private by itself,
    as `local_gaussian_noise`, is part of it and not marked; weights and notes have
    none.

    Args:
        aggregator: what `aggregator`, `combining`, `federated_averaging` or a recipe
            made, or a stage. With another `next` in it, `aggregator._replace(next=...)`
            keeps what is asked for here.
        template: one client's value, arrays or `jax.ShapeDtypeStruct`; of a training,
            the model.
        row: one client's row of client data, of a training alone, for the metrics.

    Raises:
        TypeError: if `aggregator` is neither, or a pair made by hand.
        ValueError, TypeError: what its stages raise for such a value, and its work for
            such a row.
    """
    message = _message_of(aggregator, template, "aggregator")
    parts = _seen("value", message.value, "plain sum", False)
    parts += _seen("note", message.note, "plain sum", False)
    stage = aggregator.stage if isinstance(aggregator, Aggregator) else aggregator
    if stage is not None and any(x.noised for x in parts):
        marks = zip(parts, acted_on(stage, template), strict=True)
        parts = [
            x._replace(noised=x.noised and not y, follows=y and x.noised)
            for x, y in marks
        ]
    if row is not None:
        metrics = _sent_of(aggregator, template, row).metrics
        parts += _seen("metrics", metrics, "plain sum", False)
    return ServerView(tuple(parts))


def _sent_of(aggregator: Any, template: PyTree, row: PyTree) -> Message:
    """The message of a client with such a row, as shapes and dtypes."""

    def shared(template: PyTree) -> PyTree:
        return aggregator.steps.broadcast(aggregator.init(template))

    told, one = jax.eval_shape(shared, template), jnp.float32(1.0)
    sent = jax.eval_shape(aggregator.steps.client, told, row, one, jax.random.key(0))
    return sent if isinstance(sent, Message) else sent[0]  # beside what it keeps


def message_bits(stage: Aggregator | Stage, template: PyTree) -> int:
    """Bits of the message that a client sends, its value and its notes together.

    The message is what the client side makes of an update like the template. Its size
    is the sum of the sizes of its arrays: a value of 4-bit codes takes half a byte an
    entry, an integer under a secure sum the bits of the modulus. Nothing is run to find
    it, so that sizes which depend on the data, as `elias_gamma` counts them, are not in
    it.

    Args:
        stage: what `aggregator`, `combining`, `federated_averaging` or a recipe made;
            or one stage, or several as `chain` puts them together.
        template: one client's value, arrays or `jax.ShapeDtypeStruct`; of a training,
            the model.

    Raises:
        TypeError: if `stage` is neither, or a pair made by hand.
        ValueError, TypeError: what the stage raises for such a value.
    """
    message = _message_of(stage, template, "stage")
    return count_bits((message.value, message.note))


def _message_of(x: Aggregator | Stage, template: PyTree, argument: str) -> Message:
    if isinstance(x, Stage):
        return message_of(x, array_leaves(template, "template"))
    if not isinstance(x, Aggregator):
        raise TypeError(
            f"{argument}: expected a Stage, or an Aggregator that `aggregator` or a "
            f"recipe made, got {described(x)}.{instead(Aggregator, x)}"
        )
    return x.message(array_leaves(template, "template"))


def _seen(path: str, x: PyTree, how: str, is_noised: bool) -> list[Seen]:
    """What is seen of a part, and of the parts that it marks."""
    seen = []
    for name, part in parts_of(x):
        here = path + name
        if not is_payload(part):
            seen.append(Seen(here, part.shape, str(part.dtype), how, is_noised))
            continue
        how_of_it = part.seen() if how == "plain sum" else how
        for name_in_part, inner in inside(part):
            if part.marks:
                name_in_part = name_in_part.removeprefix(f".{part.marks}")
            noised = is_noised or part.is_noised
            seen += _seen(here + name_in_part, inner, how_of_it, noised)
    return seen
