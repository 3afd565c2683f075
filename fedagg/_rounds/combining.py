"""A round whose clients are combined by a rule, and not by a sum."""

from collections.abc import Callable
from typing import Any

import jax

from fedagg._aggregator import Aggregator, Steps
from fedagg._execution.across import OverDevices
from fedagg._execution.sharing import shared_out
from fedagg._execution.ways import SumOver, at_once
from fedagg._messages.marks import Single
from fedagg._messages.message import Message, added
from fedagg._rounds.aggregator import checked_way
from fedagg._rounds.chain import check_length, merge_metrics
from fedagg._rounds.driver import Server, driven
from fedagg._rounds.parting import Parted
from fedagg._rounds.steps import (
    check_message,
    message_of,
    message_of_nobody,
    server_step,
    steps_of,
)
from fedagg._sentence import prints_as_its_call
from fedagg._trees import pytree, rowwise
from fedagg._trees.keys import as_key, fold_key, split_key
from fedagg._trees.kinds import array_leaves, check_kind, floats_of
from fedagg._trees.remembered import Remembered
from fedagg._types import Output, PyTree, Rule, Stage, Update

# Stream of a key for what the server makes of a client alone.
_ALONE = 2**32 - 5

Combine = Callable[[PyTree, Update, jax.Array | None], Output]


