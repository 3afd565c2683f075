"""The budget of a run: how much of it is spent, and when to stop."""

from typing import Any, NamedTuple

import numpy as np

from fedagg._aggregator import Aggregator
from fedagg._privacy.composition import Run, event_of, library, spent
from fedagg._privacy.guarantee import run_of
from fedagg._privacy.samplers import Sampler
from fedagg._trees import checks
from fedagg._types import PyTree, Stage


class Spent(NamedTuple):
    """What a budget remembers beside a training: saved and restored as any state."""

    rounds: np.ndarray  # [] int64, released so far


class Budget(NamedTuple):
    """A ledger of the rounds of a run, as `budget` makes it.

    Attributes:
        rounds: how many the target allows.
        target_epsilon: what is not overspent.
        delta: of the guarantee.
        run: the rounds that the target allows, for an accountant.
        accountant: "pld" or "rdp".
        earlier: what was spent before, a `DpEvent`, or None.
    """

    rounds: int
    target_epsilon: float
    delta: float
    run: Run
    accountant: str
    earlier: Any

    def init(self) -> Spent:
        """Nothing spent."""
        return Spent(np.zeros((), np.int64))

    def allows(self, state: Spent) -> bool:
        """Whether another round stays within the target."""
        return bool(state.rounds < self.rounds)

    def next(self, state: Spent) -> Spent:
        """One round more: called before the round is released.

        Raises:
            ValueError: if it would be overspent.
        """
        if not self.allows(state):
            raise ValueError(
                f"the budget is spent: {self.rounds} rounds come to an epsilon of "
                f"{self.epsilon(state):.4g}, and another to more than "
                f"{self.target_epsilon}."
            )
        return Spent(np.asarray(state.rounds, np.int64) + 1)

    def epsilon(self, state: Spent) -> float:
        """The epsilon so far, what was spent earlier included."""
        return _epsilon(self, int(state.rounds))

    def event(self, state: Spent) -> Any:
        """All so far as a `DpEvent`, what was spent earlier included.

        Raises:
            ValueError: if integers for noise are accounted by a curve.
        """
        events = [] if self.earlier is None else [self.earlier]
        if state.rounds > 0:
            events.append(event_of(self.run._replace(rounds=int(state.rounds)))[0])
        return library().ComposedDpEvent(events)


def budget(
    aggregator: Aggregator | Stage,
    template: PyTree,
    target_epsilon: float,
    delta: float,
    *,
    neighbors: str,
    participation: float | Sampler = 1.0,
    accountant: str = "pld",
    earlier: Any = None,
    most_rounds: int = 2**20,
) -> Budget:
    """A ledger for the rounds of an aggregator, which stops before it is overspent.

    `state = budget.init()`, and before each round `state = budget.next(state)`, while
    `budget.allows(state)`. The state is a tuple of one NumPy array, which Flax and
    Orbax save with the rest; a run that is restored goes on from what was spent.
    Another aggregator, less noise from here on, say, is another budget, with the
    `event` of the last one as what was spent `earlier`. Clients' own work and keys are
    as in `guarantee`, which also says what draws add to `delta`.

    Args:
        aggregator: as in `guarantee`.
        template: as in `guarantee`.
        target_epsilon: the most that epsilon may come to. Positive.
        delta: as in `epsilon`, and so are the next three.
        neighbors: likewise.
        participation: likewise.
        accountant: likewise.
        earlier: what was spent before, on the same clients and in the same relation, as
            a `DpEvent` of dp-accounting. None is nothing.
        most_rounds: beyond which none is looked for.

    Raises:
        ValueError: as `guarantee` does; if what was spent earlier is above the target;
            with a curve, for something `earlier`.
        TypeError: as `guarantee` does.
        ImportError: if `dp-accounting` is not there.

    Reference: Rogers et al., "Privacy Odometers and Filters: Pay-as-you-Go
        Composition", 2016, section 1, for what is decided before the run.
    """
    checks.check_positive(target_epsilon=target_epsilon)
    checks.check_within("(0, 1)", delta=delta)
    checks.check_whole(1, most_rounds=most_rounds)
    run = run_of(aggregator, template, 1, neighbors, participation, accountant)
    made = Budget(0, target_epsilon, delta, run, accountant, earlier)
    if _epsilon(made, 0) > target_epsilon:
        raise ValueError(
            f"earlier: {_epsilon(made, 0):.4g} is spent already, above "
            f"{target_epsilon=}."
        )
    low, high = 0, 1
    while high <= most_rounds and _epsilon(made, high) <= target_epsilon:
        low, high = high, 2 * high
    high = min(high, most_rounds + 1)
    while high - low > 1:
        middle = (low + high) // 2
        fits = _epsilon(made, middle) <= target_epsilon
        low, high = (middle, high) if fits else (low, middle)
    return made._replace(rounds=low)


def _epsilon(budget: Budget, rounds: int) -> float:
    if rounds > 0:
        run = budget.run._replace(rounds=rounds)
        return spent(run, budget.delta, budget.accountant, budget.earlier)
    if budget.earlier is None:
        return 0.0
    nothing = budget.run._replace(mechanisms=(), curves=(), rounds=1)
    return spent(nothing, budget.delta, budget.accountant, budget.earlier)
