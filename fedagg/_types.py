"""The six types that everything in fedagg is made of."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PyTree = Any


class Update(NamedTuple):
    """What one client contributes.

    A client of weight zero is absent, and so is one whose weight is negative, infinite
    or not a number. Stacked over clients, every leaf of `value` has a leading axis
    `[n, ...]` and `weight` is `[n]`.
    """

    value: PyTree  # like the template given to `init`
    weight: jax.Array  # []


class Output(NamedTuple):
    """What the server side of a round returns."""

    state: PyTree
    value: PyTree  # like the template given to `init`
    metrics: dict[str, jax.Array]  # flat, "name/quantity", the same keys every round


class Stage(NamedTuple):
    """One step of an update's way to the sum, and of the sum's way back.

    Attributes:
        init: `(template) -> state`.
        broadcast: `(state) -> shared`, all that clients learn of the state.
        client: `(shared, update, key) -> (update, note)`. It sees one client. A note is
            a small pytree of arrays that is summed over the clients too.
        server: `(state, total, note, key) -> Output`. The total and the note are sums
            over the present clients.
    """

    init: Callable[[PyTree], PyTree]
    broadcast: Callable[[PyTree], PyTree]
    client: Callable[[PyTree, Update, jax.Array | None], tuple[Update, PyTree]]
    server: Callable[[PyTree, PyTree, PyTree, jax.Array | None], Output]


class Bound(NamedTuple):
    """A bound on a statistic of a client, fixed or learnt from the clients.

    Attributes:
        init: `() -> state`.
        broadcast: `(state) -> shared`, all that clients learn of the state.
        value: `(shared) -> []`, the bound itself, in float32.
        note: `(shared, x) -> note`, what one client reports of its statistic `x` `[]`.
        update: `(state, note, key) -> state`, from the sum of the notes.
    """

    init: Callable[[], PyTree]
    broadcast: Callable[[PyTree], PyTree]
    value: Callable[[PyTree], jax.Array]
    note: Callable[[PyTree, jax.Array], PyTree]
    update: Callable[[PyTree, PyTree, jax.Array | None], PyTree]


class Rule(NamedTuple):
    """Combines clients other than by a sum.

    Attributes:
        init: `(template) -> state`.
        combine: `(state, updates, key) -> Output`, where `updates` is an `Update`
            stacked over clients.
    """

    init: Callable[[PyTree], PyTree]
    combine: Callable[[PyTree, Update, jax.Array | None], Output]


class Aggregator(NamedTuple):
    """A round, as a pair of pure functions.

    Attributes:
        init: `(template) -> state`. The template is one client's value, as arrays or as
            `jax.ShapeDtypeStruct`.
        next: `(state, updates, weights=None, key=None, *, work=None) -> Output`.
    """

    init: Callable[[PyTree], PyTree]
    next: Callable[..., Output]
