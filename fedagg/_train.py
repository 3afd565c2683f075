"""A training loop for people: cohorts, evaluation, checkpoints, logs and a budget."""

import contextlib
import math
import os
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedagg._aggregator import Aggregator
from fedagg._logs import MetricsWriter
from fedagg._privacy.budget import Budget
from fedagg._privacy.samplers import Sampler
from fedagg._training.checkpoints import opened
from fedagg._training.cohorts import fetched, trained
from fedagg._training.memories import ClientMemories
from fedagg._trees import checks
from fedagg._trees.keys import as_key
from fedagg._trees.kinds import check_kind, described
from fedagg._trees.weights import as_weights
from fedagg._types import PyTree

# Streams of the key beside those of the rounds, which are numbered from zero.
_TURNS, _COHORTS = 2**32 - 1, 2**32 - 2


class Round(NamedTuple):
    """What `train` yields."""

    number: int  # from zero
    state: PyTree  # of the training, after this round
    metrics: dict[str, Any]  # of the round, and of the evaluation where there was one


class _Run(NamedTuple):
    """All that a run goes on from: saved and restored."""

    training: PyTree
    draws: PyTree  # of the sampler
    spent: PyTree  # of the budget
    key: PyTree
    rounds: np.ndarray  # [] done
    least: np.ndarray  # [] of what is minimized
    waited: np.ndarray  # [] evaluations since


