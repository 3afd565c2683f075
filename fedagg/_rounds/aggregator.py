"""A round of stages whose clients' values are summed."""

from typing import Any

from fedagg._aggregator import Aggregator
from fedagg._execution.ways import SumOver, by_size
from fedagg._messages.message import Message, added
from fedagg._messages.reveals import revealed
from fedagg._rounds.chain import chain
from fedagg._rounds.driver import Server, driven
from fedagg._rounds.order import refusal
from fedagg._rounds.steps import message_of, server_step, steps_of
from fedagg._sentence import prints_as_its_call
from fedagg._trees.kinds import array_leaves, check_function, described
from fedagg._trees.remembered import Remembered
from fedagg._types import Output, PyTree, Stage


@prints_as_its_call
def aggregator(*stages: Stage, sum_over: SumOver | None = None) -> Aggregator:
    """Makes the `(init, next)` pair of a round from stages.

    `init(template)` takes one client's value (arrays or `jax.ShapeDtypeStruct`) and
    returns the state of the first round, a tuple of the stages' states.

    `next(state, updates, weights=None, key=None, *, work=None, memory=None)` is one
    round, and returns an `Output`:

    - `updates` has a leading axis of clients `[n, ...]` on every leaf; `weights` `[n]`
      are 1 where not given. A client whose weight is zero, negative, infinite or NaN is
      absent: it changes nothing, whatever its value holds. Bools say who is present,
      as one and zero. Without `mean` among the stages the result is a sum, unweighted.
    - With nobody present the value is zero and the state stays as it was. Stages with
      noise add it all the same, and count the round.
    - `key` is needed by stages that draw. Client `i` has the key
      `jax.random.fold_in(key, i)`, so that every way to sum draws the same.
    - With `work`, a row of `updates` is whatever a client has (its data, indices into a
      data set), and `work(row, key) -> (value, metrics)` makes the client's value
      inside the sum. Where the value is an `Update`, its weight takes the place of the
      one in `weights`, which then says who is present. The `metrics`, a dict of
      scalars, come back as means over the present clients, weighted. A client whose
      metric is not finite is left out of that metric, NaN is that of nobody. After a
      private stage no metric of the work comes back, but for those that
      `noised_metrics` takes: no noise hides the others. Whoever wants them has
      `without_guarantee`.
    - With `memory`, what each client kept of earlier rounds, `[n, ...]` on every leaf,
      `work(row, key, memory) -> (value, metrics, memory)` returns what it keeps now,
      and `next` returns `(Output, memory)`. It is never summed. A client that is
      absent, or that a stage set aside, keeps what it had.

    The value comes back in the dtypes of the clients' values; sums are made in float32
    or wider. Nothing is compiled here: put `jax.jit` around `next`.

    `steps` is the same round taken apart, functions for a server and for one client,
    and `message(template)` is what a client sends.

    Args:
        *stages: left to right is a client's way to the sum.
        sum_over: a way to sum: `at_once()`, `in_chunks(size)`, `across(mesh)`. None
            chooses from the sizes and the backend.

    Raises:
        TypeError: if a stage or the way to sum is of another type; in `next`, for a
            leaf of a dtype that a stage does not take.
        ValueError: if stages are in an order that `chain` refuses; in `init`, if
            something is told of clients beside a private stage, which none declared; in
            `next`, for leaves that disagree on the number of clients, updates that are
            one client's, weights of another shape, no rows at all, or a missing key.
    """
    whole = chain(*stages)
    sum_over = checked_way(sum_over)

    def init(template: PyTree) -> PyTree:
        template = array_leaves(template, "template")
        _check_guarantee(whole, template)
        return Remembered.of(template, whole.init(template))

    def receive(message: Message, told: PyTree, key: Any) -> tuple[Message, PyTree]:
        del told, key
        return added(message), ()

    def finish(
        state: PyTree, total: Message, stacked: PyTree, key: Any, like: PyTree
    ) -> Output:
        del stacked
        return server_step(whole, state, total, key, like)

    next = driven(whole, Server(whole.broadcast, receive, finish), sum_over)
    steps = steps_of(whole)
    return Aggregator(init, next, steps, lambda x: message_of(whole, x), whole)


def _check_guarantee(whole: Stage, template: PyTree) -> None:
    """Raises a ValueError for a private round that tells what it did not declare."""
    if not whole.traits.is_private or whole.traits.without_guarantee:
        return
    for part in revealed(whole, template):
        if part.by_value or part.by_size:
            raise ValueError(refusal(f"{part.part} of {whole}", whole.traits.name))


def checked_way(sum_over: Any) -> SumOver:
    """The way to sum, or the default.

    Raises:
        TypeError: if it is none.
    """
    if sum_over is None:
        return by_size
    try:
        check_function("(fn, clients)", sum_over=sum_over)
    except TypeError:
        raise TypeError(
            "sum_over: expected a way to sum, as at_once(), in_chunks(size) or "
            f"across(mesh) return it, got {described(sum_over)}."
        ) from None
    return sum_over
