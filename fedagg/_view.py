"""What the server sees of a client's message."""

from typing import NamedTuple

from fedagg import _tree
from fedagg._message import message_of
from fedagg._residues import is_residues
from fedagg._types import Aggregator, PyTree, Stage


class Seen(NamedTuple):
    """A part of the message, and how it reaches the server."""

    part: str  # its path, beginning with "value" or "note"
    shape: tuple[int, ...]
    dtype: str
    how: str  # "in the clear", "plain sum" or "secure sum modulo 2**bits"


class ServerView(NamedTuple):
    """All parts of a message. Prints as a table."""

    parts: tuple[Seen, ...]

    def __str__(self) -> str:
        rows = [("part", "shape", "dtype", "the server sees")]
        rows += [(x.part, str(list(x.shape)), x.dtype, x.how) for x in self.parts]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join(lines)


def server_view(aggregator: Aggregator | Stage, template: PyTree) -> ServerView:
    """Lists, leaf by leaf, what reaches the server of what a client sends.

    "in the clear": of each client by itself, as what must be decoded before it is
    added, or what a rule combines. "plain sum": the server needs the sum only, but sees
    each client's part unless something else adds for it. "secure sum modulo 2**bits":
    the sum of integers is all that it learns. The metrics that `work` reports come on
    top, each a plain sum of the metric times the weight and one of weights.

    What is seen is not what is private: a sum tells of its parts, and a bound that
    clients taught without noise tells of them in later rounds too.

    Args:
        aggregator: what `aggregator` or a recipe made, or a stage.
        template: one client's value, arrays or `jax.ShapeDtypeStruct`.

    Raises:
        TypeError: if `aggregator` is neither, or made by hand: give its stages, then.
        ValueError, TypeError: what its stages raise for such a value.
    """
    if isinstance(aggregator, Stage):
        stage, is_summed = aggregator, True
    elif isinstance(aggregator, Aggregator) and "sent" in vars(aggregator.next):
        stage, is_summed = vars(aggregator.next)["sent"]
    else:
        raise TypeError(
            "aggregator: expected a Stage, or an Aggregator that `aggregator` or a "
            f"recipe made; got {aggregator!r}."
        )
    sent = message_of(stage, template)
    parts = []
    for path, x in _tree.parts_with_names(sent.value, _is_one):
        parts += _seen("value" + path, x, is_summed)
    for path, x in _tree.parts_with_names(sent.note, _is_one):
        parts += _seen("note" + path, x, True)
    return ServerView(tuple(parts))


def _is_one(x: PyTree) -> bool:
    return is_residues(x) or _tree.is_code(x)


def _seen(name: str, x: PyTree, is_summed: bool) -> list[Seen]:
    if is_residues(x):
        how = f"secure sum modulo 2**{x.bits}"
        return [Seen(name, x.words.shape, str(x.words.dtype), how)]
    how = "plain sum" if is_summed and not _tree.is_code(x) else "in the clear"
    return [
        Seen(name + path, y.shape, str(y.dtype), how)
        for path, y in _tree.parts_with_names(x, lambda y: False)
    ]
