"""Every algorithm, made for the same clients: a new one is added here."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

import fedagg
from fedagg import algorithms
from tests.algorithms.problems import (
    CLIENTS,
    EXAMPLES,
    OPTIONS,
    START,
    loss,
)

N, RATE = len(CLIENTS), 0.1


class Case(NamedTuple):
    make: Any  # (loss, aggregator, options, **more) -> training
    numbers: bool  # whether client data have numbers beside them
    remembers: bool
    start: Any = START
    rows: Any = lambda examples, numbers: fedagg.ClientTable.of(examples)[numbers]

    def data(self, examples=EXAMPLES):
        """What makes client data of numbers."""

        def of(numbers):
            rows = self.rows(examples, numbers)
            return (rows, numbers) if self.numbers else rows

        return of


def of_parts(model, examples, key):
    """The loss of a model in two parts."""
    return loss(jnp.concatenate([model["body"], model["head"]]), examples, key)


def personal(given, aggregator, options, **more):
    work = fedagg.local_training(given, optax.sgd(RATE), **options)
    return algorithms.personal_layers(
        work, aggregator, personal=["*head*"], clients=N, **more
    )


def with_sgd(function, **fixed):
    def make(given, aggregator, options, **more):
        return function(given, optax.sgd(RATE), aggregator, **fixed, **options, **more)

    return make


def scaffold(given, aggregator, options, **more):
    return algorithms.scaffold(given, RATE, aggregator, clients=N, **options, **more)


def diloco(given, aggregator, options, **more):
    del options
    optimizer = optax.sgd(RATE, momentum=0.9)
    return algorithms.diloco(given, optimizer, aggregator, replicas=N, **more)


def batches(examples, numbers):
    """Two batches of two examples for each client, whatever it has."""
    rows = [tuple(np.resize(x, (2, 2, 3)) for x in examples[i]) for i in numbers]
    return tuple(np.stack(x) for x in zip(*rows, strict=True))


def support_and_query(examples, numbers):
    table = fedagg.ClientTable.of(examples)
    return table[(numbers + 1) % N], table[numbers]


def of_adapters(model, examples, key):
    """The loss of a weight with an adapter of rank two."""
    whole = model["weight"] + model["a"] @ model["b"] / 2
    return loss(whole[:, 0], examples, key)


ADAPTERS = {
    "weight": START[:, None],
    "a": np.array([[0.5, -0.2], [0.3, 0.8], [-0.6, 0.1]]),
    "b": np.array([[0.2], [-0.4]]),
}
PARTS = {"body": START[:2], "head": START[2:]}
CASES = {
    "agnostic": Case(with_sgd(algorithms.agnostic, groups=N), True, False),
    "apfl": Case(with_sgd(algorithms.apfl, clients=N), True, True),
    "diloco": Case(diloco, True, True, rows=batches),
    "ditto": Case(with_sgd(algorithms.ditto, clients=N), True, True),
    "feddyn": Case(with_sgd(algorithms.feddyn, clients=N), True, True),
    "fednova": Case(with_sgd(algorithms.fednova), False, False),
    "fedex_lora": Case(
        with_sgd(algorithms.fedex_lora, adapters={"*weight": ("*a", "*b")}, scale=0.5),
        False,
        False,
        ADAPTERS,
    ),
    "fedrecon": Case(
        with_sgd(algorithms.fedrecon, local=["*head*"]),
        False,
        False,
        PARTS,
        support_and_query,
    ),
    "fedrep": Case(
        with_sgd(algorithms.fedrep, clients=N, personal=["*head*"]), True, True, PARTS
    ),
    "ifca": Case(
        with_sgd(algorithms.ifca, models=2), False, False, np.stack([START, -START])
    ),
    "mime_lite": Case(with_sgd(algorithms.mime_lite), False, False),
    "personal_layers": Case(personal, True, True, PARTS),
    "q_fedavg": Case(
        with_sgd(algorithms.q_fedavg, q=0.5, lipschitz=1 / RATE), False, False
    ),
    "scaffold": Case(scaffold, True, True),
}


def loss_of(case):
    if case.start is ADAPTERS:
        return of_adapters
    return of_parts if case.start is PARTS else loss


def training_of(case, aggregator=None, options=OPTIONS, **more):
    if aggregator is None:
        aggregator = fedagg.aggregator(fedagg.mean())
    return case.make(loss_of(case), aggregator, options, **more)
