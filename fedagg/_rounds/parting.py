"""Stages before a rule, parted at the first whose messages are in other terms.

Those from there on are undone for each client by itself, so that the rule sees values.
Those before get what the rule makes of these, in place of a sum.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from fedagg._messages.marks import Single
from fedagg._messages.message import Message
from fedagg._rounds.chain import chain, check_length, merge_metrics
from fedagg._trees import pytree, rowwise
from fedagg._trees.keys import split_key
from fedagg._trees.weights import is_present
from fedagg._types import Output, PyTree, Stage, Traits, Update


class Sent(NamedTuple):
    """What the server keeps of a client's message to undo it."""

    value: PyTree  # as it is decoded
    note: PyTree  # of the stages to undo


class Parted(NamedTuple):
    """Stages as one, and as two chains: one for the rule's value, one to undo."""

    whole: Stage
    first: Stage
    undone: Stage
    at: int  # how many are in the first

    @classmethod
    def of(cls, stages: Sequence[Stage]) -> "Parted":
        transforms = (i for i, x in enumerate(stages) if x.traits.transforms)
        at = next(transforms, len(stages))
        return cls(chain(*stages), chain(*stages[:at]), chain(*stages[at:]), at)

    @property
    def undoes(self) -> bool:
        """Whether there is anything to undo."""
        return self.undone.traits.transforms

    def marked(self, note: PyTree) -> PyTree:
        """A client's note, of which the server needs by itself what it undoes with."""
        return (*note[: self.at], *map(Single, note[self.at :]))

    def _unmarked(self, note: PyTree) -> PyTree:
        return (*note[: self.at], *(x.value for x in note[self.at :]))

    @property
    def traits(self) -> Traits:
        """Those of all stages, for notes that are marked."""
        traits = self.whole.traits
        refused, take = traits.refused, traits.with_metrics
        if refused is not None:
            traits = traits._replace(refused=lambda note: refused(self._unmarked(note)))
        if take is not None:

            def with_metrics(note: PyTree, metrics: dict[str, Any]):
                note, left = take(self._unmarked(note), metrics)
                return self.marked(note), left

            traits = traits._replace(with_metrics=with_metrics)
        return traits

    def states(self, state: PyTree) -> PyTree:
        """Of the state of all, what it takes to undo."""
        return state[self.at :]

    def row(self, message: Message) -> Update:
        """What is stacked of a client's message."""
        weight = pytree.keep(message.present, message.value.weight)
        value = message.value.decode()
        if self.undoes:
            value = Sent(value, self._unmarked(message.note)[self.at :])
        return Update(value, weight)

    def alone(
        self, states: PyTree, row: Update, key: jax.Array | None
    ) -> tuple[PyTree, Update]:
        """What is summed of a row, and what the server makes of that row alone.

        As in a sum, an absent client's value is zeros.
        """
        value, note = pytree.widen(row.value)
        value = pytree.keep(is_present(row.weight), value)
        made = self.undone.server(states, value, note, key)
        return value, row._replace(value=made.value)

    def each_alone(
        self, states: PyTree, stacked: Update, key: jax.Array | None
    ) -> tuple[PyTree, Update]:
        """The same of stacked rows, summed and stacked."""
        keys = key
        if key is not None:
            keys = jax.random.split(key, len(stacked.weight))
        alone = jax.vmap(self.alone, in_axes=(None, 0, 0))
        values, made = alone(states, stacked, keys)
        return rowwise.sum_over_clients(values), made

    def server(
        self, state: PyTree, total: PyTree, note: PyTree, key: jax.Array | None
    ) -> Output:
        """The server of all stages, of a rule's value.

        Where there is something to undo, of a pair of the sum of what clients sent and
        the rule's value: states and metrics of the stages undone are those of the sum.
        """
        if not self.undoes:
            return self.whole.server(state, total, note, key)
        check_length(state, len(note))
        note = self._unmarked(note)
        summed, combined = total
        keys = split_key(key, 2)
        first = self.first.server(state[: self.at], combined, note[: self.at], keys[0])
        undone = self.undone.server(state[self.at :], summed, note[self.at :], keys[1])
        return Output(
            (*first.state, *undone.state),
            first.value,
            merge_metrics(first.metrics, undone.metrics),
        )
