"""What the server sees of a client's message."""

from typing import NamedTuple

from fedagg._messages.clipped import Clipped, NoisedNote
from fedagg._messages.residues import is_residues, is_wrapping
from fedagg._rounds.message import message_of
from fedagg._trees import pytree
from fedagg._types import Aggregator, PyTree, Stage


class Seen(NamedTuple):
    """A part of the message, and how it reaches the server."""

    part: str  # its path, beginning with "value" or "note"
    shape: tuple[int, ...]
    dtype: str
    how: str  # "in the clear", "plain sum" or "secure sum modulo 2**bits"
    noised: bool  # whether what is released of its sum is noised for privacy


class ServerView(NamedTuple):
    """All parts of a message. Prints as a table."""

    parts: tuple[Seen, ...]

    def __str__(self) -> str:
        rows = [("part", "shape", "dtype", "the server sees")]
        rows += [(x.part, str(list(x.shape)), x.dtype, x.how) for x in self.parts]
        if any(x.noised for x in self.parts):
            released = ["yes" if x.noised else "NO" for x in self.parts]
            noise = ["released with noise", *released]
            rows = [(*row, x) for row, x in zip(rows, noise, strict=True)]
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
    top, each a plain sum of the metric times the weight and one of weights, which no
    stage noises.

    What is seen is not what is private: a sum tells of its parts, and a bound that
    clients taught without noise tells of them in later rounds too. Behind a stage that
    noises sums at the server, the view says of each part whether what is released of it
    (in the value, in metrics, in what later rounds use) is noised: what is marked "NO",
    as the notes of a `zeroing` before `gaussian_noise`, is outside of the guarantee.
    The server itself sees sums before their noise, but for those of integers that
    clients noise, as in `skellam_noise`, which are marked too. Noise that makes a value
    private by itself, as `local_gaussian_noise`, is part of it and not marked; weights
    and notes have none.

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
    for path, x in pytree.parts_with_names(sent.value, _is_one):
        parts += _seen("value" + path, x, is_summed)
    for path, x in pytree.parts_with_names(sent.note, _is_one):
        parts += _seen("note" + path, x, True)
    return ServerView(tuple(parts))


def _is_one(x: PyTree) -> bool:
    kinds = is_residues, is_wrapping, pytree.is_code, _is_noised
    return any(is_kind(x) for is_kind in kinds)


def _is_noised(x: PyTree) -> bool:
    return isinstance(x, (Clipped, NoisedNote))


def _seen(name: str, x: PyTree, is_summed: bool) -> list[Seen]:
    if is_wrapping(x):
        # The clients themselves have noised these.
        seen = []
        for path, part in pytree.parts_with_names(x.integers, is_residues):
            seen += _seen(name + path, part, is_summed)
        return [y._replace(noised=True) for y in seen]
    if is_residues(x):
        how = f"secure sum modulo 2**{x.bits}"
        return [Seen(name, x.words.shape, str(x.words.dtype), how, False)]
    noised = _is_noised(x)
    is_added = is_summed and (noised or not pytree.is_code(x))
    how = "plain sum" if is_added else "in the clear"
    # A clipped value is added as what it holds.
    return [
        Seen(name + path, y.shape, str(y.dtype), how, noised)
        for path, y in pytree.parts_with_names(x[0] if noised else x, lambda y: False)
    ]
