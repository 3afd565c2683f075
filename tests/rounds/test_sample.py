"""A sample of single clients, beside the round that it is of."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from tests.helpers import (
    TEMPLATE,
    assert_same,
    first_now,
    first_round_compiled,
    make_updates,
    stack,
    take,
    with_absent,
)

KEY = jax.random.key(3)


def sampled(
    clients: int, updates: fedagg.Update, *stages: fedagg.Stage
) -> fedagg.Output:
    aggregator = fedagg.with_sample(fedagg.aggregator(*stages), clients)
    return first_round_compiled(aggregator, *updates, KEY)


def test_a_sample_is_of_present_clients_and_leaves_the_round_as_it_is():
    updates = with_absent(make_updates(), jnp.nan, [0, 3, 4])
    stages = fedagg.mean(), fedagg.quantization(4, threshold=0)

    output = sampled(5, updates, *stages)

    plain = first_round_compiled(fedagg.aggregator(*stages), *updates, KEY)
    assert_same(output[1:], plain[1:])
    rows = np.asarray(updates.value["w"])
    found = [
        int(np.flatnonzero((rows == row).all(axis=(1, 2)))[0])
        for row in np.asarray(output.state.sample.value["w"])
    ]
    assert len(set(found)) == 5 and not {0, 3, 4} & set(found)
    assert_same(output.state.sample, take(updates, np.array(found)))


def test_rows_for_which_nobody_is_there_are_zero():
    updates = with_absent(make_updates(), jnp.nan, range(2, 11))

    sample = sampled(20, updates, fedagg.mean()).state.sample

    assert sample.value["w"].shape == (20, 3, 2) and sample.weight.shape == (20,)
    assert (np.asarray(sample.weight) > 0.0).sum() == 2
    assert all(not np.asarray(x)[2:].any() for x in jax.tree.leaves(sample))


def test_every_present_client_comes_as_often():
    aggregator = fedagg.with_sample(fedagg.aggregator(), 2)
    values, weights = jnp.arange(6.0), jnp.array([1.0, 1.0, 0.0, 9.0, 1.0, 1.0])
    state = aggregator.init(jnp.zeros(()))

    def draw(seed):
        key = jax.random.key(seed)
        return aggregator.next(state, values, weights, key).state.sample.value

    drawn = jax.jit(jax.vmap(draw))(jnp.arange(5000))

    counts = np.bincount(np.asarray(drawn, int).ravel(), minlength=6)
    assert counts[2] == 0
    # 2000 expected of each, with a deviation of 35.
    assert all(abs(counts[[0, 1, 3, 4, 5]] - 2000) < 5 * 35)


def test_rounds_keep_the_type_of_the_state():
    aggregator = fedagg.with_sample(fedagg.aggregator(fedagg.mean()), 3)
    rounds = stack([make_updates(seed=x) for x in range(3)])

    def body(state, x):
        updates, seed = x
        key = jax.random.key(seed)
        output = aggregator.next(state, updates.value, updates.weight, key)
        return output.state, output.state.sample.weight

    _, weights = jax.lax.scan(body, aggregator.init(TEMPLATE), (rounds, jnp.arange(3)))

    for i in range(3):
        assert np.isin(weights[i], rounds.weight[i]).all()


@pytest.mark.deep
def test_clients_of_a_sample_do_the_same_work_again():
    datasets = [np.full((size, 2), size, np.float32) for size in (1, 2, 3, 4)]
    table = fedagg.ClientTable.of(datasets)

    def work(row, key, memory):
        examples, mask = row.padded()
        draw = jax.random.uniform(key, ())
        total = jnp.sum(jnp.where(mask[:, None], examples, 0.0))
        return (
            fedagg.Update(jnp.stack([total, draw]), jnp.max(examples)),
            {},
            memory + 1,
        )

    aggregator = fedagg.with_sample(fedagg.aggregator(), 4)
    state = aggregator.init(jnp.zeros(2))

    output, kept = aggregator.next(
        state, table, None, KEY, work=work, memory=jnp.zeros(4)
    )

    assert_same(kept, jnp.ones(4))
    sample = output.state.sample
    np.testing.assert_allclose(np.sort(sample.value[:, 0]), [2.0, 8.0, 18.0, 32.0])
    np.testing.assert_allclose(np.sort(sample.weight), [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(output.value, np.sum(sample.value, axis=0), rtol=1e-6)


def test_a_training_shows_what_some_clients_sent():
    aggregator = fedagg.with_sample(fedagg.aggregator(fedagg.mean()), 2)

    def work(model, row, key):
        return {"w": row - model["w"]}, {}

    training = fedagg.federated_averaging(work, optax.sgd(1.0), aggregator)
    data = jnp.array([[1.0], [5.0]])

    output = training.next(training.init({"w": jnp.ones(1)}), data, None, KEY)

    sample = output.state.aggregator.sample.value["w"]
    np.testing.assert_allclose(np.sort(np.ravel(sample)), [0.0, 4.0])
    view = fedagg.server_view(training, {"w": jnp.ones(1)})
    assert [(x.part, x.how) for x in view.parts][:2] == [
        ("value.value['w']", "plain sum"),
        ("value.sample['w']", "in the clear"),
    ]


@first_now(
    "stage",
    [
        fedagg.gaussian_noise(1.0, 1.0, 10.0),
        fedagg.secure_sum(fedagg.mean(), 1.0, largest_cohort=20, largest_weight=20.0),
    ],
    ids=["private", "secret"],
)
def test_what_hides_clients_is_refused_unless_that_is_meant(stage):
    with pytest.raises(ValueError, match="hides what single clients send"):
        fedagg.with_sample(fedagg.aggregator(stage), 1)

    meant = fedagg.without_guarantee(stage)
    assert sampled(1, make_updates(), meant).state.sample.weight > 0.0
    view = str(
        fedagg.server_view(fedagg.with_sample(fedagg.aggregator(meant), 1), TEMPLATE)
    )
    assert view.count("in the clear") == 2


def test_a_rule_s_clients_are_sampled_too():
    aggregator = fedagg.with_sample(fedagg.combining(fedagg.median()), 1)

    output = first_round_compiled(aggregator, *make_updates(), KEY)

    assert output.state.sample.weight > 0.0


@pytest.mark.deep
def test_mistakes_are_named():
    stage: Any = fedagg.mean()
    aggregator = fedagg.with_sample(fedagg.aggregator(fedagg.mean()), 1)

    with pytest.raises(TypeError, match="aggregator: expected an Aggregator"):
        fedagg.with_sample(stage, 1)
    with pytest.raises(ValueError, match="clients must be a whole number, 1 or more"):
        fedagg.with_sample(aggregator, 0)
    with pytest.raises(ValueError, match="with_sample draws clients and needs a key"):
        first_round_compiled(aggregator, *make_updates())
    with pytest.raises(TypeError, match="cannot be taken apart"):
        aggregator.steps.broadcast(())
    fed_back = fedagg.with_error_feedback(fedagg.top_k(0.5), 3)
    updates = jnp.ones((3, 4)), jnp.arange(3)
    other = fedagg.with_sample(fed_back, 1)
    with pytest.raises(ValueError, match="with_sample expected clients' values like"):
        other.next(other.init(jnp.zeros(4)), updates, None, KEY)