@prints_as_its_call
def combining(
    rule: Rule, *stages: Stage, sum_over: SumOver | None = None
) -> Aggregator:
    """Makes the `(init, next)` pair of a round whose clients a rule combines.

    What `aggregator` says of `init`, `next` and `steps` holds, but that the rule sees
    the values of all clients at once, after the stages, in place of their sum. Stages'
    notes are summed. The `add` of its steps puts values after one another, in memory
    for all clients.

    | after | the rule sees of a client |
    | --- | --- |
    | `zeroing` | zeros that count; with `keep_weight=False` nobody |
    | `quantization`, `top_k`, what codes | what is decoded, zero where none is sent |
    | `rotation`, `eden`, `drive` | its value, as its message alone is turned back |
    | `discretization` | its value, a multiple of the step |
    | `random_k` | what is sent, scaled as in a sum; zero where none is |
    | `grouped`, of a part that set it aside | zeros that count |

    The first stage whose traits declare `transforms`, as those of `rotation` do, and
    all after it are undone for each client: their `server` is asked with its value and
    its note alone, and once more with the sums, for what they keep and report. Stages
    before it get the rule's value. A chain, or `grouped`, counts as one stage.

    With `across(mesh)`, each device runs the stages of its own clients, and then the
    rule on its own coordinates of all clients: values go once from device to device,
    and none of them ever has more than its share. Norms and distances are sums over the
    devices.

    Args:
        rule: combines the clients' values, `median()`, say.
        *stages: left to right is a client's way to the rule.
        sum_over: a way to sum, for the stages and their notes; of `across(mesh)`, where
            clients are. None is `at_once()`. A number of clients that is no multiple of
            the devices costs a copy of all values on each.

    Raises:
        TypeError: if the rule, a stage or the way to sum is of another type.
        ValueError: if stages are in an order that `chain` refuses, or one of them is
            made for a sum: a secure one, noise for privacy, `modular_clipping`, and
            `mean`, whose place the rule takes; if a rule has no `combine_share` for
            `across`; in `next`, as `aggregator` does.
    """
    check_kind(Rule, rule=rule)
    parted = Parted.of(stages)
    whole = parted.whole
    for stage in stages:
        _check_stage(stage)
    sum_over = at_once() if sum_over is None else checked_way(sum_over)
    combine = rule.combine
    if isinstance(sum_over, OverDevices):
        combine = shared_out(rule, sum_over.mesh, sum_over.axis)

    def init(template: PyTree) -> PyTree:
        template = array_leaves(template, "template")
        state, seen = whole.init(template), template

        def value_of(state: PyTree, message: Message, key: jax.Array) -> PyTree:
            _, row = receive(message, parted.states(state), key)
            return floats_of(row.value, template)

        if stages:  # which may change shapes
            key = jax.random.key(0)
            message = message_of(shown, template)
            seen = jax.eval_shape(value_of, state, message, key)
        return Remembered.of(template, (state, rule.init(seen)))

    def broadcast(state: PyTree) -> PyTree:
        check_length(state, 2)
        return whole.broadcast(state[0])

    def client(shared: PyTree, update: Update, key: jax.Array | None):
        update, note = whole.client(shared, update, key)
        value = Single(update.value, update.weight)
        return update._replace(value=value), parted.marked(note)

    def but_values(message: Message) -> Message:
        """What is summed of a client."""
        return added(message._replace(value=(), present=()))

    def receive(message: Message, states: PyTree, key: Any) -> tuple[Message, Update]:
        """What is summed of a client, and what the rule gets of it."""
        summed, row = but_values(message), parted.row(message)
        if parted.undoes:
            value, row = parted.alone(states, row, fold_key(key, _ALONE))
            summed = summed._replace(value=value)
        return summed, row

    def add(total: Message | None, message: Message) -> Message:
        check_message("message", message)
        if isinstance(message.value, Update):  # of a total
            summed, value = message._replace(value=()), message.value
        else:
            summed = but_values(message)
            value = jax.tree.map(lambda x: x[None], parted.row(message))
        if total is not None:
            check_message("total", total)
            value = rowwise.append_rows(total.value, value)
            summed = pytree.add(total._replace(value=()), summed)
        return summed._replace(value=value)

    def finish(
        state: PyTree,
        total: Message,
        stacked: Update,
        key: Any,
        like: PyTree = None,
        by: Combine = combine,
    ) -> Output:
        check_length(state, 2)
        stage_key, rule_key = split_key(key, 2)
        like = Remembered.template_of(state) if like is None else like
        stacked = stacked._replace(value=floats_of(stacked.value, like))
        # Rules find entries again by comparing them. Without a barrier XLA works values
        # out anew for each reading of them, and may round them otherwise.
        stacked = jax.lax.optimization_barrier(stacked)
        combined = by(state[1], stacked, rule_key)
        value = combined.value
        if parted.undoes:
            value = total.value, value
        total = total._replace(value=value)
        output = server_step(ending, state[0], total, stage_key, like)
        return Output(
            Remembered.like(state, (output.state, combined.state)),
            output.value,
            merge_metrics(output.metrics, combined.metrics),
        )

    def told(state: PyTree) -> PyTree:
        return parted.states(state[0])

    def server(
        state: PyTree, total: Message | None, key: jax.Array | None = None
    ) -> Output:
        key = as_key(key)
        if total is None:  # as of one who is absent
            message = message_of_nobody(shown, state)
            total = pytree.zeros(jax.eval_shape(lambda x: add(None, x), message))
        check_message("total", total)
        stacked = total.value
        if parted.undoes:
            check_length(state, 2)
            key_alone = fold_key(key, _ALONE)
            value, stacked = parted.each_alone(told(state), stacked, key_alone)
            total = total._replace(value=value)
        return finish(state, total, stacked, key, by=rule.combine)

    shown = whole._replace(client=client, traits=parted.traits)
    ending = whole._replace(server=parted.server)
    steps = Steps(broadcast, steps_of(shown).client, add, server)
    # A rule leaves absent clients out itself. To write zeros for them would be a copy
    # of all values, which stages make anyway.
    to_server = Server(broadcast, receive, finish, not stages, told)
    next = driven(shown, to_server, sum_over)
    printed = ", ".join(map(repr, (rule, *stages)))
    return Aggregator(
        init, next, steps, lambda x: message_of(shown, x), rule=f"combining({printed})"
    )


def _check_stage(stage: Stage) -> None:
    """Raises a ValueError for a stage that is made for a sum."""
    traits = stage.traits
    if traits.is_secret:
        raise ValueError(
            "a rule combines the values of single clients, of which a secure sum shows "
            f"none: {traits.name} does not go with a rule."
        )
    if traits.is_private:
        raise ValueError(
            f"noise for privacy is made for a sum: {traits.name} does not go with a "
            "rule."
        )
    if traits.wraps:
        raise ValueError(
            "integers that wrap around are made for a sum, and of one client they mean "
            f"nothing: {traits.name} does not go with a rule. Leave it out."
        )
    if traits.weighs or traits.divides:
        raise ValueError(
            f"{traits.name} multiplies by clients' weights, or divides by their sum, "
            "and a rule takes the place of both. Leave mean() out."
        )
