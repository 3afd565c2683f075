"""Stages, a way to sum or a rule, put together into a round."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from fedagg._execution.ways import SumOver, by_size
from fedagg._messages.residues import is_residues
from fedagg._rounds.chain import chain, check_length, is_private, merge_metrics
from fedagg._trees import checks, pytree
from fedagg._trees.keys import split_key
from fedagg._trees.weights import as_weights, is_present
from fedagg._types import Aggregator, Output, PyTree, Rule, Stage, Update

# Streams of keys beside the clients', which are numbered from zero.
_SERVER, _CLIENT_STAGES = 2**32 - 1, 2**32 - 2

Work = Callable[[Any, jax.Array | None], tuple[PyTree, dict[str, jax.Array]]]


class _Client(NamedTuple):
    """A row of the round's input."""

    row: PyTree  # the update, or what `work` makes it of
    weight: jax.Array  # []
    index: jax.Array  # [] uint32


class _Shared(NamedTuple):
    """What all clients of a round have in common."""

    work: Partial
    shared: PyTree  # what the stages broadcast
    key: jax.Array | None
    key_of_stages: jax.Array | None


def aggregator(
    *stages: Stage, rule: Rule | None = None, sum_over: SumOver | None = None
) -> Aggregator:
    """Makes the `(init, next)` pair of a round from stages.

    `init(template)` takes one client's value (arrays or `jax.ShapeDtypeStruct`) and
    returns the state of the first round.

    `next(state, updates, weights=None, key=None, *, work=None)` is one round:

    - `updates` has a leading axis of clients `[n, ...]` on every leaf; `weights` `[n]`
      are 1 where not given. A client whose weight is zero, negative, infinite or NaN is
      absent: it changes nothing, whatever its value holds. Without `mean` among the
      stages the result is a sum, unweighted.
    - With nobody present, the value is zero and the state stays, but for noise.
    - `key` is needed by stages that draw. Client `i` gets keys that depend on `key` and
      `i` alone, so that every way to sum draws the same.
    - With `work`, a row of `updates` is whatever a client has (its data, indices into a
      data set), and `work(row, key) -> (value, metrics)` makes the client's value
      inside the sum, with the key `jax.random.fold_in(key, i)`. Its `metrics`, a dict
      of scalars, come back as means over the present clients, weighted by `weights`; a
      client whose metric is not finite is left out of that metric.

    The value comes back in the dtypes of the clients' values; sums are made in float32
    or wider. Nothing is compiled here: put `jax.jit` around `next`.

    Args:
        *stages: left to right is a client's way to the sum.
        rule: combines the clients' values in place of a sum; without `mean`, then.
        sum_over: a way to sum: `at_once()`, `in_chunks(size)`, `across(mesh)`. None
            chooses from the sizes and the backend.

    Raises:
        TypeError: if a stage or the rule is of another type; in `next`, for a leaf of a
            dtype that a stage does not take.
        ValueError: if both `rule` and `sum_over` are given; in `next`, for leaves that
            disagree on the number of clients, weights of another shape, no rows at all,
            or a missing key.
    """
    whole = chain(*stages)
    if rule is not None and not isinstance(rule, Rule):
        raise TypeError(f"rule: expected a Rule, got {rule!r}.")
    if rule is not None and sum_over is not None:
        raise ValueError(
            "sum_over does not go with a rule, which sees all clients at once."
        )
    sum_over = by_size if sum_over is None else sum_over

    def init(template: PyTree) -> PyTree:
        state = whole.init(template)
        return state if rule is None else (state, rule.init(template))

    def message_of(round_of: _Shared, client: _Client):
        value, metrics = _value_of(round_of, client)
        value = pytree.keep(is_present(client.weight), value)
        update, note = whole.client(
            round_of.shared,
            Update(value, client.weight),
            _fold(round_of.key_of_stages, client.index),
        )
        return update, (note, _note_metrics(metrics, client.weight))

    def contribution(round_of: _Shared, client: _Client):
        update, notes = message_of(round_of, client)
        value = pytree.widen(pytree.decode(update.value))
        return pytree.keep(is_present(update.weight), value), notes

    def next(
        state: PyTree,
        updates: PyTree,
        weights: jax.Array | None = None,
        key: jax.Array | None = None,
        *,
        work: Work | None = None,
    ) -> Output:
        n = checks.count_clients(updates)
        clients = _Client(
            jax.tree.map(jnp.asarray, updates),
            as_weights(weights, n),
            jnp.arange(n, dtype=jnp.uint32),
        )
        stage_state, rule_state = state, None
        if rule is not None:
            check_length(state, 2)
            stage_state, rule_state = state
        key_of_server = _fold(key, _SERVER)
        # All arrays that clients share are arguments, for `across` to hand on.
        round_of = _Shared(
            pytree.as_partial(_as_it_is if work is None else work),
            whole.broadcast(stage_state),
            key,
            _fold(key, _CLIENT_STAGES),
        )

        value, metrics = jax.eval_shape(
            _value_of, round_of, pytree.abstract_row(clients)
        )
        checks.check_numeric(value, "updates")
        _check_metrics(metrics)
        if rule is None:
            total, (note, metrics_note) = sum_over(
                Partial(contribution, round_of), clients
            )
            output = whole.server(stage_state, total, note, key_of_server)
            metrics = output.metrics
        else:
            stacked, notes = jax.vmap(Partial(message_of, round_of))(clients)
            note, metrics_note = pytree.sum_over_clients(notes)
            if any(map(is_residues, pytree.parts(stacked.value, is_residues))):
                raise ValueError(
                    "a rule combines the values of single clients, of which a secure "
                    "sum shows none."
                )
            stacked = stacked._replace(value=jax.vmap(pytree.decode)(stacked.value))
            stage_key, rule_key = split_key(key_of_server, 2)
            combined = rule.combine(rule_state, stacked, rule_key)
            output = whole.server(stage_state, combined.value, note, stage_key)
            if "mean/weight" in output.metrics:
                raise ValueError(
                    "mean() does not go with a rule, which takes its place."
                )
            if is_private(output.metrics):
                raise ValueError(
                    "noise for privacy is made for a sum; it does not go with a rule."
                )
            output = output._replace(state=(output.state, combined.state))
            metrics = merge_metrics(output.metrics, combined.metrics)
        return Output(
            output.state,
            pytree.cast_like(output.value, value),
            merge_metrics(metrics, _means(metrics_note)),
        )

    vars(next)["sent"] = whole, rule is None  # for `server_view`
    return Aggregator(init, next)


