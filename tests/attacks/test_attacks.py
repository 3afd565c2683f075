"""Attacks: what they send, and what rules make of it."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from fedagg import attacks
from tests.helpers import assert_close, assert_same, first_now


def honest(n: int = 8, d: int = 12, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(1.0, 1.0, (n, d))
    return x.astype(np.float32).astype(np.float64)


def sent(attack: attacks.Attack, x: np.ndarray, liars: int = 3) -> np.ndarray:
    send = jax.jit(lambda x: attack(x, liars, jax.random.key(0)))
    return np.asarray(send(jnp.asarray(x, jnp.float32)))


@pytest.mark.parametrize(
    "attack, expected",
    [
        (attacks.sign_flipping(), lambda x: -x.mean(axis=0)),
        (attacks.inner_product_manipulation(3.0), lambda x: -3.0 * x.mean(axis=0)),
        (
            attacks.a_little_is_enough(1.2),
            lambda x: x.mean(axis=0) + 1.2 * x.std(axis=0, ddof=1),
        ),
        (attacks.mimic(2), lambda x: x[2]),
    ],
)
def test_liars_send_what_the_paper_says(attack, expected):
    x = honest()

    got = sent(attack, x)

    assert_close(got, np.tile(expected(x), (3, 1)))


@pytest.mark.parametrize(
    "attack, held",
    [(attacks.infinity(), math.inf), (attacks.not_a_number(), math.nan)],
)
def test_liars_send_no_numbers(attack, held):
    np.testing.assert_array_equal(sent(attack, honest()), np.full((3, 12), held))


def test_normal_noise_has_its_mean_and_deviation_and_differs_by_liar():
    got = sent(attacks.gaussian(2.0, mean=5.0), honest(d=20_000), 2)

    np.testing.assert_allclose(got.mean(axis=1), 5.0, atol=0.06)
    np.testing.assert_allclose(got.std(axis=1), 2.0, rtol=0.02)
    assert abs(np.corrcoef(got)[0, 1]) < 0.03


def test_noise_has_the_digits_of_its_leaf():
    with jax.enable_x64(True):
        values = jnp.zeros((2, 1000), jnp.float64)

        got = np.asarray(attacks.gaussian(1.0)(values, 2, jax.random.key(0)))

    assert (got != got.astype(np.float32)).mean() > 0.99


def test_noise_needs_a_key():
    with pytest.raises(ValueError, match="gaussian draws noise and needs a key"):
        attacks.gaussian(1.0)(jnp.ones((3, 2)), 1, None)


@pytest.mark.parametrize("client", [-1, 1.5])
def test_no_position_of_a_client_is_refused(client):
    with pytest.raises(ValueError, match="client must be a whole number"):
        attacks.mimic(client)


def test_a_client_that_is_not_there_cannot_be_mimicked():
    with pytest.raises(ValueError, match="client must be a whole number, 0 to 2"):
        attacks.mimic(3)(jnp.ones((3, 2)), 1, None)


@pytest.mark.parametrize(
    "labels",
    [
        jnp.asarray([0, 1, 9]),
        [0, 1, 9],
        np.array([0, 1, 9]),
        jnp.asarray([0, 1, 9], "uint8"),
    ],
)
@pytest.mark.parametrize("classes", [10, np.int64(10)])
def test_labels_are_counted_from_the_other_end(labels, classes):
    got = attacks.flipped_labels(labels, classes)

    assert_same(got, jnp.asarray([9, 8, 0], got.dtype))


def test_labels_that_cannot_be_flipped_are_refused():
    with pytest.raises(TypeError, match="labels must be of an integer dtype, got"):
        attacks.flipped_labels(jnp.asarray([0.0, 1.0]), 2)
    with pytest.raises(ValueError, match="classes must be a whole number, 1 to 128"):
        attacks.flipped_labels(jnp.asarray([0, 1], jnp.int8), 129)


@pytest.mark.parametrize(
    "make",
    [
        attacks.inner_product_manipulation,
        attacks.a_little_is_enough,
        lambda scale: attacks.gaussian(1.0, mean=scale),
    ],
)
def test_a_scale_or_a_mean_that_is_no_finite_number_is_refused(make):
    for x in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="must be finite, got (scale|mean)=-?"):
            make(x)
    for x in ("1", None, True, jnp.ones(3)):
        with pytest.raises(TypeError, match="(scale|mean) must be a number, got"):
            make(x)


@pytest.mark.parametrize("name", ["sign_flipping", "mimic", "infinity", "gaussian"])
def test_what_is_no_stack_of_honest_floats_is_refused(name):
    attack = attacks.gaussian(1.0) if name == "gaussian" else getattr(attacks, name)()
    key = jax.random.key(0)
    with pytest.raises(TypeError, match=rf"{name} takes leaves of a float.*\['a'\]"):
        attack({"a": jnp.ones((3, 2), jnp.int32)}, 1, key)
    with pytest.raises(ValueError, match="honest: expected a leading axis of clients"):
        attack({"a": jnp.float32(1.0)}, 1, key)
    with pytest.raises(ValueError, match="honest: all leaves must agree"):
        attack([jnp.ones((3, 2)), jnp.ones((2, 2))], 1, key)


def test_two_scales_tried_are_the_largest_of_both_signs():
    rule = fedagg.centered_clipping(1.0)  # of which longer values take it farther
    x = honest(4)

    got = sent(
        attacks.optimized(
            attacks.inner_product_manipulation, rule, largest=8.0, evaluations=4
        ),
        x,
        1,
    )

    scale = np.linalg.norm(got) / np.linalg.norm(x.mean(axis=0))
    assert 8.0 / math.e <= scale <= 8.0 * math.e * 1.001


@pytest.mark.deep
def test_attacks_keep_trees_and_dtypes():
    tree = {"a": jnp.ones((4, 2), jnp.bfloat16), "b": [jnp.ones(4), jnp.ones((4, 0))]}
    for attack in (
        attacks.sign_flipping(),
        attacks.a_little_is_enough(),
        attacks.mimic(),
        attacks.gaussian(1.0),
        attacks.infinity(),
    ):
        got = attack(tree, 5, jax.random.key(0))

        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), got)
        like = jax.tree.map(lambda x: ((5, *x.shape[1:]), x.dtype), tree)
        assert shapes == like


def harm(rule: fedagg.Rule, x: np.ndarray, malicious: np.ndarray) -> float:
    values = jnp.asarray(np.concatenate([x, malicious]), jnp.float32)
    updates = fedagg.Update(values, jnp.ones(len(values)))
    value = rule.combine(rule.init(values[0]), updates, None).value
    return float(np.linalg.norm(np.asarray(value) - x.mean(axis=0)))


@pytest.mark.parametrize(
    "attack", [attacks.inner_product_manipulation, attacks.a_little_is_enough]
)
@pytest.mark.parametrize(
    "rule",
    [fedagg.trimmed_mean(2), fedagg.multi_krum(2), fedagg.centered_clipping(2.0)],
)
@pytest.mark.deep
def test_an_optimized_attack_is_as_bad_as_any_scale_of_it(attack, rule):
    x = honest(9, seed=1)

    got = harm(rule, x, sent(attacks.optimized(attack, rule), x, 2))

    scales = np.concatenate(
        [np.geomspace(0.01, 100.0, 25), -np.geomspace(0.01, 100, 25)]
    )
    others = [harm(rule, x, sent(attack(s), x, 2)) for s in scales]
    assert got >= 0.98 * max(others)
    assert max(others) > 1.2 * min(others)  # so that there was something to find


@pytest.mark.deep
def test_no_scale_is_above_the_largest():
    rule = fedagg.centered_clipping(1e6)  # of which longer values take it farther
    x = honest(4)
    for number in (4, 20):
        attack = attacks.optimized(
            attacks.inner_product_manipulation, rule, largest=8.0, evaluations=number
        )

        scale = np.linalg.norm(sent(attack, x, 1)) / np.linalg.norm(x.mean(axis=0))

        assert_close(scale, np.float64(8.0))


# By the names that its cases have; the number of liars is two in all of them.
RULES_OF_BYZFL = {
    "median": fedagg.median(),
    "trimmed_mean": fedagg.trimmed_mean(2),
    "mean_around_median": fedagg.mean_around_median(2),
    "krum": fedagg.krum(2),
    "multi_krum": fedagg.multi_krum(2),
    "geometric_median": fedagg.geometric_median(),
    "nearest_neighbor_mixing": fedagg.nearest_neighbor_mixing(2, fedagg.median()),
    "adaptive_robust_clipping": fedagg.adaptive_robust_clipping(
        2, fedagg.trimmed_mean(2)
    ),
}
BYZFL = json.loads(
    (pathlib.Path(__file__).parents[1] / "data" / "byzfl_attacks.json").read_text()
)["cases"]


@first_now("case", BYZFL, ids=[x["name"] for x in BYZFL], quick=2)
def test_an_optimized_attack_does_as_much_harm_as_that_of_byzfl(case):
    rule = RULES_OF_BYZFL[case["rule"]]
    attack = attacks.optimized(getattr(attacks, case["attack"]), rule)
    x, theirs = np.array(case["honest"]), np.array(case["sent"])

    ours = harm(rule, x, sent(attack, x, case["f"]))

    assert ours >= 0.995 * harm(rule, x, np.tile(theirs, (case["f"], 1)))
