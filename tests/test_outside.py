"""What a user writes by the page on the design goes with all that is ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import (
    TEMPLATE,
    WAYS,
    N,
    assert_close,
    assert_same,
    assert_same_round,
    every_way,
    first_now,
    make_updates,
    stack,
    take,
    with_absent,
)
from tests.outside import project
from tests.outside.parts import halving, nearest, shrinking
from tests.rounds.test_steps import step_by_step

ROUNDS = {
    "a_stage": lambda way: fedagg.aggregator(
        fedagg.zeroing(20.0),
        shrinking(0.1, most=3.0),
        fedagg.clipping(fedagg.quantile_bound(1.0, 0.8, 0.2)),
        fedagg.mean(),
        sum_over=way,
    ),
    "a_stage_and_a_compressor": lambda way: fedagg.aggregator(
        shrinking(0.1, most=3.0),
        fedagg.clipping(1.0),
        fedagg.mean(),
        fedagg.with_distortion(halving()),
        sum_over=way,
    ),
    "a_stage_under_a_secure_sum": lambda way: fedagg.aggregator(
        fedagg.secure_sum(
            fedagg.chain(
                fedagg.clipping(1.0), shrinking(0.01, most=3.0), fedagg.mean()
            ),
            20.0,
            largest_cohort=100,
            largest_weight=20.0,
        ),
        sum_over=way,
    ),
    "a_stage_before_noise": lambda way: fedagg.aggregator(
        fedagg.without_guarantee(shrinking(0.1, most=3.0)),
        fedagg.gaussian_noise(0.5, 1.0, 10.0),
        sum_over=way,
    ),
}
RULES = {
    "a_rule": lambda: fedagg.combining(nearest(), fedagg.clipping(1.0)),
    "a_rule_a_stage_and_a_compressor": lambda: fedagg.combining(
        nearest(), shrinking(0.1, most=3.0), halving()
    ),
}

everything = pytest.mark.parametrize("name", [*ROUNDS, *RULES])


def build(name, way="default"):
    return RULES[name]() if name in RULES else ROUNDS[name](WAYS[way]())


def whole(aggregator, updates):
    """A round in one, after one that moves what is learnt."""

    @jax.jit
    def two_rounds(state, value, weight):
        state, *_ = aggregator.next(state, value, weight, jax.random.key(1))
        return state, aggregator.next(state, value, weight, jax.random.key(2))

    return two_rounds(aggregator.init(TEMPLATE), *updates)


@first_now("name", ROUNDS)
@every_way
def test_every_way_to_sum_gives_the_same(name, way):
    updates = with_absent(make_updates(), np.nan, [2, 5])

    _, expected = whole(build(name), updates)
    _, got = whole(build(name, way), updates)

    assert_same_round(got, expected)


@everything
@pytest.mark.deep
def test_an_absent_client_changes_nothing_whatever_it_holds(name):
    updates = make_updates()

    _, clean = whole(build(name), with_absent(updates, 0.0, [2, 5]))
    _, dirty = whole(build(name), with_absent(updates, np.nan, [2, 5]))

    assert_same(dirty, clean)


@first_now("name", [*ROUNDS, *RULES], quick=3)
def test_steps_are_the_round(name):
    aggregator, updates = build(name), make_updates()
    weights = np.array(updates.weight)
    weights[[1, 7]] = 0.0

    state, expected = whole(aggregator, updates._replace(weight=jnp.asarray(weights)))
    got = step_by_step(
        aggregator.steps, state, updates.value, weights, jax.random.key(2)
    )

    assert_same_round(got, expected)


@everything
def test_the_server_view_lists_what_is_sent(name):
    view = fedagg.server_view(build(name), TEMPLATE)

    seen = {part.how for part in view.parts if part.part.startswith("value")}
    if "secure" in name:
        assert seen == {"secure sum modulo 2**32"}
    else:
        is_single = "compressor" in name or name in RULES
        assert seen == {"in the clear" if is_single else "plain sum"}
    if "noise" in name:
        # The threshold follows what clients keep, without noise.
        assert {x.part for x in view.parts if x.follows} == {"value['b']", "value['w']"}
        assert not any(x.noised for x in view.parts)


def test_a_user_compressor_is_half_the_size():
    plain = fedagg.message_bits(fedagg.mean(), TEMPLATE)

    half = fedagg.message_bits(fedagg.chain(fedagg.mean(), halving()), TEMPLATE)

    assert plain - half == 16 * 7


@pytest.mark.parametrize("before", [fedagg.gaussian_noise(1.0, 1.0, 10.0), halving()])
def test_a_stage_that_does_not_only_read_is_refused_after(before):
    with pytest.raises(ValueError, match="shrinking comes after"):
        fedagg.chain(before, shrinking(0.1, most=3.0))


@pytest.mark.deep
def test_the_rule_chooses_the_client_in_the_middle():
    rows = {"x": jnp.array([[0.0, 0.0], [1.0, 1.0], [1.1, 1.0], [9.0, 9.0]])}

    output = fedagg.combining(nearest()).next(
        fedagg.combining(nearest()).init(take(rows, 0)), rows
    )

    assert_same(output.value, take(rows, 2))


@pytest.mark.deep
def test_a_project_runs_its_rounds_whole_with_memory_and_by_messages():
    updates = make_updates(4)
    rows = [take(updates.value, i) for i in range(4)]
    aggregator = build("a_stage_and_a_compressor")

    value, weight = project.rounds(TEMPLATE, *updates, jax.random.key(0))
    mean, counts = project.remembering(jnp.arange(4.0))
    sent = project.by_messages(rows, aggregator)
    together = aggregator.next(aggregator.init(TEMPLATE), stack(rows))

    assert jax.tree.structure(value) == jax.tree.structure(TEMPLATE)
    assert weight == float(updates.weight.sum())
    assert mean == 1.5 and counts.tolist() == [1] * 4
    assert_close(sent, together.value)
    assert len(rows) < N
