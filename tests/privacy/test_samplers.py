"""Cohorts as accountants take them to be drawn."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import fedagg
from fedagg._privacy.samplers import room_for
from tests.helpers import first_now


def drawn(sampler: fedagg.Sampler, clients: int, rounds: int, seed: int = 0):
    """Who is in which round, `[rounds, clients]` of times, all rounds with one key."""
    key, first = jax.random.split(jax.random.key(seed))

    def body(state, _):
        state, cohort = sampler.next(state, key)
        times = jnp.zeros((clients,)).at[cohort.rows].add(cohort.weights)
        return state, times

    start = sampler.init(clients, first)
    return np.asarray(jax.jit(lambda x: jax.lax.scan(body, x, length=rounds))(start)[1])


def test_poisson_cohorts_have_each_client_by_itself_with_the_rate():
    times = drawn(fedagg.poisson(0.05), 400, 1000)

    assert set(np.unique(times)) == {0.0, 1.0}
    # Of 400,000 draws, and of sizes with the variance of a binomial law.
    assert abs(times.mean() - 0.05) < 5 * math.sqrt(0.05 * 0.95 / 400_000)
    assert 0.8 < times.sum(axis=1).var() / (400 * 0.05 * 0.95) < 1.25
    in_both = (times[:-1] * times[1:]).mean()
    assert abs(in_both - 0.05**2) < 5 * 0.05 / math.sqrt(400_000)


def test_all_clients_are_in_each_round_of_a_rate_of_one():
    np.testing.assert_array_equal(drawn(fedagg.poisson(1.0), 50, 3), 1.0)


@first_now("rate", [1.0, 0.5])
def test_a_cycle_has_each_client_in_one_round_of_a_period_and_by_itself(rate):
    times = drawn(fedagg.cyclic(4, rate), 2000, 40)

    periods = times.reshape(10, 4, 2000).sum(axis=0)  # [turn, client]
    assert np.all((periods > 0).sum(axis=0) <= 1)
    assert abs(periods.sum() / (10 * 2000) - rate) < 5 * math.sqrt(0.25 / 20_000)
    # Turns are drawn for each client, so that groups vary in size.
    sizes = (periods > 0).sum(axis=1)
    assert np.all(abs(sizes - 500) < 120) and len(set(sizes.tolist())) > 1
    if rate == 1.0:
        assert np.all(periods.sum(axis=0) == 10)


@pytest.mark.deep
def test_a_client_s_turn_does_not_depend_on_how_many_there_are():
    few, many = (drawn(fedagg.cyclic(4), n, 4) for n in (100, 101))

    np.testing.assert_array_equal(few, many[:, :100])


def test_cohorts_of_a_fixed_size_are_drawn_from_all():
    times = drawn(fedagg.fixed_size(10, 200), 200, 2000)

    assert np.all(times.sum(axis=1) == 10) and times.max() == 1.0
    counts = times.sum(axis=0)  # mean 100, deviation 9.7
    assert np.all(abs(counts - 100) < 6 * 9.75) and 60 < counts.var() < 135


@first_now("most", [None, 3])
def test_separated_clients_rest_and_come_no_more_often_than_said(most):
    times = drawn(fedagg.separated(5, size=10, times=most), 60, 50)

    for client in times.T:
        rounds = np.flatnonzero(client)
        assert np.all(np.diff(rounds) >= 5)
        assert most is None or len(rounds) <= most
    if most is None:
        assert np.all(times.sum(axis=1) == 10)
        assert len({tuple(x) for x in times}) > 40
    else:
        assert times.sum() == 60 * 3  # and nobody is left


def test_too_few_who_have_rested_are_filled_up_with_absent_ones():
    times = drawn(fedagg.separated(3, size=4), 6, 6)

    np.testing.assert_array_equal(times.sum(axis=1), [4, 2, 0, 4, 2, 0])


@pytest.mark.deep
def test_a_cohort_without_room_is_left_out_whole():
    sampler = fedagg.poisson(0.5, room=10)
    state = sampler.init(40, jax.random.key(0))

    _, cohort = sampler.next(state, jax.random.key(1))

    assert cohort.rows.shape == (10,) and not np.any(cohort.weights)


@pytest.mark.parametrize("clients", [1, 10, 1000, 100_000])
@pytest.mark.parametrize("rate", [0.001, 0.1, 0.9])
def test_there_is_room_but_for_a_chance_of_2_to_the_minus_40(clients, rate):
    room = room_for(clients, rate)

    assert scipy.stats.binom.sf(room, clients, rate) <= 2.0**-40
    assert room <= clients


def test_one_key_draws_anew_in_each_round():
    times = drawn(fedagg.poisson(0.5), 200, 50)

    assert len({tuple(x) for x in times}) == 50


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: fedagg.poisson(0.0), "rate must be in"),
        (lambda: fedagg.poisson(1.5), "rate must be in"),
        (lambda: fedagg.poisson(0.5, room=0), "room must be a whole number"),
        (lambda: fedagg.cyclic(0), "period must be a whole number"),
        (lambda: fedagg.fixed_size(11, 10), "size must be a whole number, 1 to 10"),
        (lambda: fedagg.fixed_size(1, 0), "clients must be a whole number"),
        (lambda: fedagg.separated(0, size=1), "separation must be a whole number"),
        (lambda: fedagg.separated(1, size=0), "size must be a whole number"),
        (lambda: fedagg.separated(1, size=1, times=0), "times must be a whole number"),
        (
            lambda: fedagg.fixed_size(2, 5).init(6, jax.random.key(0)),
            "clients must be a whole number, 5 to 5",
        ),
        (
            lambda: fedagg.separated(1, size=3).init(2, jax.random.key(0)),
            "clients must be a whole number, 3 or more",
        ),
    ],
)
def test_samplers_out_of_range_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_samplers_print_as_their_calls():
    assert str(fedagg.poisson(0.1)) == "poisson(0.1)"
    assert str(fedagg.cyclic(3, rate=0.5)) == "cyclic(3, rate=0.5)"
    assert str(fedagg.fixed_size(1, 2)) == "fixed_size(1, 2)"
    assert str(fedagg.separated(3, size=2)) == "separated(3, size=2)"
