"""The types that rounds are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fedagg._mechanism import Mechanism

PyTree = Any
WithMetrics = Callable[[PyTree, dict[str, Any]], tuple[PyTree, dict[str, Any]]]


class Update(NamedTuple):
    """What one client contributes.

    A client whose weight is zero, negative, infinite or NaN is absent. Stacked over
    clients, every leaf of `value` is `[n, ...]`, and `weight` is `[n]`.
    """

    value: PyTree  # like the template given to `init`
    weight: jax.Array  # []


class Output(NamedTuple):
    """What the server side of a round returns."""

    state: PyTree
    value: PyTree  # like the template given to `init`
    metrics: dict[str, jax.Array]  # flat, "name/quantity", the same keys every round


class Traits(NamedTuple):
    """Facts that a stage declares of itself, before anything is traced.

    `chain`, `aggregator`, `combining` and `secure_sum` refuse by these, when they are
    called, what would give a wrong number or no guarantee. What is not declared is
    taken for the worst: after a stage that is private, or codes, one must only read.

    Attributes:
        name: what errors call the stage.
        only_reads: it leaves every update and every sum as it is.
        codes: the server must decode its values, client by client, before it adds them.
        transforms: its coordinates or units are others; `server` undoes one client's.
        is_secret: the server learns the sum of its values, and of no client the value.
        is_private: noise hides what one client adds to the sum of its values.
        wraps: it sends integers that wrap around, of which only the sum has a meaning.
        is_bound: it bounds a client's value, by a norm, say.
        weighs: it multiplies a client's value by the client's weight.
        divides: it divides the sum by the clients' own weights, or by their number.
        tells: no noise hides what it learns of clients' values: no guarantee beside it.
        has_sizes: it notes sizes without a bound, which no secure sum has room for.
        counts: the names of those of its metrics that are numbers of clients.
        weight: the name of its metric that is the sum of weights that it divides by.
        mechanisms: the noise that it adds, on values or notes, for `guarantee`.
        smallest_cohort: the fewest clients that it has a sum of, if there is a limit.
        largest_cohort: the most clients that it has a sum of, if there is a limit.
        without_guarantee: it is meant to tell, as `without_guarantee` says.
        with_metrics: `(note, metrics) -> (note, metrics)`: the note takes some metrics.
        refused: `(note) -> []`, whether the stage set aside a client with this note.
        sentence: how the stage prints: the call that made it.
    """

    name: str = ""
    only_reads: bool = False
    codes: bool = False
    transforms: bool = False
    is_secret: bool = False
    is_private: bool = False
    wraps: bool = False
    is_bound: bool = False
    weighs: bool = False
    divides: bool = False
    tells: bool = False
    has_sizes: bool = False
    counts: tuple[str, ...] = ()
    weight: str = ""
    mechanisms: tuple[Mechanism, ...] = ()
    smallest_cohort: int | None = None
    largest_cohort: int | None = None
    without_guarantee: bool = False
    with_metrics: WithMetrics | None = None
    refused: Callable[[PyTree], jax.Array] | None = None
    sentence: str = ""


_UNDECLARED = Traits()


class Stage(NamedTuple):
    """One step of an update's way to the sum, and of the sum's way back.

    Attributes:
        init: `(template) -> state`.
        broadcast: `(state) -> shared`, all that clients learn of the state.
        client: `(shared, update, key) -> (update, note)`. It sees one client. A note is
            a small pytree of arrays that is summed over the clients too.
        server: `(state, total, note, key) -> Output`. The total and the note are sums
            over the present clients.
        traits: the facts that it declares.
    """

    init: Callable[[PyTree], PyTree]
    broadcast: Callable[[PyTree], PyTree]
    client: Callable[[PyTree, Update, jax.Array | None], tuple[Update, PyTree]]
    server: Callable[[PyTree, PyTree, PyTree, jax.Array | None], Output]
    traits: Traits = _UNDECLARED

    @classmethod
    def stateless(
        cls,
        client: Callable[[Update, jax.Array | None], tuple[Update, PyTree]],
        server: Callable[[PyTree, PyTree, Any], tuple[PyTree, dict]] | None = None,
        traits: Traits = _UNDECLARED,
    ) -> Stage:
        """A stage that remembers nothing, and tells clients nothing.

        Args:
            client: `(update, key) -> (update, note)`.
            server: `(total, note, key) -> (value, metrics)`. None returns the total.
            traits: the facts that it declares.
        """

        def of_client(shared: PyTree, update: Update, key: jax.Array | None):
            del shared
            return client(update, key)

        def of_server(state: PyTree, total: PyTree, note: PyTree, key: Any) -> Output:
            value, metrics = (total, {}) if server is None else server(total, note, key)
            return Output(state, value, metrics)

        return cls(lambda template: (), lambda state: (), of_client, of_server, traits)

    def __repr__(self) -> str:
        return self.traits.sentence or f"Stage({self.traits.name})"


def _update_noised_is_missing(state: PyTree, note: PyTree) -> PyTree:
    raise TypeError("a Bound with a sensitivity needs Bound(..., update_noised=...).")


class Bound(NamedTuple):
    """A bound on a statistic of a client, fixed or learnt from the clients.

    Stages ask it for its value and tell it each client's statistic, a norm, say. To
    write one, return it from a function of its options. This one follows twice the mean
    of the clients' statistics, of which NaN is taken for the bound::

        def twice_the_mean(first: float) -> Bound:
            def note(shared, x):  # at a client
                told = jnp.where(x <= shared, x, shared)
                return told, jnp.float32(1.0)

            def update(state, note, key):  # at the server, from the sum of the notes
                told, count = note
                mean = told / jnp.where(count > 0.0, count, 1.0)
                return jnp.where(count > 0.0, 2.0 * mean, state)

            return Bound(
                init=lambda: jnp.float32(first),
                broadcast=lambda state: state,
                value=lambda shared: shared,
                note=note,
                update=update,
            )

        aggregator(clipping(twice_the_mean(1.0)), mean())

    Attributes:
        init: `() -> state`.
        broadcast: `(state) -> shared`, all that clients learn of the state.
        value: `(shared) -> []`, the bound itself, in float32.
        note: `(shared, x) -> note`, what one client reports of its statistic `x` `[]`.
        update: `(state, note, key) -> state`, from the sum of the notes.
        sentence: how the bound prints: the call that made it.
        sensitivity: how far one client moves the sum of the notes, in L2 norm: zero for
            a bound that learns nothing, infinite (not to be private) if nobody said.
        stddev: of the noise that `update` adds to each entry of that sum.
        update_noised: `(state, note) -> state`, from a sum that has its noise already.
        draw_error: of `update`'s noise from such Gaussian noise, in total variation.
    """

    init: Callable[[], PyTree]
    broadcast: Callable[[PyTree], PyTree]
    value: Callable[[PyTree], jax.Array]
    note: Callable[[PyTree, jax.Array], PyTree]
    update: Callable[[PyTree, PyTree, jax.Array | None], PyTree]
    sentence: str = "Bound()"
    sensitivity: float = math.inf
    stddev: float = 0.0
    update_noised: Callable[[PyTree, PyTree], PyTree] = _update_noised_is_missing
    draw_error: float | None = None

    @property
    def mechanism(self) -> Mechanism | None:
        """What learning costs, for `epsilon`: None if nothing, or without any noise."""
        if not (0.0 < self.sensitivity < math.inf and self.stddev > 0.0):
            return None
        error = self.draw_error
        made = Mechanism.gaussian(self.stddev / self.sensitivity)
        return made if error is None else made._replace(draw_error=lambda x: error)

    @property
    def tells(self) -> bool:
        """Whether it learns something that no noise hides."""
        return self.sensitivity > 0.0 and self.mechanism is None

    def __repr__(self) -> str:
        return self.sentence


class Rule(NamedTuple):
    """Combines clients other than by a sum.

    To write one, return it from a function of its options. Values are stacked,
    `[n, ...]`, and a client of weight zero is absent: it must change nothing, whatever
    it holds. This one takes the value of the client with the most weight::

        def heaviest() -> Rule:
            def combine(state, updates, key):
                at = jnp.argmax(updates.weight)
                is_anyone = updates.weight[at] > 0.0
                value = jax.tree.map(
                    lambda x: jnp.where(is_anyone, x[at], 0), updates.value
                )
                return Output(state, value, {"heaviest/weight": updates.weight[at]})

            return Rule(init=lambda template: (), combine=combine)

        combining(heaviest(), clipping(1.0))

    Attributes:
        init: `(template) -> state`.
        combine: `(state, updates, key) -> Output`, of an `Update` stacked over clients.
        sentence: how the rule prints: the call that made it.
        combine_share: `(state, updates, key, share) -> Output`, the same on a device
            with arrays `[n, k]`, a part of each client: `share.add` sums what is
            additive, `share.cut` takes a tree's part, `share.join` is its inverse.
    """

    init: Callable[[PyTree], PyTree]
    combine: Callable[[PyTree, Update, jax.Array | None], Output]
    sentence: str = "Rule()"
    combine_share: Callable[[PyTree, Update, Any, Any], Output] | None = None

    def __repr__(self) -> str:
        return self.sentence
