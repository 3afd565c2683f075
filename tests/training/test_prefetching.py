"""Cohorts fetched ahead: their order, how far ahead, errors and an early end."""

import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import mesh_of


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_cohorts_come_in_order_and_on_the_device(ahead):
    cohorts = [{"x": np.full(3, i), "n": i} for i in range(4)]
    got = list(fedagg.prefetch(cohorts, ahead=ahead))
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(got))
    chex.assert_trees_all_equal(got, jax.tree.map(jnp.asarray, cohorts))
    assert list(fedagg.prefetch([])) == []


def test_it_fetches_as_far_ahead_as_it_is_told():
    fetched = [threading.Event() for _ in range(6)]

    def cohorts():
        for i, event in enumerate(fetched):
            event.set()
            yield np.full(2, i)

    coming = fedagg.prefetch(cohorts(), ahead=2)
    assert not fetched[0].is_set()  # nothing before the first is asked for
    next(coming)
    assert fetched[2].wait(timeout=60)  # two more, while nobody asks
    next(coming)
    assert fetched[3].wait(timeout=60)
    assert not fetched[5].is_set()
    coming.close()


def test_an_error_comes_in_its_turn():
    def cohorts():
        yield np.zeros(1)
        raise OSError("no such client")

    coming = fedagg.prefetch(cohorts())
    next(coming)
    with pytest.raises(OSError, match="no such client"):
        next(coming)


@pytest.mark.deep
def test_rounds_on_a_table_of_the_host():
    datasets = [np.arange(1.0, m + 1.0) for m in (3, 1, 4, 2)]
    table = fedagg.ClientTable.of(datasets, on_host=True)
    mesh = mesh_of(2)

    def work(row, key):
        del key
        examples, mask = row.padded()
        return jnp.sum(jnp.where(mask, examples, 0.0)), {}

    summing = fedagg.aggregator(sum_over=fedagg.across(mesh))
    numbers = [[0, 1], [2, 3], [3, 0]]
    cohorts = (table.gathered(x) for x in numbers)
    everywhere = jax.NamedSharding(mesh, jax.P())
    got = [
        float(summing.next(summing.init(jnp.float32(0.0)), cohort, work=work).value)
        for cohort in fedagg.prefetch(cohorts, sharding=everywhere)
    ]
    sums = [sum(x) for x in datasets]
    assert got == [sum(sums[i] for i in pair) for pair in numbers]


def test_errors():
    with pytest.raises(ValueError, match="ahead must be a whole number"):
        fedagg.prefetch([], ahead=0)
