"""Models made of other containers than dicts come back as what they were."""

import collections
import dataclasses
import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.core import FrozenDict

import fedagg
from fedagg import metrics
from tests.algorithms.problems import COHORTS, EXAMPLES, OPTIONS, rounds_of
from tests.algorithms.table import ADAPTERS, CASES, PARTS, of_parts
from tests.helpers import first_now

# All that can train a model in two parts.
OF_PARTS = {name: x for name, x in CASES.items() if x.start is not ADAPTERS}
TABLE = fedagg.ClientTable.of(EXAMPLES)


@flax.struct.dataclass
class OfFlax:
    head: Any
    body: Any


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["head", "body"], meta_fields=[]
)
@dataclasses.dataclass
class OfJax:
    head: Any
    body: Any


def ordered(parts):
    """The last name first, which is not the order of a dict."""
    return collections.OrderedDict(sorted(parts.items(), reverse=True))


def nested(kind):
    """Parameters and a collection, in containers of one kind all the way down."""

    def make(parts):
        return kind({"stats": kind({"mean": jnp.zeros(3)}), "params": kind(parts)})

    return make


def of_nnx(parts):
    """As nnx_loss has it, but for the outer dict."""
    return {
        "params": nnx.State({name: nnx.Param(x) for name, x in parts.items()}),
        "state": nnx.State({"mean": nnx.BatchStat(jnp.zeros(3))}),
    }


KINDS = {
    "FrozenDict": FrozenDict,
    "FrozenDict of collections": nested(FrozenDict),
    "OrderedDict": ordered,
    "OrderedDict of collections": nested(ordered),
    "nnx.State": nnx.State,
    "nnx.State of collections": of_nnx,
    "dataclass of Flax": lambda parts: OfFlax(**parts),
    "dataclass of JAX": lambda parts: OfJax(**parts),
    "dataclass in a dict": lambda parts: {
        "params": OfFlax(**parts),
        "stats": {"mean": jnp.zeros(3)},
    },
}
every_kind = first_now("kind", list(KINDS))


class Model(NamedTuple):
    """A model, and its loss, which insists on getting the containers of it."""

    variables: Any
    loss: Any
    collection: str  # what has statistics, empty if nothing

    def parts(self, variables):
        """The leaves of the parameters by their names, as NumPy arrays."""
        variables = variables["params"] if self.collection else variables
        named = jax.tree.leaves_with_path(variables)
        return {str(path[0]).strip(".[]'"): np.asarray(x) for path, x in named}


def model_of(kind, parts=PARTS):
    variables: Any = KINDS[kind]({name: jnp.asarray(x) for name, x in parts.items()})
    is_mapping = isinstance(variables, collections.abc.Mapping)
    names = ["stats", "state"] if is_mapping and "params" in variables else []
    collection = next((x for x in names if x in variables), "")
    structure = jax.tree.structure(variables)

    def loss(model, examples, key):
        assert jax.tree.structure(model) == structure, model
        own = model["params"] if collection else model
        named = {str(x[0]).strip(".[]'"): y for x, y in jax.tree.leaves_with_path(own)}
        losses, _ = of_parts(named, examples, key)
        if not collection:
            return losses, {}
        # As `apply` of Flax may return it: a dict where there was another kind.
        seen = {"mean": jnp.mean(examples[1], axis=0)}
        if kind.startswith("nnx"):
            seen = nnx.State({"mean": nnx.BatchStat(seen["mean"])})
        return losses, {collection: seen}

    return Model(variables, loss, collection)


def assert_is_of(variables, model):
    assert jax.tree.structure(variables) == jax.tree.structure(model.variables)


def parts_by_dicts(case):
    made = case.make(of_parts, mean(), OPTIONS)
    state = rounds_of(made, start_of(case), COHORTS[:2], case.data())
    return jax.tree.map(np.asarray, model_in(state.variables))


def start_of(case):
    if case is CASES["ifca"]:
        return {name: np.stack([x, -x]) for name, x in PARTS.items()}
    return PARTS


def model_in(variables):
    """The model, of algorithms that tell clients more as well."""
    is_more = isinstance(variables, dict) and "model" in variables
    return variables["model"] if is_more else variables


def mean():
    return fedagg.aggregator(fedagg.mean())


@pytest.mark.deep
@pytest.mark.parametrize("case", OF_PARTS.values(), ids=OF_PARTS)
@pytest.mark.parametrize("kind", list(KINDS))
def test_an_algorithm_returns_the_model_in_its_containers(kind, case):
    parts = start_of(case)
    model = model_of(kind, parts)
    if case is CASES["ifca"] and model.collection:
        stacked = jax.tree.map(lambda x: jnp.zeros((2, *x.shape)), model.variables)
        whole = jax.tree.leaves(stacked)
        made = jax.tree.leaves(model.variables)
        both = [y if y.ndim == 2 else x for x, y in zip(whole, made, strict=True)]
        model = model._replace(
            variables=jax.tree.unflatten(jax.tree.structure(stacked), both)
        )
    training = case.make(model.loss, mean(), OPTIONS)

    state = rounds_of(training, model.variables, COHORTS[:2], case.data())

    got = model_in(state.variables)
    assert_is_of(got, model)
    expected = parts_by_dicts(case)
    for name, x in model.parts(got).items():
        np.testing.assert_allclose(x, expected[name], rtol=1e-5)


