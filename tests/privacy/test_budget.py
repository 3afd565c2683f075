"""The budget of a run."""

import math
from typing import Any

import dp_accounting
import flax.serialization
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg

TEMPLATE, DELTA = jnp.zeros(3), 1e-5
SAMPLED: dict[str, Any] = {"neighbors": "add_or_remove", "participation": 0.1}
NOISE = fedagg.aggregator(fedagg.gaussian_noise(1.0, 1.0, 10.0))


def made(target: float = 3.0, **options: Any) -> fedagg.Budget:
    options = {"accountant": "rdp", **SAMPLED, **options}
    return fedagg.budget(NOISE, TEMPLATE, target, DELTA, **options)


def epsilon(rounds: int, multiplier: float = 1.0) -> float:
    return fedagg.epsilon(multiplier, rounds, DELTA, **SAMPLED, accountant="rdp")


@pytest.mark.deep
def test_a_loop_stops_before_it_overspends():
    budget = made()

    state, rounds = budget.init(), 0
    while budget.allows(state):
        state = budget.next(state)
        rounds += 1

    assert rounds == budget.rounds and epsilon(rounds) <= 3.0 < epsilon(rounds + 1)
    assert math.isclose(budget.epsilon(state), epsilon(rounds), rel_tol=1e-9)
    with pytest.raises(ValueError, match="the budget is spent"):
        budget.next(state)


def test_nothing_is_spent_before_the_first_round():
    budget = made()

    assert budget.epsilon(budget.init()) == 0.0


def test_what_is_spent_survives_a_checkpoint():
    budget = made()
    state = budget.next(budget.next(budget.init()))

    saved = flax.serialization.to_bytes(state)
    restored: Any = flax.serialization.from_bytes(budget.init(), saved)

    assert restored == state and restored.rounds.dtype == np.int64
    # Less the two steps by which a discrete Gaussian rounds a Gaussian one.
    assert budget.epsilon(restored) == pytest.approx(epsilon(2), rel=1e-10)


@pytest.mark.deep
def test_other_noise_goes_on_from_the_event_of_what_was_spent():
    first = made()
    state = first.next(first.next(first.init()))
    less = fedagg.aggregator(fedagg.gaussian_noise(0.8, 1.0, 10.0))

    second = fedagg.budget(
        less,
        TEMPLATE,
        5.0,
        DELTA,
        **SAMPLED,
        accountant="rdp",
        earlier=first.event(state),
    )

    accountant = dp_accounting.rdp.RdpAccountant()
    for multiplier, rounds in ((1.0, 2), (0.8, second.rounds)):
        event = dp_accounting.GaussianDpEvent(multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(0.1, event), rounds)
    end = second.init()._replace(rounds=np.asarray(second.rounds))
    expected = accountant.get_epsilon(DELTA)
    assert math.isclose(second.epsilon(end), expected, rel_tol=1e-9)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(0.1, event))
    assert expected <= 5.0 < accountant.get_epsilon(DELTA)
    assert math.isclose(second.epsilon(second.init()), epsilon(2), rel_tol=1e-9)
    whole = dp_accounting.rdp.RdpAccountant().compose(second.event(end))
    assert math.isclose(whole.get_epsilon(DELTA), expected, rel_tol=1e-9)


def test_a_budget_that_is_overspent_already_is_refused():
    earlier = dp_accounting.GaussianDpEvent(1.0)

    with pytest.raises(ValueError, match="is spent already, above target_epsilon=2"):
        made(2.0, earlier=earlier)


def test_a_target_below_one_round_allows_none():
    assert made(1e-3).rounds == 0


@pytest.mark.deep
def test_correlated_noise_is_spent_as_a_whole():
    tree = fedagg.aggregator(fedagg.tree_noise(6.0, 1.0, 10.0, restart_every=8))

    budget = fedagg.budget(
        tree,
        TEMPLATE,
        2.0,
        DELTA,
        neighbors="zero_out",
        participation=fedagg.separated(8, size=4),
    )

    # Trees of eight rounds have four levels; what is spent moves with their number.
    trees = [
        fedagg.epsilon(6.0 / math.sqrt(4 * n), 1, DELTA, neighbors="zero_out")
        for n in (1, 2, 3, 4, 5)
    ]
    assert budget.rounds == 8 * sum(x <= 2.0 for x in trees) > 0


@pytest.mark.deep
def test_rounds_are_looked_for_up_to_a_number():
    assert made(1e4, most_rounds=100).rounds == 100


def test_noise_of_integers_goes_with_nothing_earlier():
    noise = fedagg.skellam(4.0, 1.0, 10, bits=18)
    options: dict[str, Any] = {"neighbors": "zero_out"}
    whole = fedagg.aggregator(noise.secure_sum())

    budget = fedagg.budget(whole, TEMPLATE, 5.0, DELTA, **options)

    spent = [
        fedagg.epsilon(noise.curve(TEMPLATE), budget.rounds + i, DELTA, **options)
        for i in (0, 1)
    ]
    assert spent[0] <= 5.0 < spent[1]
    with pytest.raises(ValueError, match="is not composed with one"):
        fedagg.budget(
            whole,
            TEMPLATE,
            5.0,
            DELTA,
            **options,
            earlier=dp_accounting.GaussianDpEvent(9.0),
        )
