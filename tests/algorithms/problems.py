"""Clients with quadratic losses, of unequal curvature, minima and numbers of steps."""

from typing import Any

import jax.numpy as jnp
import numpy as np

import fedagg
from tests.algorithms.references import Quadratic
from tests.compiling import jit

D, BATCH, EPOCHS = 3, 2, 2
SIZES = [1, 3, 6, 2, 4]
COHORTS = [[0, 1, 2, 3, 4], [4, 1, 2], [0, 3, 1], [2, 0, 4]]
OPTIONS: Any = {"batch_size": BATCH, "epochs": EPOCHS, "shuffle": False}
START = np.array([0.5, -1.0, 2.0])


def examples_of(sizes, seed=0):
    draw = np.random.default_rng(seed)
    return [
        (
            draw.uniform(0.2, 2.0, (m, D)).astype(np.float32),
            (draw.normal(size=(m, D)) + 2.0 * draw.normal(size=(1, D))).astype(
                np.float32
            ),
        )
        for m in sizes
    ]


EXAMPLES = examples_of(SIZES)
TABLE = fedagg.ClientTable.of(EXAMPLES)
CLIENTS = [Quadratic(*x, BATCH, EPOCHS) for x in EXAMPLES]


def loss(x, examples, key):
    del key
    h, t = examples
    return jnp.sum(h * (x[None] - t) ** 2 / 2, axis=1), {}


def minimum(clients=CLIENTS):
    """That of the mean of clients' losses, each the mean of those of its batches."""

    def over_batches(client, x):
        return np.mean([x[batch].mean(axis=0) for batch in client.batches], axis=0)

    top = sum(over_batches(c, c.h * c.t) for c in clients)
    return top / sum(over_batches(c, c.h) for c in clients)


def with_numbers(numbers):
    return TABLE[numbers], numbers


def rounds_of(
    training, start=START, cohorts=COHORTS, data=with_numbers, weights=None, state=None
):
    """The state after rounds of these cohorts, whose rows are `data(numbers)`.

    A round has a row for each client, in which those are absent who are in no cohort.
    """
    state = training.init(start) if state is None else state
    weights = np.ones(len(CLIENTS), np.float32) if weights is None else weights
    next_round = jit(training.next)
    for cohort in cohorts:
        others = [i for i in range(len(CLIENTS)) if i not in cohort]
        numbers = np.array([*cohort, *others], np.int32)
        given = np.where(np.isin(numbers, cohort), weights[numbers], 0.0)
        state = next_round(state, data(numbers), given).state
    return state