def as_dicts(model, row, key):
    """Work of one's own, which returns plain dicts whatever it was given."""
    del key
    change = jax.tree.map(lambda x: row[1] + jnp.zeros_like(x), model)
    is_other = isinstance(model, (FrozenDict, collections.OrderedDict))
    return (as_dict(change) if is_other else change), {}


def as_dict(model):
    is_other = isinstance(model, (FrozenDict, collections.OrderedDict))
    return {x: as_dict(y) for x, y in model.items()} if is_other else model


@every_kind
def test_a_round_of_dicts_returns_the_model_in_its_containers(kind):
    model = model_of(kind)
    server = optax.sgd(1.0, momentum=0.9)
    training = fedagg.federated_averaging(as_dicts, server, mean())

    state = training.init(model.variables)
    output = jax.jit(training.next)(state, (jnp.ones(2), jnp.ones(2)))

    assert_is_of(output.value, model)
    assert_is_of(output.state.variables, model)
    assert jax.tree.structure(output.state) == jax.tree.structure(state)


@every_kind
def test_an_evaluation_gives_the_model_in_its_containers(kind):
    model = model_of(kind)

    def predict(variables, inputs):
        assert_is_of(variables, model)
        return inputs * sum(jnp.sum(x) for x in model_parts(variables))

    def model_parts(variables):
        return jax.tree.leaves(variables["params"] if model.collection else variables)

    evaluation = fedagg.federated_evaluation(
        predict,
        {"loss": metrics.mean_loss(lambda x, y: jnp.sum((x - y) ** 2, axis=-1))},
        fedagg.aggregator(),
        after=fedagg.local_training(model.loss, optax.sgd(0.1)),
    )
    data = {"held_out": TABLE, "training": TABLE}
    state = evaluation.init((model.variables, data))

    output = jax.jit(evaluation.next)(state, data)

    assert_is_of(output.state.variables, model)
    assert output.metrics["before/loss"] != output.metrics["after/loss"]


@every_kind
def test_a_part_and_the_whole_are_in_the_model_s_containers(kind):
    model = model_of(kind)

    part, loss, whole = fedagg.trained_part(model.variables, model.loss, ["*head*"])
    work = fedagg.local_training(loss, optax.sgd(0.1))
    change, _ = jax.jit(work)(part, TABLE[1], None)

    assert type(part) is type(model.variables)
    assert jax.tree.structure(change) == jax.tree.structure(part)
    assert len(jax.tree.leaves(part)) == 1
    assert_is_of(whole(part), model)


@pytest.mark.deep
@every_kind
def test_a_run_is_resumed_in_the_model_s_containers(kind, tmp_path):
    model = model_of(kind)
    training = fedagg.federated_averaging(
        fedagg.local_training(model.loss, optax.sgd(0.1)), optax.sgd(1.0), mean()
    )

    def run(rounds, folder):
        found = fedagg.train(
            *(training, model.variables, TABLE, fedagg.fixed_size(2, len(TABLE))),
            rounds=rounds,
            key=jax.random.key(0),
            folder=folder,
        )
        return [x.state.variables for x in found][-1]

    expected = run(3, tmp_path / "whole")
    run(2, tmp_path / "parts")
    got = run(3, tmp_path / "parts")

    assert_is_of(got, model)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


class Sowing(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Dense(2)(x)
        self.sow("intermediates", "seen", x)
        self.sow("losses", "size", jnp.sum(x**2))
        return x


class SowingInState(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        x = self.layer(x)
        self.seen = nnx.Intermediate((x,))  # which is what `sow` does
        return x


def squares(outputs, targets):
    return jnp.sum((outputs - targets[:, :2]) ** 2, axis=-1)


def sown_by_linen():
    model = Sowing()
    variables = model.init(jax.random.key(0), EXAMPLES[0][0])
    assert "losses" in variables  # once more in each call
    return variables, fedagg.linen_loss(model, squares)


def sown_by_nnx():
    model = SowingInState(nnx.Rngs(0))
    model(EXAMPLES[1][0])  # which sows something into the module that is given
    return fedagg.nnx_loss(model, squares)


@pytest.mark.parametrize("make", [sown_by_linen, sown_by_nnx])
def test_what_a_model_sows_does_not_break_a_round(make):
    variables, loss = make()
    work = fedagg.local_training(loss, optax.sgd(0.1), batch_size=2, shuffle=False)
    training = fedagg.federated_averaging(work, optax.sgd(1.0), mean())
    state, next_round = training.init(variables), jax.jit(training.next)

    for _ in range(2):
        output = next_round(state, TABLE[[2, 4]])
        assert jax.tree.structure(output.state) == jax.tree.structure(state)
        moved = jax.tree.map(
            lambda x, y: bool(jnp.any(x != y)),
            output.value["params"],
            state.variables["params"],
        )
        assert all(jax.tree.leaves(moved))
        state = output.state

    assert np.isfinite(output.metrics["training/loss"])
