"""A part of a model is trained: what is frozen takes no part in a round."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import fedagg
from tests.helpers import first_now

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(6, 4)).astype(np.float32)
TARGETS = RANDOM.integers(0, 3, 6)
TABLE = fedagg.ClientTable.of(
    [(INPUTS[:2], TARGETS[:2]), (INPUTS[2:], TARGETS[2:])], on_host=False
)
CROSS_ENTROPY = optax.softmax_cross_entropy_with_integer_labels


class Net(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=False)(linen.Dense(5)(x))
        return linen.Dense(3, name="head")(x)


class Adapted(nnx.Module):
    def __init__(self, rngs):
        self.body = nnx.Linear(4, 3, rngs=rngs)
        self.lora_a = nnx.Param(jax.random.normal(rngs.params(), (4, 1)))
        self.lora_b = nnx.Param(jnp.zeros((1, 3)))

    def __call__(self, x):
        return self.body(x) + x @ self.lora_a[...] @ self.lora_b[...]


def with_linen():
    model = Net()
    variables = model.init(jax.random.key(0), INPUTS)
    return variables, fedagg.linen_loss(model, CROSS_ENTROPY), ["params/head/*"], 2


def with_nnx():
    variables, loss = fedagg.nnx_loss(Adapted(nnx.Rngs(0)), CROSS_ENTROPY)
    return variables, loss, ["params/lora_*"], 2


@first_now("make", [with_nnx, with_linen])
def test_what_is_frozen_is_not_sent_and_stays(make):
    variables, loss, patterns, count = make()
    part, loss_of_part, whole = fedagg.trained_part(variables, loss, patterns)
    training = fedagg.federated_averaging(
        fedagg.local_training(loss_of_part, optax.sgd(0.5), shuffle=False),
        optax.sgd(1.0),
        fedagg.aggregator(fedagg.clipping(1e-3), fedagg.mean()),
    )
    state = training.init(part)

    state, after, metrics = training.next(state, TABLE, TABLE.sizes)
    sent = training.message(part).value

    leaves = jax.tree.leaves(part)
    assert [x.shape for x in jax.tree.leaves(sent)] == [x.shape for x in leaves]
    assert len(leaves) == count
    before, now = (jax.tree.leaves(x) for x in (variables, whole(after)))
    moved = [not np.array_equal(x, y) for x, y in zip(before, now, strict=True)]
    assert 0 < sum(moved) <= count < len(before)
    # Both are clipped by the norm of what is trained, and so is the mean.
    change = jax.tree.map(lambda x, y: x - y, after, part)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(change)))
    assert 0 < norm < 1.001e-3


def test_the_change_of_a_part_is_that_of_the_whole():
    variables, loss, patterns, _ = with_linen()
    part, loss_of_part, _ = fedagg.trained_part(variables, loss, patterns)
    row = TABLE[0]

    change, _ = fedagg.local_training(loss_of_part, optax.sgd(0.5))(part, row, None)
    of_all, _ = fedagg.local_training(loss, optax.sgd(0.5))(variables, row, None)

    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        change["params"]["head"],
        of_all["params"]["head"],
    )


@pytest.mark.deep
def test_statistics_are_trained_where_a_pattern_names_them():
    variables, loss, patterns, _ = with_linen()
    part, loss_of_part, _ = fedagg.trained_part(
        variables, loss, [*patterns, "batch_stats/*/mean"]
    )

    change, _ = fedagg.local_training(loss_of_part, optax.sgd(0.5))(
        part, TABLE[0], None
    )

    assert len(jax.tree.leaves(change["batch_stats"])) == 1
    assert all(x.any() for x in jax.tree.leaves(change["batch_stats"]))


def test_a_pattern_of_no_leaf_and_a_part_without_parameters_are_refused():
    variables, loss, _, _ = with_linen()

    with pytest.raises(ValueError, match="patterns: no leaf is like 'lora'"):
        fedagg.trained_part(variables, loss, ["lora"])
    with pytest.raises(ValueError, match="expected a model with parameters"):
        fedagg.trained_part(variables, loss, ["batch_stats/*"])
