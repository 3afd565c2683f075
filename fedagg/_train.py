"""A training loop for people: cohorts, evaluation, checkpoints, logs and a budget."""

import contextlib
import math
import os
import pathlib
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedagg._aggregator import Aggregator
from fedagg._logs import MetricsWriter
from fedagg._privacy.budget import Budget
from fedagg._privacy.samplers import Sampler
from fedagg._training.prefetching import prefetch
from fedagg._trees import checks, pytree
from fedagg._trees.keys import as_key
from fedagg._trees.kinds import check_kind, described
from fedagg._trees.table import ClientTable
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
    clients' numbers too, client data are `(table, np.arange(len(table)))`.

    With a folder, metrics go to `metrics.jsonl` in it, and the whole run is saved there
    by Orbax, every so many rounds and at the end. A call with the same arguments goes
    on from what was saved, to the bit as if it had not been interrupted: it takes its
    key from there, so that one that is secret need not be kept elsewhere. The folder is
    as secret as the key.

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
            `evaluate`, or comes without it; if logs are asked for without a folder.
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
    first = _Run(
        training.init(variables),
        sampler.init(n, jax.random.fold_in(key, _TURNS)),
        None if budget is None else budget.init(),
        *(key, np.asarray(0), np.asarray(math.inf), np.asarray(0)),
    )

    def cohorts(run: _Run) -> Generator[tuple[PyTree, PyTree, jax.Array]]:
        """The sampler's state after each draw, the clients' data and weights."""
        draw, draws = jax.jit(sampler.next), run.draws
        for _ in range(int(run.rounds), rounds):
            draws, cohort = draw(draws, jax.random.fold_in(run.key, _COHORTS))
            rows = np.asarray(cohort.rows)
            yield draws, _rows_of(client_data, rows), cohort.weights * sizes[rows]

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
            run, save, write = first, None, None
            if folder is not None:
                run, save = _opened(stack, folder, first)
                log = MetricsWriter(folder, tensorboard=tensorboard)
                write = stack.enter_context(log).write
            advance = _bar(stack, int(run.rounds), rounds) if progress else None
            ahead = stack.enter_context(contextlib.closing(prefetch(cohorts(run))))
            next_round = jax.jit(training.next)
            while goes_on(run):
                number = int(run.rounds)
                draws, data, weights = next(ahead)
                # Before the round is released.
                spent = None if budget is None else budget.next(run.spent)
                own = jax.random.fold_in(run.key, number)
                state, value, metrics = next_round(run.training, data, weights, own)
                run = _Run(
                    *(state, draws, spent, run.key, np.asarray(number + 1)),
                    *(run.least, run.waited),
                )
                if (number + 1) % every == 0 or not goes_on(run):
                    run = finished(run, value, metrics)
                    if save is not None:
                        save(run)
                if write is not None:
                    write(number, metrics)
                if advance is not None:
                    advance()
                yield Round(number, state, metrics)

    return each()


def _rows_of(client_data: PyTree, rows: np.ndarray) -> PyTree:
    """The data of a cohort, copied from the host where they are there."""

    def of_part(x: Any) -> Any:
        if not isinstance(x, ClientTable):
            return x[rows]
        is_here = isinstance(pytree.flatten(x.examples)[0][0], jax.Array)
        return x[rows] if is_here else x.gathered(rows)

    return jax.tree.map(
        of_part, client_data, is_leaf=lambda x: isinstance(x, ClientTable)
    )


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


def _opened(
    stack: contextlib.ExitStack, folder: str | os.PathLike[str], first: _Run
) -> tuple[_Run, Callable[[_Run], Any]]:
    """The run as it was saved last, or at its beginning, and what saves it."""
    try:
        import orbax.checkpoint as orbax
    except ImportError as error:
        raise ImportError(
            "a folder for checkpoints needs Orbax: pip install 'fedagg[train]'."
        ) from error
    path = pathlib.Path(folder).absolute() / "checkpoints"
    options = orbax.CheckpointManagerOptions(max_to_keep=2)
    manager = orbax.CheckpointManager(path, options=options)
    stack.callback(manager.close)  # which waits until all is written

    def save(run: _Run) -> None:
        manager.save(int(run.rounds), args=orbax.args.StandardSave(run))

    step = manager.latest_step()
    if step is None:
        return first, save
    found: Any = manager.restore(step, args=orbax.args.StandardRestore(first))
    return found, save


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
