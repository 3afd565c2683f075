"""The type of a round: the pair `init, next`, and the same round taken apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, Protocol, overload

import jax

from fedagg._types import Output, PyTree, Stage


class Steps(NamedTuple):
    """A round taken apart: four pure functions that run on different machines.

    `next` of an aggregator is one way to drive them. A server that waits for clients,
    or adds what arrives late, is another.

    Attributes:
        broadcast: `(state) -> shared`, all that clients are told, at the server.
        client: `(shared, row, weight, key[, memory]) -> message`, at one client. With a
            memory, what the client kept of earlier rounds, it returns
            `(message, memory)`.
        add: `(total, message) -> total`, at the server, which decodes the message. The
            total of nobody is None. Two totals are added likewise.
        server: `(state, total, key=None) -> Output`, at the server.
    """

    broadcast: Callable[[PyTree], PyTree]
    client: Callable[..., Any]
    add: Callable[[PyTree, PyTree], PyTree]
    server: Callable[..., Output]


class Next(Protocol):
    """The type of `next` of an aggregator: with a memory, it returns one as well."""

    @overload
    def __call__(
        self,
        state: PyTree,
        updates: PyTree,
        weights: Any = None,
        key: jax.Array | None = None,
        *,
        work: Callable[..., Any] | None = None,
        memory: None = None,
    ) -> Output: ...

    @overload
    def __call__(
        self,
        state: PyTree,
        updates: PyTree,
        weights: Any = None,
        key: jax.Array | None = None,
        *,
        work: Callable[..., Any] | None = None,
        memory: PyTree,
    ) -> tuple[Output, PyTree]: ...


def _steps_are_missing(*args: Any, **named: Any) -> NoReturn:
    del args, named
    raise TypeError(
        "this aggregator cannot be taken apart: it was made by hand without steps, or "
        "keeps something of every client at the server, as with_error_feedback and "
        "buffered_averaging do."
    )


_NO_STEPS = Steps(*[_steps_are_missing] * 4)


def _message_is_missing(template: PyTree) -> NoReturn:
    del template
    raise TypeError(
        "expected an Aggregator that `aggregator` or a recipe made; a pair made by hand"
        " says nothing of its messages. Give its stages, chain(*stages), or where only "
        "`next` is another, aggregator._replace(next=...)."
    )


class _Pair(NamedTuple):
    init: Callable[[PyTree], PyTree]
    next: Next


class Aggregator(_Pair):
    """A round, as a pair of pure functions: `init, next = aggregator`.

    Attributes:
        init: `(template) -> state`. The template is one client's value, as arrays or as
            `jax.ShapeDtypeStruct`.
        next: `(state, updates, weights=None, key=None, *, work=None, memory=None) ->
            Output`, or `(Output, memory)` if a memory is given.
        steps: the same round as `Steps`, one for each machine that takes part. Those of
            a pair made by hand raise a TypeError.
        message: `(template) -> message`, what a client with a value like the template
            sends, as shapes and dtypes. That of a pair made by hand raises a TypeError.
        stage: its stages as one, for what asks them. None where a rule combines the
            clients, and of a pair made by hand.
        sentence: how the aggregator prints: the call that made it.
        rule: how the rule and its stages print, where a rule combines the clients, also
            those of a training; else empty.
    """

    steps: Steps
    message: Callable[[PyTree], PyTree]
    stage: Stage | None
    sentence: str
    rule: str

    def __new__(
        cls,
        init: Callable[[PyTree], PyTree],
        next: Callable[..., Any],
        steps: Steps = _NO_STEPS,
        message: Callable[[PyTree], PyTree] = _message_is_missing,
        stage: Stage | None = None,
        sentence: str = "Aggregator()",
        rule: str = "",
    ) -> Aggregator:
        self = super().__new__(cls, init, next)
        self.steps, self.message, self.stage = steps, message, stage
        self.sentence, self.rule = sentence, rule
        return self

    def _replace(self, **changes: Any) -> Aggregator:
        """This aggregator with another `next`, jitted, say, and the same steps."""
        same = self._asdict() | {
            "steps": self.steps,
            "message": self.message,
            "stage": self.stage,
            "sentence": self.sentence,
            "rule": self.rule,
        }
        return type(self)(**(same | changes))

    def __repr__(self) -> str:
        return self.sentence


def has_steps(aggregator: Aggregator) -> bool:
    """Whether it can be taken apart."""
    return aggregator.steps is not _NO_STEPS