def train(
    training: Aggregator,
    variables: PyTree,
    client_data: PyTree,
    sampler: Sampler,
    *,
    rounds: int,
    key: jax.Array,
    weights: Any = None,
    memories: ClientMemories | None = None,
    evaluate: Callable[[PyTree], Mapping[str, Any]] | None = None,
    every: int = 10,
    minimized: str | None = None,
    patience: int = 5,
    folder: str | os.PathLike[str] | None = None,
    tensorboard: bool = False,
    budget: Budget | None = None,
    progress: bool = False,
) -> Generator[Round]:
    """Trains in rounds, and yields each of them.

    `for number, state, metrics in train(...)` may be left at any time. The next cohort
    is drawn and copied while one trains. Of a training with `clients=`, which takes
    clients' numbers too, client data are `(table, np.arange(len(table)))`. Memories
    that do not fit the device are `memories=`, of a training without `clients=`: rows
    of the next cohort are read meanwhile, and those of who was there written back.

    With a folder, metrics go to `metrics.jsonl` in it, and the whole run is saved there
    by Orbax, every so many rounds and at the end. A call with the same arguments goes
    on from what was saved, to the bit as if it had not been interrupted: it takes its
    key from there, so that one that is secret need not be kept elsewhere. The folder is
    as secret as the key. Memories must be in a folder too, with commits of this run
    alone, and go back to those of the checkpoint.

    A loop of one's own is `for`, `sampler.next` and `training.next`: nothing else here
    is needed.

    Args:
        training: as `federated_averaging` makes it.
        variables: the model to begin with.
        client_data: of all clients, of which a cohort has some rows: a `ClientTable`,
            a tree of arrays `[clients, ...]`, or of both. Of a table whose examples are
            on the host, those of a cohort are copied.
        sampler: who is in a round, such as `fixed_size(10, len(table))`.
        rounds: how many, at most.
        key: for all draws.
        weights: of all clients `[clients]`, such as `table.sizes`. None is one each.
        memories: of all clients, on the host. Without a folder nothing is committed.
        evaluate: `(variables) -> metrics`, scalars by their names, every so many rounds
            and after the last.
        every: rounds from one evaluation, and one checkpoint, to the next.
        minimized: the metric of `evaluate` to stop by.
        patience: evaluations in a row without a new least, after which the run ends.
        folder: for checkpoints and logs. None saves nothing.
        tensorboard: as in `MetricsWriter`.
        budget: ends the run before it is overspent. `privacy/epsilon`, what is spent,
            is among the metrics of rounds with an evaluation.
        progress: whether to show a bar.

    Yields:
        A `Round`: its number, the state after it, and metrics.

    Raises:
        ValueError: if a number is out of range; if `minimized` is no metric of
            `evaluate`, or comes without it; if logs are asked for without a folder;
            for memories of other clients, or, with a folder, of no or another run.
        TypeError: if an argument is of another type.
        ImportError: without Orbax, where there is a folder, or tqdm, where there is a
            bar: `pip install 'fedagg[train]'`.
    """
    check_kind(Aggregator, training=training)
    if not isinstance(sampler, Sampler):
        raise TypeError(
            "sampler: expected a Sampler, as fixed_size(10, clients) returns it, got "
            f"{described(sampler)}."
        )
    checks.check_whole(0, rounds=rounds)
    checks.check_whole(1, every=every, patience=patience)
    if minimized is not None and evaluate is None:
        raise ValueError(f"{minimized=} is a metric of evaluate, got evaluate=None.")
    if tensorboard and folder is None:
        raise ValueError("tensorboard=True needs a folder, got folder=None.")
    key = checks.check_key(as_key(key), "train", "cohorts")
    n = checks.count_clients(client_data, "client_data")
    sizes = np.asarray(as_weights(weights, n))
    if memories is not None and len(memories) != n:
        raise ValueError(f"memories: expected those of {n} clients, got {memories}.")
    first = _Run(
        training.init(variables),
        sampler.init(n, jax.random.fold_in(key, _TURNS)),
        None if budget is None else budget.init(),
        *(key, np.asarray(0), np.asarray(math.inf), np.asarray(0)),
    )

    def goes_on(run: _Run) -> bool:
        is_allowed = budget is None or budget.allows(run.spent)
        return bool(run.rounds < rounds and run.waited < patience and is_allowed)

    def finished(run: _Run, value: PyTree, metrics: dict[str, Any]) -> _Run:
        """After a round that is evaluated: metrics are added."""
        if budget is not None:
            metrics["privacy/epsilon"] = budget.epsilon(run.spent)
        if evaluate is not None:
            metrics |= evaluate(value)
        return run if minimized is None else _judged(run, metrics, minimized)

    def each() -> Generator[Round]:
        with contextlib.ExitStack() as stack:
            run, save, write, advance = first, _nothing, _nothing, _nothing
            if folder is not None:
                run, save = opened(stack, folder, first, memories)
                log = MetricsWriter(folder, tensorboard=tensorboard)
                write = stack.enter_context(log).write
            if progress:
                advance = _bar(stack, int(run.rounds), rounds)
            drawn = jax.random.fold_in(run.key, _COHORTS)
            left = rounds - int(run.rounds)
            cohorts = fetched(
                *(jax.jit(sampler.next), run.draws, drawn, left),
                *(client_data, sizes, memories),
            )
            ahead = stack.enter_context(contextlib.closing(cohorts))
            next_round = jax.jit(training.next)
            while goes_on(run):
                number = int(run.rounds)
                cohort = next(ahead)
                # Before the round is released.
                spent = None if budget is None else budget.next(run.spent)
                own = jax.random.fold_in(run.key, number)
                state, value, metrics = trained(
                    next_round, run.training, cohort, own, memories
                )
                run = _Run(
                    *(state, cohort.draws, spent, run.key, np.asarray(number + 1)),
                    *(run.least, run.waited),
                )
                if (number + 1) % every == 0 or not goes_on(run):
                    run = finished(run, value, metrics)
                    save(run)
                write(number, metrics)
                advance()
                yield Round(number, state, metrics)

    return each()


def _nothing(*_: Any) -> None:
    """What saves, writes or shows, where nobody asked for it."""


def _judged(run: _Run, metrics: Mapping[str, Any], minimized: str) -> _Run:
    """The run, with how long nothing was gained. NaN gains nothing."""
    if minimized not in metrics:
        raise ValueError(
            f"{minimized=} is none of the metrics, which are {sorted(metrics)}."
        )
    now = float(metrics[minimized])
    if now < run.least:
        return run._replace(least=np.asarray(now), waited=np.asarray(0))
    return run._replace(waited=run.waited + 1)


def _bar(stack: contextlib.ExitStack, begin: int, rounds: int) -> Callable[[], Any]:
    """What moves a progress bar on by a round."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            "progress=True needs tqdm: pip install 'fedagg[train]'."
        ) from error
    bar = tqdm(total=rounds, initial=begin, unit="round")
    return stack.enter_context(bar).update
