"""No public name claims a privacy that `guarantee` cannot compute."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import fedagg
from tests.helpers import first_now
from tests.test_laws import RECIPES, STAGES

TEMPLATE = {"b": jnp.zeros(()), "w": jnp.zeros((3, 2))}
OUT: dict[str, Any] = {"neighbors": "zero_out", "delta": 1e-5, "rounds": 2}
# What is refused, and what is said of it.
SAID = {
    "matrix_factorization_noise": "takes a mechanism",
    # With a zeroing that learns, of which it says that none is meant.
    "skellam_noise_adaptive_and_secure": "so that there is none",
}


def is_private(name: str) -> bool:
    made = STAGES[name] if name in STAGES else (RECIPES[name]().stage,)
    return any(x is not None and x.traits.is_private for x in made)


PRIVATE = [x for x in (*STAGES, *RECIPES) if is_private(x)]


def made_of(name: str) -> Any:
    if name in RECIPES:
        return RECIPES[name]()
    return fedagg.aggregator(*STAGES[name])


@first_now("name", PRIVATE)
def test_what_is_private_has_an_epsilon_or_says_what_it_lacks(name):
    made = made_of(name)

    if name in SAID:
        with pytest.raises(ValueError, match=SAID[name]):
            fedagg.guarantee(made, TEMPLATE, **OUT)
        return
    got = fedagg.guarantee(made, TEMPLATE, **OUT)

    assert 0.0 < got.epsilon < math.inf and got.delta >= 1e-5
    seen = str(fedagg.server_view(made, TEMPLATE))
    assert " no\n" not in seen + "\n"


def test_private_names_are_many_enough_to_be_all():
    assert {"gaussian_noise", "tree_noise", "banded_noise", "skellam_noise"} <= set(
        PRIVATE
    )
    assert {"dp_aggregator", "distributed_dp_aggregator"} <= set(PRIVATE)


def test_noise_of_each_client_has_its_epsilon_by_the_relation_that_it_says():
    with pytest.raises(ValueError, match="epsilon with neighbors='replace_one'"):
        fedagg.guarantee(
            fedagg.aggregator(fedagg.local_gaussian_noise(1.0, 1.0), fedagg.mean()),
            TEMPLATE,
            **OUT,
        )

    # Two clips apart, whoever else is there.
    local = fedagg.epsilon(2.0, 1, 1e-5, neighbors="replace_one")
    assert local == pytest.approx(
        fedagg.epsilon(1.0, 1, 1e-5, neighbors="zero_out"), rel=1e-3
    )


@pytest.mark.parametrize("recipe", ["dp_aggregator", "distributed_dp_aggregator"])
@pytest.mark.deep
def test_a_value_of_1_or_1000_moves_no_later_round(recipe):
    made = getattr(fedagg, recipe)(0.5, 10)
    next_round = jax.jit(made.next)
    rows = {"x": jnp.full((10, 2), 0.01)}
    second = []
    for held in (1.0, 1000.0):
        state = made.init({"x": jnp.zeros(2)})
        first = {"x": rows["x"].at[0].set(held)}
        state = next_round(state, first, None, jax.random.key(0)).state
        second.append(next_round(state, rows, None, jax.random.key(1)))

    for one, other in zip(*map(jax.tree.leaves, second), strict=True):
        assert jnp.array_equal(one, other)
