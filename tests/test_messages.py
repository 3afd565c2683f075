"""What people read who made a mistake: what was expected, what was got, what to write.

Each row of the table is a mistake, the error that it raises where it is made, and parts
of the message: the argument, what was got, and what to write instead.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fedagg
from fedagg import attacks
from tests.helpers import assert_same
from tests.test_api import PACKAGE

# Most mistakes are errors to a type checker as well, which does not look through this.
api: Any = fedagg

TEMPLATE = {"b": jnp.zeros(()), "w": jnp.zeros(3)}
UPDATES = {"b": jnp.ones(4), "w": jnp.ones((4, 3))}
KEY = jax.random.key(0)

MEAN = api.aggregator(api.clipping(1.0), api.mean())
STATE = MEAN.init(TEMPLATE)
PLAIN = api.aggregator(api.mean())
DRAWING = api.aggregator(api.mean(), api.quantization(8, 0))
PRIVATE = api.dp_aggregator(1.0, 100)
MEDIAN = api.combining(api.median())
SGD = optax.sgd(0.1)

MODEL = {"w": jnp.zeros(3)}
DATASETS = [
    (np.ones((i + 1, 3), np.float32), np.ones(i + 1, np.float32)) for i in range(4)
]
(EXAMPLES, MASK), SIZES = api.pad_clients(DATASETS)
TABLE = api.ClientTable.of(DATASETS)


def squares(model: Any, examples: Any, key: Any) -> Any:
    inputs, targets = examples
    return (inputs @ model["w"] - targets) ** 2, {}


def training_with(loss: Any = squares, **options: Any) -> fedagg.Aggregator:
    work = api.local_training(loss, SGD, **options)
    return api.federated_averaging(work, optax.sgd(1.0), PLAIN)


LINEAR = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
TRAINING = training_with()
TRAINED = TRAINING.init(MODEL)


def next_with(updates: Any = UPDATES, *more: Any, **options: Any) -> Any:
    return lambda: MEAN.next(STATE, updates, *more, **options)


def works(work: Any, **options: Any) -> Any:
    return lambda: MEAN.next(STATE, UPDATES, work=work, **options)


def reports(x: Any) -> Any:
    return works(lambda row, key: (row, {"loss": x}))


def trains(data: Any, *more: Any) -> Any:
    return lambda: TRAINING.next(TRAINED, data, *more)


def loses(loss: Any) -> Any:
    return lambda: training_with(loss).next(TRAINED, (EXAMPLES, MASK))


def pads(datasets: Any) -> Any:
    return lambda: api.pad_clients(datasets)


class Mistake(NamedTuple):
    make: Callable[[], Any]
    error: type[Exception]
    says: tuple[str, ...]


def mistake(make: Any, error: type[Exception], *says: str) -> Mistake:
    return Mistake(make, error, says)


V, T = ValueError, TypeError

UPDATES_OF_NEXT = {
    "a leaf less": mistake(
        next_with({"w": jnp.ones((4, 3))}),
        *(V, "updates", "expected ['b'] of shape []", "got ['w']", "init(template)"),
    ),
    "None for a leaf": mistake(
        next_with({"w": jnp.ones((4, 3)), "b": None}), V, "updates", "['b']"
    ),
    "another name": mistake(
        next_with({"v": jnp.ones((4, 3)), "b": jnp.ones(4)}),
        *(V, "updates", "expected ['w']", "got ['v']"),
    ),
    "another shape": mistake(
        next_with({"w": jnp.ones((4, 5)), "b": jnp.ones(4)}),
        *(V, "updates", "['w'] of shape [3]", "got ['w'] of shape [5]"),
    ),
    "another number of clients": mistake(
        next_with({"w": jnp.ones((4, 3)), "b": jnp.ones(2)}),
        *(V, "updates", "['b'] has 2", "['w'] has 4", "jnp.stack"),
    ),
    "one client": mistake(
        next_with(TEMPLATE), V, "updates", "got one client's value", "x[None]"
    ),
    "a list of clients": mistake(
        next_with([TEMPLATE, TEMPLATE]), V, "updates", "got 2 trees", "jnp.stack"
    ),
    "lists of numbers": mistake(
        next_with({"w": [[1.0, 2.0, 3.0]], "b": [1.0]}),
        *(T, "updates", "['b'][0] is a float", "jnp.asarray"),
    ),
    "words": mistake(
        next_with({"w": np.ones((4, 3), object), "b": jnp.ones(4)}),
        *(T, "updates", "['w']", "object", "jnp.asarray"),
    ),
    "nothing": mistake(next_with(None), V, "updates", "no arrays", "[n, ...]"),
    "integers": mistake(
        next_with({"w": jnp.ones((4, 3), jnp.int32), "b": jnp.ones(4)}),
        *(T, "clipping", "['w'] has dtype int32", "Cast it"),
    ),
    "bools": mistake(
        next_with({"w": jnp.ones((4, 3), bool), "b": jnp.ones(4)}),
        *(T, "updates", "['w'] has dtype bool", "float or integer"),
    ),
    "a table without work": mistake(
        next_with(TABLE), T, "updates", "ClientTable", "work"
    ),
    "the state and the updates swapped": mistake(
        lambda: MEAN.next(UPDATES, STATE),
        *(V, "updates", "got a state", "next(state, updates)"),
    ),
    "no state": mistake(
        lambda: MEAN.next(None, UPDATES), V, "state", "got None", "next(state, updates)"
    ),
    "init for a state": mistake(
        lambda: MEAN.next(MEAN.init, UPDATES), V, "state", "got the function", "init"
    ),
    "the state of another aggregator": mistake(
        lambda: api.robust_aggregator().next(STATE, UPDATES),
        *(V, "state", "a tuple of 3", "got a tuple of 2"),
    ),
}

WEIGHTS_AND_KEYS = {
    "too few weights": mistake(
        next_with(UPDATES, [1.0, 2.0]),
        *(V, "weights", "shape (4,)", "got (2,)", "who is present: 1"),
    ),
    "a scalar, and a bool": mistake(
        next_with(UPDATES, True), V, "weights", "got ()", "one for each client"
    ),
    "None for a weight": mistake(
        next_with(UPDATES, [1.0, None, 1.0, 1.0]),
        *(T, "weights", "got [1.0, None, 1.0, 1.0]", "absent: 0"),
    ),
    "words for weights": mistake(
        next_with(UPDATES, "abcd"), T, "weights", "real numbers", "got 'abcd'"
    ),
    "complex weights": mistake(
        next_with(UPDATES, jnp.ones(4, jnp.complex64)),
        *(T, "weights", "real numbers", "got dtype complex64"),
    ),
    "a key for weights": mistake(
        next_with(UPDATES, KEY),
        T,
        "weights",
        "got a key",
        "next(state, updates, key=key)",
    ),
    "no key": mistake(
        lambda: DRAWING.next(DRAWING.init(TEMPLATE), UPDATES),
        *(V, "quantization", "got key=None", "jax.random.key(0)"),
    ),
    "no key for noise": mistake(
        lambda: PRIVATE.next(PRIVATE.init(TEMPLATE), UPDATES),
        *(V, "gaussian_noise", "got key=None", "secret_key()"),
    ),
    "a seed": mistake(
        next_with(UPDATES, None, 7), T, "key", "got 7", "jax.random.key(seed)"
    ),
    "a traced seed": mistake(
        lambda: jax.jit(lambda x: MEAN.next(STATE, UPDATES, key=x))(7),
        *(T, "key", "got int32[]", "jax.random.key(seed)"),
    ),
    "several keys": mistake(
        next_with(UPDATES, None, jax.random.split(KEY, 4)),
        *(V, "key", "expected one key", "got [4] of them"),
    ),
    "a generator": mistake(
        next_with(UPDATES, None, np.random.default_rng(0)),
        *(T, "key", "Generator", "jax.random.key(0)"),
    ),
    "a seed for a step": mistake(
        lambda: MEAN.steps.client(MEAN.steps.broadcast(STATE), TEMPLATE, 1.0, 7),
        *(T, "key", "got 7", "jax.random.key(seed)"),
    ),
    "weights for a step": mistake(
        lambda: MEAN.steps.client(MEAN.steps.broadcast(STATE), TEMPLATE, jnp.ones(4)),
        *(V, "weight", "a scalar", "got (4,)", "one weight"),
    ),
    "a value for a message": mistake(
        lambda: MEAN.steps.add(None, TEMPLATE),
        *(T, "message", "got a dict", "add(total, message)"),
    ),
    "a value for a message to a rule": mistake(
        lambda: MEDIAN.steps.add(None, TEMPLATE), T, "message", "got a dict"
    ),
    "a value for a total": mistake(
        lambda: MEAN.steps.server(STATE, TEMPLATE), T, "total", "got a dict"
    ),
    "messages of two templates": mistake(
        lambda: MEAN.steps.add(
            MEAN.steps.client((None, None), TEMPLATE),
            MEAN.steps.client((None, None), {"w": jnp.zeros(3)}),
        ),
        *(V, "message", "as in those added before", "like the template"),
    ),
}

WORK = {
    "a value alone": mistake(
        works(lambda row, key: row), T, "work", "got a dict", "(value, {})"
    ),
    "None for metrics": mistake(
        works(lambda row, key: (row, None)), T, "work", "NoneType", "(value, {})"
    ),
    "no memory": mistake(
        works(lambda row, key, memory: (row, {}), memory=jnp.zeros(4)),
        *(T, "work", "(value, metrics, memory)", "got (dict, dict)"),
    ),
    "memory without work": mistake(
        next_with(memory=jnp.zeros(4)), V, "memory", "work=None", "work=work"
    ),
    "a memory of fewer clients": mistake(
        works(lambda row, key, memory: (row, {}, memory), memory=jnp.zeros(3)),
        *(V, "memory", "4 clients", "got 3"),
    ),
    "another memory": mistake(
        works(lambda row, key, m: (row, {}, jnp.zeros(2)), memory=jnp.zeros(4)),
        *(V, "work: memory", "float32[]", "got the only leaf float32[2]"),
    ),
    "None for a metric": mistake(
        reports(None), T, "work", "'loss' is None", "Leave out"
    ),
    "nested metrics": mistake(
        reports({"a": 1.0}), T, "work", "'loss' is a dict", "{'loss/part': x}"
    ),
    "a metric that is a word": mistake(reports("low"), T, "work", "'loss' is 'low'"),
    "a metric that is a list": mistake(
        reports([1.0, 2.0]), T, "work", "'loss' is [1.0, 2.0]", "scalars"
    ),
    "a metric that is a vector": mistake(
        reports(jnp.ones(2)), V, "work", "'loss' has shape (2,)", "mean"
    ),
    "a complex metric": mistake(reports(1j), T, "work", "'loss' is complex", "real"),
    "a number for a metric's name": mistake(
        works(lambda row, key: (row, {1: 1.0})), T, "work", "strings", "got 1"
    ),
    "the metric of a stage": mistake(
        works(lambda row, key: (row, {"mean/weight": 1.0})),
        *(V, "'mean/weight'", "twice", "another name"),
    ),
    "no function": mistake(works(3), T, "work", "(row, key)", "got 3"),
    "a function of the row": mistake(
        works(lambda row: (row, {})), T, "work", "(row, key)", "which takes (row)"
    ),
    "a word for a value": mistake(
        works(lambda row, key: ({"w": "x", "b": 1.0}, {})), T, "work", "['w'] is 'x'"
    ),
}

KINDS = {
    "a factory for a stage": mistake(
        lambda: api.aggregator(api.clipping),
        *(T, "stages[0]", "a Stage", "the function clipping", "clipping(...)"),
    ),
    "a list of stages": mistake(
        lambda: api.aggregator([api.mean()]),
        *(T, "stages[0]", "got [mean()]", "chain(*stages)"),
    ),
    "an aggregator for a stage": mistake(
        lambda: api.chain(api.mean(), MEAN),
        *(T, "stages[1]", "got aggregator(", "give the stages"),
    ),
    "a rule for a stage": mistake(
        lambda: api.aggregator(api.median()),
        *(T, "stages[0]", "got median()", "combining(rule, *stages)"),
    ),
    "a bound for a stage": mistake(
        lambda: api.aggregator(api.quantile_bound(1.0, 0.5, 0.2)),
        *(T, "stages[0]", "got quantile_bound(1.0, 0.5, 0.2)", "clipping(bound)"),
    ),
    "a way to sum for a stage": mistake(
        lambda: api.aggregator(api.mean(), api.at_once()),
        *(T, "stages[1]", "a Stage", "at_once()"),
    ),
    "a word for a way to sum": mistake(
        lambda: api.aggregator(api.mean(), sum_over="at_once"),
        *(T, "sum_over", "at_once()", "got 'at_once'"),
    ),
    "a factory for a way to sum": mistake(
        lambda: api.aggregator(api.mean(), sum_over=api.in_chunks),
        *(T, "sum_over", "in_chunks(size)", "got the function in_chunks"),
    ),
    "a rule and a stage swapped": mistake(
        lambda: api.combining(api.clipping(1.0), api.median()),
        *(T, "rule", "got clipping(1.0)", "combining(rule, stage)"),
    ),
    "a factory for a rule": mistake(
        lambda: api.combining(api.median),
        *(T, "rule", "the function median", "median(...)"),
    ),
    "a mean before a rule": mistake(
        lambda: api.combining(api.median(), api.mean()),
        *(V, "mean()", "a rule", "Leave mean() out"),
    ),
    "a factory in a rule": mistake(
        lambda: api.bucketing(2, api.median), T, "rule", "median(...)"
    ),
    "a factory in an attack": mistake(
        lambda: api.attacks.optimized(attacks.a_little_is_enough, api.median),
        *(T, "rule", "the function median", "median(...)"),
    ),
    "an aggregator in a secure sum": mistake(
        lambda: api.secure_sum(MEAN, 1.0, largest_cohort=10),
        *(T, "stage", "got aggregator(", "give the stages"),
    ),
    "stages in a secure sum": mistake(
        lambda: api.secure_sum([api.mean()], 1.0, largest_cohort=10),
        *(T, "stage", "got [mean()]", "chain(*stages)"),
    ),
    "a factory of distortion": mistake(
        lambda: api.with_distortion(api.sign), T, "stage", "sign(...)"
    ),
    "a factory of feedback": mistake(
        lambda: api.with_error_feedback(api.sign, 5), T, "stage", "sign(...)"
    ),
    "an aggregator without a guarantee": mistake(
        lambda: api.without_guarantee(MEAN), T, "stage", "give the stages"
    ),
    "a factory to view": mistake(
        lambda: api.server_view(api.mean, TEMPLATE),
        *(T, "aggregator", "the function mean", "mean(...)"),
    ),
    "the template first": mistake(
        lambda: api.message_bits(TEMPLATE, MEAN), T, "stage", "got a dict"
    ),
    "words for a template": mistake(
        lambda: MEAN.init({"w": "zeros"}), T, "template", "['w'] is 'zeros'", "arrays"
    ),
    "words for a template to view": mistake(
        lambda: api.server_view(MEAN, "x"), T, "template", "is 'x'"
    ),
    "devices for a mesh": mistake(
        lambda: api.across(jax.devices()), T, "mesh", "jax.make_mesh", "got a list"
    ),
    "another axis": mistake(
        lambda: api.across(jax.make_mesh((1,), ("x",))),
        *(V, "axis", "got 'clients'", "across(mesh, 'x')"),
    ),
    "a stage for a mechanism": mistake(
        lambda: api.epsilon(
            api.gaussian_noise(1.0, 1.0, 10), 5, 1e-6, neighbors="zero_out"
        ),
        *(T, "mechanism", "got gaussian_noise(", "guarantee("),
    ),
    "a factory for a mechanism": mistake(
        lambda: api.epsilon(api.gaussian_noise, 5, 1e-6, neighbors="zero_out"),
        *(T, "mechanism", "(order, distance)", "the function gaussian_noise"),
    ),
    "a factory for an aggregator": mistake(
        lambda: api.guarantee(
            api.dp_aggregator, TEMPLATE, 5, 1e-6, neighbors="zero_out"
        ),
        *(T, "aggregator", "the function dp_aggregator", "dp_aggregator(...)"),
    ),
    "a factory for a sampler": mistake(
        lambda: api.epsilon(
            1.0, 5, 1e-6, neighbors="zero_out", participation=api.poisson
        ),
        *(T, "participation", "poisson(0.01)", "the function poisson"),
    ),
    "a seed for a sampler": mistake(
        lambda: api.poisson(0.5).init(10, 0),
        T,
        "key",
        "got 0",
        "jax.random.key(seed)",
    ),
    "no key for a sampler": mistake(
        lambda: api.cyclic(2).init(10, None), V, "sampler", "key=None"
    ),
    "a list of metrics": mistake(
        lambda: api.noised_metrics(1.0, ["loss"], 10),
        *(T, "clips", "a dict", "got ['loss']"),
    ),
}

OPTIONS = {
    "a word for a bound": mistake(
        lambda: api.clipping("1.0"), T, "bound", "bound='1.0'", "quantile_bound(...)"
    ),
    "a stage for a bound": mistake(
        lambda: api.clipping(api.mean()), T, "bound", "bound=mean()"
    ),
    "an array for a bound": mistake(
        lambda: api.clipping(jnp.ones(3)), T, "bound", "an array float32[3]"
    ),
    "a bool for a bound": mistake(
        lambda: api.clipping(True), T, "bound", "bound=True", "number"
    ),
    "a traced number": mistake(
        lambda: jax.jit(lambda x: api.top_k(x))(0.1),
        *(T, "fraction", "a traced float32[]", "outside of jit"),
    ),
    "a negative bound": mistake(
        lambda: api.clipping(-1.0), V, "bound", "positive", "bound=-1.0"
    ),
    "a word for a norm": mistake(
        lambda: api.zeroing(1.0, norm_order="inf"),
        *(V, "norm_order", "math.inf", "norm_order='inf'"),
    ),
    "an array for a norm": mistake(
        lambda: api.zeroing(1.0, norm_order=jnp.ones(2)),
        *(V, "norm_order", "an array float32[2]"),
    ),
    "a word for a flag": mistake(
        lambda: api.mean(weighted="no"), T, "weighted", "True or False", "'no'"
    ),
    "None for a flag": mistake(
        lambda: api.robust_aggregator(weighted=None), T, "weighted", "weighted=None"
    ),
    "a number for a name": mistake(
        lambda: api.zeroing(1.0, name=3), T, "name", "a string", "name=3"
    ),
    "a percentage for a quantile": mistake(
        lambda: api.quantile_bound(1.0, 50, 0.2),
        *(V, "target_quantile", "in [0, 1]", "target_quantile=50"),
    ),
    "None for a choice": mistake(
        lambda: api.robust_aggregator(zeroing=None),
        *(T, "zeroing", "got None", "zeroing=False"),
    ),
    "a stage for a choice": mistake(
        lambda: api.robust_aggregator(clipping=api.clipping(1.0)),
        *(T, "clipping", "a Bound", "got clipping(1.0)"),
    ),
    "too few clients for a learnt clip": mistake(
        lambda: api.dp_aggregator(1.0, 8),
        *(V, "noise_multiplier", "clients_per_round=8", "gaussian_noise"),
    ),
    "another rotation": mistake(
        lambda: api.distributed_dp_aggregator(1.0, 100, rotation="dct"),
        *(V, "rotation", "hadamard, dft", "rotation='dct'"),
    ),
    "a key for a choice": mistake(
        lambda: api.rotation(KEY), T, "kind", "a string", "kind="
    ),
    "a float for a whole number": mistake(
        lambda: api.in_chunks(2.5), V, "size", "a whole number", "size=2.5"
    ),
}

TRAINING_MISTAKES = {
    "a learning rate for an optimizer": mistake(
        lambda: api.local_training(squares, 0.1),
        *(T, "optimizer", "got 0.1", "optax.sgd(rate)"),
    ),
    "a factory for an optimizer": mistake(
        lambda: api.local_training(squares, optax.sgd),
        *(T, "optimizer", "the function sgd", "sgd(...)"),
    ),
    "a loss and an optimizer swapped": mistake(
        lambda: api.local_training(SGD, squares), T, "loss", "(variables, examples,"
    ),
    "a loss without a key": mistake(
        lambda: api.local_training(lambda model, examples: None, SGD),
        *(T, "loss", "(variables, examples, key)", "which takes (model, examples)"),
    ),
    "a learning rate at the server": mistake(
        lambda: api.federated_averaging(squares, 1.0, MEAN),
        *(T, "server_optimizer", "got 1.0", "optax.sgd(rate)"),
    ),
    "an aggregator and an optimizer swapped": mistake(
        lambda: api.federated_averaging(squares, MEAN, SGD),
        *(T, "server_optimizer", "got aggregator(", "another argument"),
    ),
    "a stage for an aggregator": mistake(
        lambda: api.federated_averaging(squares, SGD, api.mean()),
        *(T, "aggregator", "got mean()", "aggregator(stage)"),
    ),
    "a factory for an aggregator": mistake(
        lambda: api.federated_averaging(squares, SGD, api.robust_aggregator),
        *(T, "aggregator", "robust_aggregator(...)"),
    ),
    "no work": mistake(
        lambda: api.federated_averaging(None, SGD, MEAN),
        *(T, "client_work", "(variables, row, key", "got None"),
    ),
    "work of two arguments": mistake(
        lambda: api.federated_averaging(lambda m, row: None, SGD, PLAIN).next(
            TRAINED, (EXAMPLES, MASK)
        ),
        *(T, "client_work", "(variables, row, key)", "which takes (m, row)"),
    ),
    "a change of another shape": mistake(
        lambda: api.federated_averaging(
            lambda model, row, key: (jnp.zeros(4), {}), SGD, PLAIN
        ).next(TRAINED, (EXAMPLES, MASK)),
        *(V, "client_work", "[(3,)]", "got [(4,)]", "local_training(loss, optimizer)"),
    ),
    "a model without parameters": mistake(
        lambda: TRAINING.init({"params": {}}), V, "variables", "model.init(key, inputs)"
    ),
    "words for a model": mistake(
        lambda: TRAINING.init("model"), T, "variables", "is 'model'", "arrays"
    ),
    "a model of integers": mistake(
        lambda: TRAINING.next(
            TRAINING.init({"w": jnp.zeros(3, int)}), (EXAMPLES, MASK)
        ),
        *(T, "local_training", "['w'] has dtype int32", "Cast it"),
    ),
    "a missing mask": mistake(
        trains(EXAMPLES), T, "client_data", "(examples, mask)", "pad_clients(datasets)"
    ),
    "a mask of floats": mistake(
        trains((EXAMPLES, MASK.astype(np.float32))), T, "client_data", "of bools"
    ),
    "data with their sizes": mistake(
        trains(((EXAMPLES, MASK), SIZES)),
        *(T, "client_data", "client_data, weights = pad_clients(datasets)"),
    ),
    "a list of data sets": mistake(
        trains(DATASETS), V, "client_data", "[1][0] has 2", "pad_clients(datasets)"
    ),
    "one client of a table": mistake(
        trains(TABLE[0]), V, "client_data", "shape []", "table[[3, 1, 4]]"
    ),
    "the model for a state": mistake(
        lambda: TRAINING.next(MODEL, (EXAMPLES, MASK)),
        *(T, "state", "got a dict", "state.variables"),
    ),
    "a seed for training": mistake(
        trains((EXAMPLES, MASK), SIZES, 0), T, "key", "got 0", "jax.random.key(seed)"
    ),
    "no key for an order": mistake(
        lambda: training_with(batch_size=2).next(TRAINED, (EXAMPLES, MASK)),
        *(V, "key=None", "shuffle=False"),
    ),
    "a loss alone": mistake(
        loses(lambda model, examples, key: jnp.zeros(4)),
        *(T, "loss", "(losses, collections)", "return losses, {}"),
    ),
    "None for collections": mistake(
        loses(lambda model, examples, key: (jnp.zeros(4), None)),
        *(T, "loss", "Got (", "NoneType", "return losses, {}"),
    ),
    "the mean loss": mistake(
        loses(
            lambda model, examples, key: (
                jnp.mean(squares(model, examples, key)[0]),
                {},
            )
        ),
        *(V, "loss", "shape [4]", "got []", "Leave the mean over examples out"),
    ),
    "None for losses": mistake(
        loses(lambda model, examples, key: (None, {})), T, "loss", "float dtype", "None"
    ),
    "words for losses": mistake(
        loses(lambda model, examples, key: ("low", {})), T, "loss", "'low'"
    ),
    "integers for losses": mistake(
        loses(lambda model, examples, key: (jnp.ones(4, jnp.int32), {})),
        *(T, "loss", "got dtype int32", "no gradient"),
    ),
    "a collection that was not there": mistake(
        loses(
            lambda model, examples, key: (squares(model, examples, key)[0], {"s": 1.0})
        ),
        *(V, "loss", "'s'", "the variables given to init"),
    ),
    "a linen module for nnx": mistake(
        lambda: api.nnx_loss(nn.Dense(1), optax.l2_loss),
        *(T, "model", "flax.nnx", "linen_loss(model, loss)"),
    ),
    "an nnx module for linen": mistake(
        lambda: api.linen_loss(LINEAR, optax.l2_loss),
        *(T, "model", "flax.linen", "nnx_loss(model, loss)"),
    ),
    "a class for a module": mistake(
        lambda: api.nnx_loss(nnx.Linear, optax.l2_loss),
        *(T, "model", "got the class Linear", "Linear(...)"),
    ),
    "all that nnx_loss returned": mistake(
        lambda: training_with(api.nnx_loss(LINEAR, optax.l2_loss)),
        *(T, "loss", "got a tuple", "variables, loss = nnx_loss(model, ...)"),
    ),
    "a module for its variables": mistake(
        lambda: TRAINING.init(LINEAR), T, "variables", "flax.nnx", "nnx_loss(model"
    ),
    "a linen module for its variables": mistake(
        lambda: TRAINING.init(nn.Dense(1)), T, "variables", "flax.linen", "model.init"
    ),
    "a key for variables": mistake(
        lambda: TRAINING.init(KEY), T, "variables", "is random keys", "of numbers"
    ),
    "parameters alone": mistake(
        lambda: api.linen_loss(nn.Dense(1), optax.l2_loss)(
            {"kernel": jnp.ones((3, 1))}, (jnp.ones((2, 3)), jnp.ones((2, 1))), None
        ),
        *(V, "variables", "all that model.init returned", "got ['kernel']"),
    ),
    "an aggregator of updates for sums of metrics": mistake(
        lambda: api.federated_evaluation(
            lambda model, x: x,
            {"accuracy": fedagg.metrics.accuracy()},
            api.robust_aggregator(),
        ),
        *(V, "aggregator: robust_aggregator()", "Take aggregator()"),
    ),
    "no loss of a module": mistake(
        lambda: api.linen_loss(nn.Dense(1), None), T, "loss", "(outputs, targets)"
    ),
    "examples without targets": mistake(
        lambda: api.linen_loss(nn.Dense(1), optax.l2_loss)({}, jnp.ones((2, 3)), None),
        *(T, "examples", "(inputs, targets)", "write the loss yourself"),
    ),
    "a number of cohorts": mistake(
        lambda: api.prefetch(3), T, "cohorts", "got 3", "table.gathered(numbers)"
    ),
}

DATA_SETS = {
    "a dict": mistake(
        pads({"ann": np.ones((2, 3))}),
        *(T, "datasets", "a list", "got a dict", "list(datasets.values())"),
    ),
    "None": mistake(pads(None), T, "datasets", "got None", "[(inputs, targets), ...]"),
    "no client": mistake(
        pads([]), V, "datasets", "got none", "[(inputs, targets), ...]"
    ),
    "no example": mistake(
        pads([np.ones((0, 3))]), V, "datasets", "at least one example"
    ),
    "other names": mistake(
        pads([{"x": np.ones((2, 3))}, {"y": np.ones((2, 3))}]),
        *(V, "datasets", "client 1 has ['y']", "client 0 has ['x']", "zeros"),
    ),
    "a part less": mistake(
        pads([(np.ones((2, 3)), np.ones(2)), (np.ones((2, 3)),)]),
        *(V, "datasets", "client 1 has [0]", "client 0 has [0], [1]"),
    ),
    "a client that is None": mistake(
        pads([np.ones((2, 3)), None]), V, "datasets", "client 1", "length 0"
    ),
    "unequal numbers of inputs and targets": mistake(
        pads([(np.ones((2, 3)), np.ones(3))]),
        *(V, "datasets", "client 0", "'[0]': 2", "'[1]': 3", "first axis"),
    ),
    "inputs and targets of all": mistake(
        pads((np.ones((4, 2, 3)), np.ones((4, 2)))),
        *(V, "datasets", "client 1", "[(inputs, targets), ...]"),
    ),
    "lists of numbers": mistake(
        pads([[1.0, 2.0], [1.0]]), V, "datasets", "client 0", "np.asarray(x)"
    ),
    "examples of unequal lengths": mistake(
        pads([{"x": [[1.0, 2.0], [3.0]]}]), V, "datasets", "client 0", "to one length"
    ),
    "examples of other lengths": mistake(
        pads([np.ones((2, 3)), np.ones((2, 5))]),
        *(V, "datasets", "client 1 have shape [5]", "client 0 [3]", "padded to one"),
    ),
    "words": mistake(
        pads([{"x": np.array(["a", "b"])}]),
        T,
        "datasets",
        "['x'] of client 0",
        "numbers",
    ),
}

MISTAKES = {
    f"{part}, {name}": x
    for part, table in {
        "updates": UPDATES_OF_NEXT,
        "weights and keys": WEIGHTS_AND_KEYS,
        "work": WORK,
        "kinds": KINDS,
        "options": OPTIONS,
        "training": TRAINING_MISTAKES,
        "data sets": DATA_SETS,
    }.items()
    for name, x in table.items()
}


@pytest.mark.parametrize("name", MISTAKES)
def test_an_error_says_what_was_expected_what_was_got_and_what_to_write(name):
    made = MISTAKES[name]

    with pytest.raises(made.error) as caught:
        made.make()

    message = str(caught.value)
    assert [x for x in made.says if x not in message] == [], message
    assert message.endswith((".", ")"))


@pytest.mark.parametrize("name", MISTAKES)
def test_an_error_is_raised_by_this_library(name):
    with pytest.raises(MISTAKES[name].error) as caught:
        MISTAKES[name].make()

    last = str(caught.traceback[-1].path)
    assert last.startswith(str(PACKAGE))


@pytest.mark.parametrize(
    "number",
    [np.float32(0.5), np.float64(0.5), jnp.float32(0.5), np.array(0.5)],
    ids=repr,
)
def test_a_number_of_numpy_or_jax_is_a_number(number):
    for make in (api.clipping, api.top_k, api.poisson):
        assert repr(make(number)) == repr(make(0.5))
    robust = api.robust_aggregator(zeroing=number, clipping=number)
    plain = api.robust_aggregator(zeroing=0.5, clipping=0.5)

    got = robust.next(robust.init(TEMPLATE), UPDATES)

    assert_same(got, plain.next(plain.init(TEMPLATE), UPDATES))


@pytest.mark.parametrize("whole", [np.int8(3), np.int64(3), jnp.int32(3)], ids=repr)
def test_a_whole_number_of_numpy_or_jax_is_a_whole_number(whole):
    for make in (api.in_chunks, api.krum, api.eden):
        three = make(3)
        assert getattr(make(whole), "__qualname__", repr(make(whole))) == getattr(
            three, "__qualname__", repr(three)
        )
    assert repr(api.mean(weighted=np.bool_(False))) == "mean(weighted=False)"


@pytest.mark.deep
def test_an_old_key_draws_as_the_new_one_does():
    state = DRAWING.init(TEMPLATE)
    updates = {"b": jnp.arange(4.0), "w": jnp.arange(12.0).reshape(4, 3)}

    old = DRAWING.next(state, updates, None, jax.random.PRNGKey(3))

    assert_same(old, DRAWING.next(state, updates, None, jax.random.key(3)))


def test_numbers_that_work_returns_are_arrays():
    def work(row: Any, key: Any) -> Any:
        return {"b": 2.0, "w": np.ones(3, np.float32)}, {"loss": 1}

    output = PLAIN.next(PLAIN.init(TEMPLATE), UPDATES, work=work)

    assert output.value["b"] == 2.0 and output.metrics["loss"] == 1.0


def test_data_sets_may_be_an_array_or_a_generator():
    stacked = np.arange(24.0).reshape(4, 2, 3)

    (examples, mask), sizes = api.pad_clients(stacked)
    (same, _), _ = api.pad_clients(x for x in stacked)

    assert np.array_equal(examples, stacked) and np.array_equal(same, stacked)
    assert mask.all() and sizes.tolist() == [2.0] * 4


@pytest.mark.parametrize(
    "module, make",
    [
        (
            "dp_accounting",
            lambda: api.epsilon(1.0, 10, 1e-6, neighbors="zero_out"),
        ),
        (
            "jax_privacy.matrix_factorization",
            lambda: api.banded_noise(1.0, 1.0, 10, bands=2, rounds=4),
        ),
    ],
)
def test_an_extra_that_is_not_there_is_named(monkeypatch, module, make):
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ImportError, match=r"pip install 'fedagg\[privacy\]'"):
        make()


def test_the_extra_of_the_protocol_is_named(monkeypatch):
    for name in [x for x in sys.modules if x.startswith("fedagg.secagg")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [x for x in sys.modules if x.startswith("cryptography")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "cryptography", None)

    with pytest.raises(ImportError, match=r"pip install 'fedagg\[secagg\]'"):
        __import__("fedagg.secagg")
