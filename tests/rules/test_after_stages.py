"""Rules after stages that change what a client sends: its shapes, or to integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.compiling import jit
from tests.helpers import assert_close
from tests.rules import references

N, D = 7, 5


def clients(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, D)).astype(np.float32)


def tree(x: np.ndarray) -> dict[str, jax.Array]:
    return {"a": jnp.asarray(x[..., 0]), "b": jnp.asarray(x[..., 1:])}


def vector(value: dict[str, jax.Array]) -> np.ndarray:
    return np.concatenate([np.asarray(value["a"])[None], np.asarray(value["b"])])


def weighing() -> fedagg.Stage:
    """A user's own stage that multiplies a value by its weight, and divides nothing."""

    def client(update: fedagg.Update, key: jax.Array | None):
        value = jax.tree.map(lambda x: x * update.weight, update.value)
        return update._replace(value=value), ()

    return fedagg.Stage.stateless(client, traits=fedagg.Traits("weighing", weighs=True))


def test_centered_clipping_after_a_stage_starts_where_the_last_round_ended():
    rule = fedagg.centered_clipping(0.7, iterations=2)
    aggregator = fedagg.combining(rule, fedagg.top_k(1.0))  # as one vector
    state, step = aggregator.init(tree(clients(0)[0])), jit(aggregator.next)
    center = np.zeros(D)
    for seed in range(2):  # each round starts where the last one ended
        x = clients(seed)

        output = step(state, tree(x))

        center = references.centered_clipping(x, center, 0.7, 2)
        assert_close(vector(output.value), center, rtol=2e-5)
        state = output.state


@pytest.mark.parametrize(
    "rule, expected",
    [
        (fedagg.median(), references.median),
        (
            fedagg.centered_clipping(0.7),  # in units of the value, not of the grid
            lambda x: references.centered_clipping(x, np.zeros(D), 0.7, 1),
        ),
    ],
    ids=["median", "centered_clipping"],
)
def test_a_rule_of_points_of_a_grid_is_that_of_their_values(rule, expected):
    stage = fedagg.discretization(0.01, stochastic=False)
    aggregator = fedagg.combining(rule, stage)
    x = clients(2)

    value = jit(aggregator.next)(aggregator.init(tree(x[0])), tree(x)).value

    rounded = np.round(x.astype(np.float64) / 0.01) * 0.01
    assert_close(vector(value), expected(rounded), rtol=1e-4)


@pytest.mark.deep
@pytest.mark.parametrize(
    "stages",
    [
        (fedagg.top_k(1.0),),
        (fedagg.discretization(1e-4, stochastic=False), fedagg.elias_gamma()),
        (fedagg.quantization(16),),
    ],
    ids=repr,
)
def test_centered_clipping_runs_after_stages_that_lose_little(stages):
    radius = 1e6  # which clips nothing
    aggregator = fedagg.combining(fedagg.centered_clipping(radius), *stages)
    x = clients(3)
    state, key = aggregator.init(tree(x[0])), jax.random.key(0)

    value = jit(aggregator.next)(state, tree(x), None, key).value

    np.testing.assert_allclose(vector(value), x.mean(axis=0), atol=2e-3)


def test_integers_of_clients_themselves_stay_refused():
    aggregator = fedagg.combining(fedagg.median())
    values = {"a": jnp.ones((3, 2)), "n": jnp.ones((3, 2), jnp.int32)}

    with pytest.raises(TypeError, match=r"median takes leaves of a float.*\['n'\]"):
        aggregator.next(aggregator.init(jax.tree.map(lambda x: x[0], values)), values)


@pytest.mark.parametrize(
    "large", [[5e6, -5e6, 4e6], [1.07e7, 1e5, 1.0]], ids=["three", "one"]
)
def test_large_clients_before_a_rule_do_not_spoil_a_sum_that_is_not_made(large):
    # In steps, their sizes add up to more than an int32 holds.
    aggregator = fedagg.combining(
        fedagg.median(), fedagg.discretization(0.01, stochastic=False)
    )
    x = jnp.asarray([*large, 1.0, 2.0, 3.0, 4.0])

    value = jit(aggregator.next)(aggregator.init(x[0]), x).value

    assert_close(value, np.median(np.asarray(x, np.float64)))


@pytest.mark.parametrize(
    "stages, said",
    [
        (
            (
                fedagg.discretization(1.0, stochastic=False),
                fedagg.modular_clipping(0, 8),
            ),
            "integers that wrap around .* modular does not go with a rule",
        ),
        (
            (fedagg.chain(fedagg.clipping(1.0), fedagg.mean()),),
            r"chain\(clipping, mean\) multiplies by clients' weights, or divides",
        ),
        (
            (fedagg.grouped({"*": fedagg.mean(weighted=False)}),),
            r"Leave mean\(\) out",
        ),
        (
            (weighing(),),
            "weighing multiplies by clients' weights",
        ),
        (
            (fedagg.gaussian_noise(1.0, 1.0, 10.0),),
            "noise for privacy .* gaussian_noise does not go with a rule",
        ),
        (
            (fedagg.secure_sum(fedagg.clipping(1.0), 1.0, largest_cohort=9),),
            "a secure sum shows none: secure_sum does not go with a rule",
        ),
    ],
    ids=["modular", "chain", "grouped", "weighing", "noise", "secure"],
)
def test_what_is_made_for_a_sum_is_refused_before_a_rule(stages, said):
    with pytest.raises(ValueError, match=said):
        fedagg.combining(fedagg.median(), *stages)


def test_groups_of_which_some_come_in_steps_are_one_vector_to_a_rule():
    rounded = fedagg.discretization(0.01, stochastic=False)
    some = fedagg.grouped({"a": fedagg.clipping(1.0), "*": rounded})
    aggregator = fedagg.combining(fedagg.krum(1), some)
    x = clients(5)

    value = jit(aggregator.next)(aggregator.init(tree(x[0])), tree(x)).value

    exact = np.round(x.astype(np.float64) / 0.01) * 0.01
    exact[:, 0] = np.clip(x[:, 0], -1.0, 1.0)
    assert_close(vector(value), references.krum(exact, 1), rtol=1e-4)
