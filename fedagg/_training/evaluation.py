"""Evaluation: what a model is worth to each client, by its own held-out examples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from fedagg._aggregator import Aggregator, Steps
from fedagg._sentence import prints_as_its_call
from fedagg._training.checked import count_clients_of
from fedagg._training.own_models import own_models
from fedagg._training.own_results import (
    Metric,
    check_metrics,
    own_result,
    sums_of_examples,
)
from fedagg._training.population import RememberingWork
from fedagg._training.reporting import Summed, reported
from fedagg._trees import checks, table
from fedagg._trees.kinds import array_leaves, check_function, check_kind, types_of
from fedagg._types import Output, PyTree, Traits, Update


class EvaluationState(NamedTuple):
    """What an evaluation carries on: the model in it may be replaced by another."""

    variables: PyTree
    aggregator: PyTree


@prints_as_its_call
def federated_evaluation(
    predict: Callable[[PyTree, Any], Any],
    metrics: Mapping[str, Metric],
    aggregator: Aggregator,
    *,
    after: Callable[..., Any] | RememberingWork | None = None,
    personal: Callable[[PyTree, PyTree], PyTree] | None = None,
    batch_size: int = 32,
    percentiles: Sequence[float] = (10.0, 50.0, 90.0),
    bins: Mapping[str, Any] | None = None,
    per_client: bool = False,
) -> Aggregator:
    """Makes an evaluation on clients' held-out examples, as an `(init, next)` pair.

    `init((variables, client_data))` takes the model and data as those of a round, for
    their shapes alone. `next(state, client_data, weights=None, key=None)` returns an
    `Output` whose value has `total`, each metric over all examples of all clients;
    `histograms`; and `clients`, each metric of each client. For the model of another
    round: `state._replace(variables=variables)`. Weights say who is present, whatever
    they are. The work of a client runs inside the aggregator's sum, which is of float32
    sums: use `aggregator()`, or `aggregator(secure_sum(chain(), bound, ...))`.

    Client data are rows as `local_training` takes them, of pairs (inputs, targets), and
    a client costs the batches that it has. With `after` or `personal` they are a dict:
    "held_out", and beside it "training", what `after` trains on, and "memory", the
    clients' memories `[n, ...]`.

    Reports for each metric that is a scalar, by its name: its total, by example;
    `{name}/by_client`, the mean of the clients' own, each counting the same;
    `{name}/percentile_10` and so on; `{name}/lowest_tenth` and `{name}/highest_tenth`,
    the means over the tenth of clients with the least and the most. For all metrics
    `{name}/not_finite`, how many clients' own is not; `evaluation/clients` and
    `evaluation/examples`. With `after`, names are "before/accuracy", "after/accuracy".

    | | |
    | --- | --- |
    | a client without examples | is absent |
    | a client's metric that is not finite | counted, seen in `clients`, in no mean |
    | a client's sum that is not finite | the total is NaN; with noise, a zero |
    | percentiles and tenths, without bins | from the clients' own numbers, sorted |
    | with bins; where sums are secure or private | from a histogram, to within a bin |
    | under such sums without bins, and by `steps` | not reported |
    | `clients` under such sums, and by `steps` | None |
    | an aggregator that divides, as `mean()` | counts are shares, the rest the same |

    Args:
        predict: `(variables, inputs) -> outputs`, such as `model.apply`.
        metrics: pairs `(sums, finalize)` by their names. `sums(outputs, targets)` are
            numbers of each example, a tree of arrays `[b, ...]`, and `finalize(sums)`
            is a number, or an array, of their sum. `fedagg.metrics` has some.
        aggregator: what sums, `aggregator()`: no rule, no bound without noise.
        after: client work, that a client's model is trained by before it is evaluated
            again. A `RememberingWork` is given the server's model and the memory, other
            work the client's model.
        personal: `(variables, memory) -> variables`, a client's own model.
        batch_size: examples that a client predicts at once.
        percentiles: over clients, of each scalar metric, in percent.
        bins: edges `[b + 1]` of histograms over clients, by the name of the metric.
            What is beyond the ends is in the outer bins.
        per_client: whether the value has each client's metrics.

    Raises:
        TypeError: if an argument is of another type; in `init` and `next`, for client
            data of another kind.
        ValueError: if a number is out of range, clients are bounded or combined by a
            rule, bins do not rise or are of no metric; if work that remembers comes
            without `personal`; in `next`, for sums that are not of each example.

    Reference: Wang et al., "Federated Evaluation of On-device Personalization", 2019,
        section 3; Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018.
    """
    bins = {} if bins is None else bins
    check_function("(variables, inputs)", predict=predict)
    check_metrics(metrics, bins)
    check_kind(Aggregator, aggregator=aggregator)
    checks.check_whole(1, batch_size=batch_size)
    for q in percentiles:
        checks.check_within("[0, 100]", percentiles=q)
    if isinstance(after, RememberingWork) and personal is None:
        raise ValueError(
            "after: work that remembers needs personal=, a client's model by its "
            "memory: lambda variables, memory: variables, if it is the server's."
        )
    if aggregator.rule:
        raise ValueError(f"aggregator: {aggregator} makes no sum: take aggregator().")
    traits = Traits() if aggregator.stage is None else aggregator.stage.traits
    if traits.is_bound and not traits.is_private:
        raise ValueError(
            f"aggregator: {aggregator} bounds what a client adds, here sums over its "
            "examples. Take aggregator(), or zeroing=False, clipping=False."
        )
    is_hidden = traits.is_private or traits.is_secret
    names = ("held_out",)
    names += ("training",) * (after is not None) + ("memory",) * (personal is not None)
    asked = {
        prefix + name: (metric, bins.get(name))
        for prefix in ([""] if after is None else ["before/", "after/"])
        for name, metric in metrics.items()
    }

    def evaluate(variables: PyTree, row: Any, key: Any) -> tuple[Update, dict, dict]:
        """What a client adds, no metrics of a round, and what it alone comes to."""
        held_out, own = own_models(variables, row, key, after, personal)
        results, alone, count = {}, {}, jnp.float32(0.0)
        for prefix, model in own.items():
            sums, count = sums_of_examples(
                predict, metrics, batch_size, model, held_out
            )
            for name in metrics:
                made = own_result(*asked[prefix + name], sums[name])
                results[prefix + name], alone[prefix + name] = made
        update = Update(Summed(results, jnp.float32(1.0), count), jnp.sign(count))
        return update, {}, alone

    def add(variables: PyTree, row: Any, key: Any) -> tuple[Update, dict]:
        return evaluate(variables, row, key)[:2]

    def add_and_keep(
        variables: PyTree, row: Any, key: Any, memory: dict
    ) -> tuple[Update, dict, dict]:
        update, _, alone = evaluate(variables, row, key)
        return update, {}, {name: alone[name] for name in memory}

    def of_one(variables: PyTree, client_data: PyTree) -> tuple[Update, dict, dict]:
        """What one of the clients makes, as shapes."""

        def of_first(variables: PyTree, client_data: PyTree) -> Any:
            rows, examples = table.apart(client_data)
            row = table.together(jax.tree.map(lambda x: x[0], rows), examples)
            return evaluate(variables, row, jax.random.key(0))

        return jax.eval_shape(of_first, variables, _checked(client_data, names))

    def init(template: PyTree) -> EvaluationState:
        if not isinstance(template, tuple) or len(template) != 2:
            raise TypeError(
                "init: expected a pair (variables, client_data), the model and data as "
                f"those of a round; got a {type(template).__name__}."
            )
        variables = array_leaves(template[0], "variables")
        update = of_one(variables, template[1])[0]
        return EvaluationState(variables, aggregator.init(update.value))

    def next(
        state: EvaluationState,
        client_data: PyTree,
        weights: Any = None,
        key: jax.Array | None = None,
    ) -> Output:
        n = count_clients_of(_checked(client_data, names))
        shapes = of_one(_checked_state(state).variables, client_data)[2]
        silent = {
            name: jnp.full((n, *x.shape), jnp.nan)
            for name, x in shapes.items()
            if per_client or not x.ndim
        }
        given = state.aggregator, client_data, weights, key
        if is_hidden or not silent:
            work = Partial(add, state.variables)
            return finish(state, aggregator.next(*given, work=work), None)
        work = Partial(add_and_keep, state.variables)
        return finish(state, *aggregator.next(*given, work=work, memory=silent))

    def finish(
        state: EvaluationState, output: Output, alone: dict[str, jax.Array] | None
    ) -> Output:
        given = output.value, alone, percentiles, traits.is_private
        value, found = reported(asked, *given)
        if not per_client:
            value = value._replace(clients=None)
        metrics = output.metrics | found
        return Output(EvaluationState(state.variables, output.state), value, metrics)

    def broadcast(state: EvaluationState) -> EvaluationState:
        shared = aggregator.steps.broadcast(_checked_state(state).aggregator)
        return EvaluationState(state.variables, shared)

    def client(
        shared: EvaluationState, row: Any, weight: Any = 1.0, key: Any = None
    ) -> PyTree:
        work = Partial(add, shared.variables)
        return aggregator.steps.client(
            shared.aggregator, _checked(row, names), weight, key, work=work
        )

    def server(state: EvaluationState, total: PyTree, key: Any = None) -> Output:
        output = aggregator.steps.server(state.aggregator, total, key)
        return finish(state, output, None)

    steps = Steps(broadcast, client, aggregator.steps.add, server)
    return aggregator._replace(init=init, next=next, steps=steps)


def _checked(client_data: PyTree, names: tuple[str, ...]) -> PyTree:
    """Client data, if they have what is asked for.

    Raises:
        TypeError: if they have not.
    """
    if len(names) > 1 and not (
        isinstance(client_data, dict) and client_data.keys() == set(names)
    ):
        raise TypeError(
            f"client_data: expected a dict of {', '.join(names)}, since there is "
            f"after= or personal=; got {types_of(client_data)}."
        )
    return client_data


def _checked_state(state: Any) -> EvaluationState:
    if not isinstance(state, EvaluationState):
        raise TypeError(
            "state: expected that of init or of the last evaluation, with another "
            f"model state._replace(variables=variables); got {types_of(state)}."
        )
    return state
