"""The client's side: a mod that sends an aggregator's message in place of a model."""

import hashlib
import secrets
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedagg import secagg
from fedagg._aggregator import Aggregator
from fedagg._deployment.wire import Wire
from fedagg._privacy.secret import secret_key
from fedagg.flower._flwr import ConfigRecord, Context, Message, MessageType
from fedagg.flower._records import KEY, arrays_of, content_of, context_of, is_secure
from fedagg.secagg._demands import AnyPlan

_TRIPS = 3  # after the first: shares, a masked vector, openings
_Call = Callable[[Message, Context], Message]


def fedagg_mod(
    aggregator: Aggregator, *, weighted_by_key: str = "num-examples", **demands: Any
) -> Callable[[Message, Context, _Call], Message]:
    """A mod for clients of a server with `FedAgg` of the same aggregator.

    The app below it trains as it does for `FedAvg`: it gets the model, and returns its
    own and a number of examples. What is sent is the aggregator's message for the
    change of the model, and nothing else: no metrics, which would be in the clear.

    Flower may run each trip of a secure round in another process. So what a client
    needs for the next one, secrets and all, is in its `Context.state` until the round
    is over, which Flower keeps on the client's machine. Who could make Flower go back
    to an older state has two of one client: plans that claim something against a server
    that lies, `signed` ones, are refused, and hybrid ones too.

    Args:
        aggregator: the round.
        weighted_by_key: the metric that is the client's weight.
        **demands: what is asked of plans, further options of
            `secagg.Demands.for_aggregator`, as `smallest_cohort`.

    Raises:
        ValueError: in a round, for a message that is none of `FedAgg` of this
            aggregator, and for a reply without one model and the metric.
        ContradictionError: in a round, for a plan that is not as demanded.

    Reference: Reddi et al., "Adaptive Federated Optimization", 2021, algorithm 1.
    """
    make_message = jax.jit(aggregator.steps.client)

    def mod(message: Message, context: Context, call_next: _Call) -> Message:
        if message.metadata.message_type.split(".")[0] != MessageType.TRAIN:
            return call_next(message, context)
        ours = message.content.get(KEY)
        if not isinstance(ours, ConfigRecord):
            raise ValueError("Expected a message of a server with FedAgg.")
        if "step" in ours:
            return _replying(message, _next_step(context, ours["step"]))
        model = _only(message.content.array_records)
        before = arrays_of(model)
        wire = Wire(aggregator, before)
        number, told = ours["round"], ours["told"]
        shared = wire.decode_shared(told, number)
        index = None
        if is_secure(aggregator):  # before work is done for it
            index = _place(aggregator, before, message, context, demands)

        reply = call_next(message, context)
        if reply.has_error():
            return reply
        trained = _only(reply.content.array_records)
        weight = _only(reply.content.metric_records)[weighted_by_key]
        change = [
            trained[name].numpy() - x for name, x in zip(model, before, strict=True)
        ]
        made = make_message(shared, change, np.float32(weight), secret_key())
        if index is None:
            return _replying(message, wire.encode(made, number))
        context.state[KEY] = ConfigRecord(
            {
                "plan": ours["plan"],
                "index": index,
                "vector": secagg.vector_of(made).tobytes(),
                "seed": secrets.token_bytes(32),
                "heard": [],
            }
        )
        return _replying(message, _next_step(context))

    return mod


def _place(
    aggregator: Aggregator,
    model: list[np.ndarray],
    message: Message,
    context: Context,
    demands: dict[str, Any],
) -> int:
    """The number of this node in the plan that a message offers.

    Raises:
        ContradictionError: if the plan is not as demanded.
    """
    content, ours = message.content, message.content[KEY]
    plan = secagg.Plan.decode(ours["plan"])
    cohort = np.frombuffer(ours["cohort"], ">u8").tolist()
    known = context_of(cohort, content, ours["told"])
    secagg.Demands.for_aggregator(aggregator, model, known, **demands).check(plan)
    if plan.number != ours["round"] or plan.signed or plan.hybrid:
        raise secagg.ContradictionError(
            f"Expected a plan of round {ours['round']}, neither signed nor hybrid, got "
            f"{plan}."
        )
    return cohort.index(context.node_id)


def _next_step(context: Context, *heard: bytes) -> bytes:
    """What a client answers, after all that it heard before."""
    kept = context.state.pop(KEY)  # who refuses has nothing left
    told = [*kept["heard"], *heard]
    plan = secagg.Plan.decode(kept["plan"])
    vector = np.frombuffer(kept["vector"], np.uint32)
    client = secagg.Client(
        plan, kept["index"], vector, AnyPlan(), random=_drawn_from(kept["seed"])
    )
    answer = client.respond()
    for message in told:
        answer = client.respond(message)
    if len(told) < _TRIPS:
        kept["heard"] = told
        context.state[KEY] = kept
    return answer


def _drawn_from(seed: bytes) -> Callable[[int], bytes]:
    """Bytes that are the same in each trip, and known to who has the seed."""
    count = 0

    def draw(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(seed + count.to_bytes(8)).digest(size)

    return draw


def _replying(message: Message, answer: bytes) -> Message:
    return Message(content_of(message=answer), reply_to=message)


def _only(records: Any) -> Any:
    """The one record of a kind.

    Raises:
        ValueError: if there are more, or none.
    """
    if len(records) != 1:
        raise ValueError(f"Expected one record of a kind, got {list(records)}.")
    return next(iter(records.values()))
