"""Stages in sequence."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import TEMPLATE, assert_close, assert_same, first_round, make_updates


def affine(name: str, factor: float, shift: float) -> fedagg.Stage:
    """Scales at the client and shifts at the server; counts clients and rounds."""

    def client(shared: jax.Array, update: fedagg.Update, key: Any):
        del key
        value = jax.tree.map(lambda x: factor * x + shared, update.value)
        return update._replace(value=value), jnp.int32(1)

    def server(state: jax.Array, total: Any, note: jax.Array, key: Any):
        del key
        total = jax.tree.map(lambda x: x + shift, total)
        return fedagg.Output(state + 1.0, total, {f"{name}/clients": note})

    return fedagg.Stage(
        lambda template: jnp.float32(0.0), lambda state: state, client, server
    )


def test_left_to_right_at_the_client_and_right_to_left_at_the_server():
    order = []

    def logging(name: str) -> fedagg.Stage:
        def client(shared: Any, update: fedagg.Update, key: Any):
            order.append(f"client {name}")
            return update, ()

        def server(state: Any, total: Any, note: Any, key: Any):
            order.append(f"server {name}")
            return fedagg.Output(state, total, {})

        return fedagg.Stage(lambda template: (), lambda state: (), client, server)

    stage = fedagg.chain(logging("a"), fedagg.chain(logging("b"), logging("c")))
    state = stage.init(TEMPLATE)
    order.clear()  # of what init asked the clients for
    update = fedagg.Update(jnp.ones(2), jnp.float32(1.0))
    update, note = stage.client(stage.broadcast(state), update, None)
    stage.server(state, update.value, note, None)

    assert order == [
        *("client a", "client b", "client c"),
        *("server c", "server b", "server a"),
    ]


def test_each_stage_has_its_own_state_note_and_metrics():
    aggregator = fedagg.aggregator(affine("a", 2.0, 1.0), affine("b", 3.0, 10.0))
    value = jnp.asarray([1.0, 2.0, math.nan])
    weights = jnp.asarray([1.0, 1.0, 0.0])

    first = first_round(aggregator, value, weights)
    second = aggregator.next(first.state, value, weights)

    assert first.value == 6.0 * 3.0 + 11.0
    # In the second round clients add 1 at each stage.
    assert second.value == 6.0 * 3.0 + 2 * (3.0 + 1.0) + 11.0
    assert_same(tuple(second.state), (jnp.float32(2.0), jnp.float32(2.0)))
    assert {k: int(x) for k, x in second.metrics.items()} == {
        "a/clients": 2,
        "b/clients": 2,
    }


def test_a_chain_within_a_chain_is_the_chain():
    bounds = [
        fedagg.quantile_bound(2.0, 0.9, 0.3),
        fedagg.quantile_bound(1.0, 0.5, 0.2),
    ]
    flat = fedagg.chain(
        fedagg.zeroing(bounds[0]), fedagg.clipping(bounds[1]), fedagg.mean()
    )
    nested = fedagg.chain(
        fedagg.chain(fedagg.zeroing(bounds[0]), fedagg.clipping(bounds[1])),
        fedagg.chain(fedagg.chain(), fedagg.mean()),
    )

    one = first_round(fedagg.aggregator(flat), *make_updates())
    other = first_round(fedagg.aggregator(nested), *make_updates())

    assert_same(other.value, one.value)
    assert_same(other.metrics, one.metrics)
    assert_same(jax.tree.leaves(other.state), jax.tree.leaves(one.state))


@pytest.mark.deep
def test_each_stage_and_each_client_draws_from_a_key_of_its_own():
    def draw_of(number: int) -> fedagg.Stage:
        """Reports what this client draws here, and what the server does."""

        def client(shared: Any, update: fedagg.Update, key: Any):
            draw = jax.random.bits(key, (), jnp.uint32)
            return update, jnp.where(update.value == number, draw, jnp.uint32(0))

        def server(state: Any, total: Any, note: jax.Array, key: Any):
            draw = jax.random.bits(key, (), jnp.uint32)
            return fedagg.Output((), total, {f"{number}/c": note, f"{number}/s": draw})

        return fedagg.Stage(lambda template: (), lambda state: (), client, server)

    aggregator = fedagg.aggregator(*[draw_of(i) for i in range(3)])
    clients = jnp.arange(3)

    metrics = first_round(aggregator, clients, None, jax.random.key(0)).metrics
    others = first_round(aggregator, clients, None, jax.random.key(1)).metrics

    draws = [int(x) for y in (metrics, others) for x in y.values()]
    assert len(set(draws)) == len(draws) == 12


def test_a_stage_after_one_that_makes_a_client_absent_does_not_hear_of_it():
    aggregator = fedagg.aggregator(
        affine("before", 1.0, 0.0),
        fedagg.zeroing(1.0, keep_weight=False),
        affine("after", 1.0, 0.0),
    )

    output = first_round(aggregator, jnp.asarray([0.5, math.nan, 9.0, 0.25]))

    assert output.value == 0.75
    assert {k: float(x) for k, x in output.metrics.items()} == {
        "before/clients": 4.0,
        "zeroing/bound": 1.0,
        "zeroing/count": 2.0,
        "after/clients": 2.0,
    }


def test_metrics_come_in_the_order_of_the_stages():
    output = first_round(fedagg.robust_aggregator(), *make_updates())

    assert list(output.metrics) == [
        *("zeroing/bound", "zeroing/count", "clipping/bound", "clipping/count"),
        "mean/weight",
    ]


@pytest.mark.deep
def test_a_stage_after_a_rotation_is_made_for_its_vector():
    # All entries are rotated, then a rotation of the vector, then all of it is sent.
    rotations = fedagg.rotation("dft"), fedagg.rotation("hadamard", seed=1)
    aggregator = fedagg.aggregator(*rotations, fedagg.top_k(1.0))
    updates = make_updates()

    output = aggregator.next(aggregator.init(TEMPLATE), updates.value)

    total = jax.tree.map(lambda x: jnp.sum(x, axis=0), updates.value)
    assert_close(output.value, total, rtol=1e-4)


def test_a_stage_after_one_that_codes_is_refused_by_name():
    with pytest.raises(ValueError, match="codes. Put mean before quantization"):
        fedagg.chain(fedagg.quantization(8, 0), fedagg.mean())


@pytest.mark.deep
def test_two_stages_may_be_alike_under_two_names():
    aggregator = fedagg.aggregator(
        fedagg.clipping(4.0, name="outer"), fedagg.clipping(2.0, name="inner")
    )

    output = first_round(aggregator, jnp.asarray([[0.0, 8.0], [3.0, 0.0]]))

    assert_close(output.value, np.asarray([2.0, 2.0]))
    assert output.metrics["outer/count"] == 1.0
    assert output.metrics["inner/count"] == 2.0


def test_two_stages_that_report_the_same_name_are_refused():
    aggregator = fedagg.aggregator(fedagg.clipping(1.0), fedagg.clipping(2.0))

    with pytest.raises(ValueError, match="the metric 'clipping/bound' is reported twi"):
        first_round(aggregator, *make_updates())


@pytest.mark.parametrize("put_together", [fedagg.chain, fedagg.aggregator])
@pytest.mark.parametrize("other", [fedagg.mean, None, fedagg.median(), 1.0])
def test_what_is_no_stage_is_refused_by_its_position(put_together, other):
    with pytest.raises(TypeError, match=r"stages\[1\]: expected a Stage"):
        put_together(fedagg.mean(), other)


@pytest.mark.parametrize(
    "state", [(), ((), (), ()), jnp.zeros(2), None, {"mean": ()}], ids=repr
)
def test_the_state_of_another_chain_is_refused(state):
    aggregator = fedagg.aggregator(fedagg.clipping(1.0), fedagg.mean())

    with pytest.raises(ValueError, match="state: expected what init returned"):
        aggregator.next(state, *make_updates())


def test_a_chain_refuses_the_state_of_another_at_the_server_too():
    stage = fedagg.chain(fedagg.mean())

    with pytest.raises(ValueError, match="a tuple of 1; got a tuple of 2"):
        stage.server(((), ()), jnp.ones(2), (jnp.float32(1.0),), None)