def _as_it_is(row: PyTree, key: jax.Array | None):
    """The work of clients whose rows are their updates."""
    del key
    return row, {}


def _value_of(round_of: _Shared, client: _Client):
    """A client's value and its own metrics."""
    made = round_of.work(client.row, _fold(round_of.key, client.index))
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], dict)):
        raise TypeError(
            "work: expected a pair (value, metrics) with metrics a dict of scalars, "
            f"got {made!r}."
        )
    return made


def keys_of_client(
    key: jax.Array | None, index: jax.Array
) -> tuple[jax.Array | None, jax.Array | None]:
    """What a client draws with: its work, and its stages."""
    return _fold(key, index), _fold(_fold(key, _CLIENT_STAGES), index)


def _fold(key: jax.Array | None, stream: int | jax.Array) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, stream)


def _check_metrics(metrics: dict[str, jax.ShapeDtypeStruct]) -> None:
    for name, x in metrics.items():
        if x.shape:
            raise ValueError(
                f"work: expected scalars as metrics; {name!r} has shape {x.shape}."
            )


def _note_metrics(metrics: dict[str, jax.Array], weight: jax.Array) -> PyTree:
    """Each metric as (weight times metric, weight), or zeros where it says nothing."""

    def note(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jnp.asarray(x).astype(jnp.float32)
        says = is_present(weight) & jnp.isfinite(x)
        return jnp.where(says, weight * x, 0.0), jnp.where(says, weight, 0.0)

    return {name: note(x) for name, x in metrics.items()}


def _means(notes: PyTree) -> dict[str, jax.Array]:
    """Weighted means; zero where nobody said anything."""
    return {
        name: jnp.where(weight > 0.0, total / jnp.where(weight > 0.0, weight, 1.0), 0.0)
        for name, (total, weight) in notes.items()
    }
