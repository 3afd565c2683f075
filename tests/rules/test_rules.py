"""Robust rules: their numbers, and what lying clients cannot do."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import assert_close, assert_same, first_now, first_round_compiled
from tests.rules import references

# By a name: the rule of `f` liars, and what it makes of `[n, d]`.
RULES = {
    "median": (lambda f: fedagg.median(), lambda x, f: references.median(x)),
    "trimmed_mean": (fedagg.trimmed_mean, references.trimmed_mean),
    "mean_around_median": (fedagg.mean_around_median, references.mean_around_median),
    "krum": (fedagg.krum, references.krum),
    "multi_krum": (fedagg.multi_krum, references.multi_krum),
    "bulyan": (fedagg.bulyan, references.bulyan),
    "minimum_diameter": (fedagg.minimum_diameter, references.minimum_diameter),
    "smea": (fedagg.smea, references.smea),
    "caf": (fedagg.caf, references.caf),
    "geometric_median": (
        lambda f: fedagg.geometric_median(),
        lambda x, f: references.geometric_median(x),
    ),
    "nearest_neighbor_mixing": (
        lambda f: fedagg.nearest_neighbor_mixing(f, fedagg.median()),
        lambda x, f: references.median(references.nearest_neighbor_mixing(x, f)),
    ),
    "adaptive_robust_clipping": (
        lambda f: fedagg.adaptive_robust_clipping(f, fedagg.trimmed_mean(f)),
        lambda x, f: references.trimmed_mean(
            references.adaptive_robust_clipping(x, f), f
        ),
    ),
}
OF_VECTORS = [
    *("krum", "multi_krum", "bulyan", "minimum_diameter", "smea", "caf"),
    *("geometric_median", "nearest_neighbor_mixing"),
]
BYZFL = json.loads(
    (pathlib.Path(__file__).parents[1] / "data" / "byzfl.json").read_text()
)["cases"]

every_rule = first_now("name", RULES, quick=2)


def clients(n: int, d: int = 5, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, d)) * draw.uniform(0.5, 2.0, (n, 1))
    return x.astype(np.float32).astype(np.float64)


def combined(rule: fedagg.Rule, x: np.ndarray, weights=None, key=None) -> np.ndarray:
    aggregator = fedagg.combining(rule)
    values = jnp.asarray(x.astype(np.float32))
    return first_round_compiled(aggregator, values, weights, key).value


def combined_in_64_bits(rule: fedagg.Rule, x: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        aggregator = fedagg.combining(rule)
        return aggregator.next(aggregator.init(x[0]), x).value


@every_rule
@first_now("n, f", [(7, 1), (8, 1), (11, 2)])
def test_a_rule_is_its_reference_for_odd_and_even_cohorts(name, n, f):
    make, expected = RULES[name]
    x = clients(n, seed=n)

    assert_close(combined(make(f), x), expected(x, f), rtol=2e-5)


@every_rule
def test_absent_clients_leave_the_reference_of_the_others(name):
    make, expected = RULES[name]
    x = clients(11, seed=3)
    held = x.copy()
    held[1], held[6] = math.nan, math.inf
    weights = np.where(np.isin(np.arange(11), [1, 6]), 0.0, 1.0)

    got = combined(make(1), held, jnp.asarray(weights, jnp.float32))

    assert_close(got, expected(x[weights > 0.0], 1), rtol=2e-5)


@every_rule
def test_a_liar_of_no_number_is_one_of_those_left_out(name):
    make, expected = RULES[name]
    x = clients(11, seed=4)
    lying = x.copy()
    lying[3] = math.nan
    lying[8, 2] = math.inf if name in OF_VECTORS else x[8, 2]
    honest = np.delete(x, [3, 8] if name in OF_VECTORS else [3], axis=0)

    got = combined(make(2), lying)

    if name == "caf":  # which ends where less is left
        assert np.abs(got).max() < np.abs(honest).max()
    elif name == "adaptive_robust_clipping":
        assert np.abs(got).max() < np.abs(honest).max()
    else:
        assert_close(got, expected(honest, 0 if name in OF_VECTORS else 1), rtol=2e-5)


@pytest.mark.parametrize("name", OF_VECTORS)
@pytest.mark.deep
def test_distances_do_not_suffer_from_a_large_common_offset(name):
    make, expected = RULES[name]
    offset = 1000.0 * np.random.default_rng(5).normal(size=40)
    x = (clients(9, 40, seed=5) + offset).astype(np.float32).astype(np.float64)

    got = np.asarray(combined(make(1), x), np.float64)

    np.testing.assert_allclose(got - offset, expected(x, 1) - offset, atol=2e-3)


@first_now("name", OF_VECTORS)
@first_now("scale", [1e6, 1e12, 1e18, 1e30])
def test_a_liar_far_away_does_not_spoil_the_distances_of_others(name, scale):
    make, _ = RULES[name]
    x = clients(11, 30, seed=6)
    lying = x.copy()
    lying[:2] = scale * np.random.default_rng(0).normal(size=(2, 30))

    got = combined(make(2), lying)

    # No rule lets two of eleven take it farther than the others are from each other.
    assert (
        np.linalg.norm(got - x[2:].mean(axis=0))
        < 0.5 * references.distances(x[2:]).max()
    )


@every_rule
def test_duplicates_give_what_they_are(name):
    x = np.repeat(clients(1), 9, axis=0)

    assert_close(combined(RULES[name][0](1), x), x[0])


@every_rule
def test_a_majority_of_duplicates_is_the_answer_of_order_statistics(name):
    x = clients(9, seed=7)
    x[:8] = x[0]

    assert_close(combined(RULES[name][0](1), x), x[0], rtol=2e-3)


@every_rule
@first_now("number", [0, 1, 2])
def test_fewer_clients_than_liars_have_a_finite_answer(name, number):
    x = clients(11, seed=8)
    weights = (np.arange(11) < number).astype(np.float32)

    got = np.asarray(combined(RULES[name][0](2), x, jnp.asarray(weights)))

    assert np.isfinite(got).all()
    if number == 0:
        assert (got == 0.0).all()
    if number == 1:
        assert_close(got, x[0])


@pytest.mark.parametrize("name", [x for x in RULES if x not in ("median",)])
def test_too_many_liars_are_refused_while_tracing(name):
    if name == "geometric_median":
        return
    with pytest.raises(ValueError, match=r"\(4\) needs .* clients.*got 8"):
        combined(RULES[name][0](4), clients(8))


def test_too_many_liars_for_the_buckets_are_refused_as_such():
    rule = fedagg.bucketing(2, fedagg.krum(2))

    with pytest.raises(ValueError, match=r"got 4. These are the buckets of bucketing"):
        combined(rule, clients(8), key=jax.random.key(0))


@pytest.mark.parametrize("f", [-1, 1.5, "1", True, None])
@pytest.mark.parametrize(
    "make",
    [
        *(fedagg.trimmed_mean, fedagg.mean_around_median, fedagg.krum, fedagg.caf),
        *(fedagg.multi_krum, fedagg.bulyan, fedagg.minimum_diameter, fedagg.smea),
        lambda f: fedagg.nearest_neighbor_mixing(f, fedagg.median()),
        lambda f: fedagg.adaptive_robust_clipping(f, fedagg.median()),
    ],
)
def test_no_whole_number_of_liars_is_refused(make, f):
    with pytest.raises(ValueError, match="f must be a whole number, 0 or more"):
        make(f)


@pytest.mark.parametrize("rule", [fedagg.median, None, fedagg.mean()])
def test_mixers_refuse_what_is_no_rule(rule):
    for mix in (
        fedagg.nearest_neighbor_mixing,
        fedagg.bucketing,
        fedagg.adaptive_robust_clipping,
    ):
        with pytest.raises(TypeError, match="rule: expected a Rule, as .*, got"):
            mix(1, rule)


@pytest.mark.parametrize("name", ["minimum_diameter", "smea"])
def test_too_many_subsets_are_refused_with_their_number(name):
    with pytest.raises(ValueError, match=r"of 60 there are 56,049,058, and at most"):
        combined(RULES[name][0](6), clients(60, 2))


def test_the_first_subset_of_those_with_the_same_diameter_counts():
    x = np.array([[math.nan], [1.0], [0.0], [5.0], [6.0], [2.0], [math.inf]])
    weights = jnp.asarray([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    rule = fedagg.minimum_diameter(2)

    one = combined(rule, x[1:6])
    other = combined(rule, x[5:0:-1])
    with_absent_ones = combined(rule, x, weights)
    tied = combined(rule, np.array([[0.0], [1.0], [2.0], [3.0], [4.0]]))

    assert_close(one, np.array([1.0]))
    assert_close(other, np.array([1.0]))
    assert_close(with_absent_ones, np.array([1.0]))
    assert_close(tied, np.array([1.0]))


@pytest.mark.deep
@first_now("n, f", [(10, 2), (12, 3), (20, 1)])
def test_the_smallest_of_many_diameters_is_that_of_the_first_subset(n, f):
    rule = fedagg.minimum_diameter(f)
    for seed in range(10):  # of which about four have ties
        x = clients(n, 100, seed=seed)

        assert_close(combined(rule, x), references.minimum_diameter(x, f), rtol=2e-5)


@every_rule
@pytest.mark.deep
def test_leaves_of_64_bits_are_worked_out_in_64_bits(name):
    make, expected = RULES[name]
    x = np.random.default_rng(18).normal(size=(11, 5))

    got = combined_in_64_bits(make(2), x)

    assert got.dtype == np.float64
    atol = 1e-5 if name == "geometric_median" else 1e-13  # where its steps end
    np.testing.assert_allclose(got, expected(x, 2), rtol=0, atol=atol)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["krum", "multi_krum"])
def test_scores_of_many_clients_far_apart_do_not_overflow(name):
    make, expected = RULES[name]
    directions = np.random.default_rng(20).normal(size=(500, 3))
    x = 2.2e18 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    held = np.concatenate([[[0.0] * 3], x])

    got = combined(make(1), held, jnp.asarray(np.arange(501) > 0, jnp.float32))

    exact = x.astype(np.float32).astype(np.float64) / 1e17
    assert_close(np.asarray(got, np.float64) / 1e17, expected(exact, 1), rtol=2e-5)


def test_caf_follows_its_paper_where_one_who_lost_all_is_far_out():
    x = np.array([[0.0], [1.0], [1.2], [1.9], [6.0]])

    assert_close(combined(fedagg.caf(1), x), references.caf(x, 1), rtol=2e-5)


@pytest.mark.deep
def test_many_small_steps_of_caf_at_once_lead_to_nearly_the_same():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 30))
    x[:10] += 60.0 * rng.normal(size=(10, 30))

    expected = references.caf(x, 10)

    apart = combined(fedagg.caf(10), x.astype(np.float32)) - expected
    assert np.linalg.norm(apart) < 0.01 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    "rule", [fedagg.median, fedagg.trimmed_mean, fedagg.geometric_median]
)
@pytest.mark.parametrize("weight", [3e38, 2e-38])
def test_extreme_weights_count_as_equal_ones_do(rule, weight):
    rule = (
        rule(1, weighted=True) if rule is fedagg.trimmed_mean else rule(weighted=True)
    )
    x, ones = clients(9, seed=21), jnp.ones(9)
    key = jax.random.key(0)
    for each in (rule, fedagg.bucketing(2, rule)):
        got = combined(each, x, weight * ones, key)

        assert_close(got, combined(each, x, ones, jax.random.clone(key)), rtol=2e-6)


def test_a_weight_that_dwarfs_the_others_does_not_make_them_absent():
    x = np.array([[1.0], [2.0], [3.0], [1000.0]])
    trimmed = combined(
        fedagg.trimmed_mean(1, weighted=True), x, jnp.asarray([1e-3, 1e-3, 1e-3, 3e38])
    )
    x[3] = math.nan
    middle = combined(
        fedagg.geometric_median(), x, jnp.asarray([1e-3, 1e-3, 1e-3, 3e38])
    )

    assert_close(trimmed, np.array([2.5]))
    assert_close(middle, np.array([2.0]), rtol=1e-3)


def test_parts_of_ties_have_64_bits_too():
    inside = np.linspace(-1.0, 1.0, 67).round(1)  # around zeros
    x = np.concatenate([[-7.0, 7.0, 7.0], inside])[:, None]

    got = combined_in_64_bits(fedagg.mean_around_median(2), x)

    expected = references.mean_with_ties_in_parts(x, 2)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-15)


@first_now("case", BYZFL, ids=[x["name"] for x in BYZFL], quick=6)
def test_rules_are_those_of_byzfl(case):
    x, f = np.array(case["vectors"]), case["f"]
    if case["rule"] == "centered_clipping":
        rule = fedagg.centered_clipping(1.5, iterations=3)
    else:
        rule = RULES[case["rule"]][0](f)

    got = combined(rule, x)

    assert_close(got, np.array(case["result"]), rtol=2e-5)


def test_centered_clipping_starts_where_the_last_round_ended():
    x, other = clients(7, seed=9), clients(7, seed=10)
    aggregator = fedagg.combining(fedagg.centered_clipping(0.7, iterations=2))
    state = aggregator.init(jnp.zeros(5))

    first = aggregator.next(state, jnp.asarray(x, jnp.float32))
    second = aggregator.next(first.state, jnp.asarray(other, jnp.float32))

    center = references.centered_clipping(x, np.zeros(5), 0.7, 2)
    assert_close(first.value, center)
    assert_close(second.value, references.centered_clipping(other, center, 0.7, 2))


@first_now("dtype", ["float32", "float16"])
def test_centered_clipping_of_many_blocks_and_a_rest_is_the_reference(dtype):
    x = clients(9, 140_001, seed=19).astype(dtype).astype(np.float64)
    x[4] = math.nan
    weights = jnp.ones(9).at[4].set(0.0)
    aggregator = fedagg.combining(fedagg.centered_clipping(300.0, iterations=2))

    values = jnp.asarray(x, dtype)
    got = np.asarray(first_round_compiled(aggregator, values, weights).value)

    there = np.delete(x, 4, axis=0)
    expected = references.centered_clipping(there, np.zeros(140_001), 300.0, 2)
    rtol = 1e-5 if dtype == "float32" else 1e-3
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol)


def test_a_client_moves_centered_clipping_by_the_radius_over_n_at_most():
    x = clients(8, seed=11)
    rule = fedagg.centered_clipping(0.5)
    honest = np.asarray(combined(rule, x), np.float64)

    for lie in (1e6, 1e18, 1e30, math.inf, math.nan):
        lying = x.copy()
        lying[0] = lie

        moved = np.linalg.norm(np.asarray(combined(rule, lying)) - honest)

        assert moved <= 2 * 0.5 / 8 + 1e-6


def test_the_weighted_geometric_median_is_that_of_repeated_clients():
    x, weights = clients(6, seed=12), np.array([1, 3, 2, 1, 1, 2])

    got = combined(fedagg.geometric_median(), x, jnp.asarray(weights, jnp.float32))
    plain = fedagg.geometric_median(weighted=False)
    unweighted = combined(plain, x, jnp.asarray(weights, jnp.float32))

    expected = references.geometric_median(np.repeat(x, weights, axis=0))
    assert_close(got, expected, rtol=2e-5)
    assert_close(unweighted, references.geometric_median(x), rtol=2e-5)


def test_the_weighted_median_is_that_of_repeated_clients():
    x, weights = clients(6, seed=13), np.array([1, 3, 2, 1, 0, 2])

    rule = fedagg.median(weighted=True)
    got = combined(rule, x, jnp.asarray(weights, jnp.float32))

    assert_close(got, np.median(np.repeat(x, weights, axis=0), axis=0))


def test_a_half_of_the_weight_between_two_clients_gives_their_mean():
    x = np.array([[1.0], [2.0], [10.0]])

    rule = fedagg.median(weighted=True)
    got = combined(rule, x, jnp.asarray([1.0, 1.0, 2.0]))

    assert_close(got, np.array([6.0]))


def test_the_weighted_trimmed_mean_weighs_what_is_kept():
    x = np.array([[1.0, 9.0], [2.0, 5.0], [4.0, -7.0], [100.0, 6.0]])

    rule = fedagg.trimmed_mean(1, weighted=True)
    got = combined(rule, x, jnp.asarray([9.0, 1.0, 3.0, 5.0]))

    assert_close(got, np.array([(2 + 3 * 4) / 4, (5 + 5 * 6) / 6]))


def test_entries_as_far_from_the_median_count_for_a_part_each():
    x = np.array([[-1.0], [0.0], [1.0]])

    assert_close(combined(fedagg.mean_around_median(1), x), np.array([0.0]))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9, 20])
@pytest.mark.deep
def test_buckets_are_means_of_all_present_clients_once(size):
    x = clients(9, seed=14)
    weights = np.array([1, 1, 0, 1, 1, 1, 1, 0, 1.0])
    seen = []

    def combine(state, updates, key):
        seen.append(updates)
        return fedagg.Output(state, jax.tree.map(lambda x: x[0], updates.value), {})

    rule = fedagg.bucketing(size, fedagg.Rule(lambda template: (), combine))
    updates = fedagg.Update(
        jnp.asarray(np.where(weights[:, None], x, math.nan), jnp.float32),
        jnp.asarray(weights, jnp.float32),
    )
    rule.combine((), updates, jax.random.key(3))

    got, there = np.asarray(seen[0].value), np.asarray(seen[0].weight)
    filled = -(-7 // size)
    assert got.shape == (-(-9 // size), 5)
    assert (
        (there[:filled] > 0).all() and there.sum() == 7 and (there[filled:] == 0).all()
    )
    assert_close(there[:filled] @ got[:filled], x[weights > 0].sum(axis=0))


def test_buckets_need_a_key_and_differ_with_it():
    x, rule = clients(9, seed=15), fedagg.bucketing(2, fedagg.median())

    one, same, other = (combined(rule, x, key=jax.random.key(i)) for i in (0, 0, 1))

    assert_same(one, same)
    assert not np.array_equal(one, other)
    with pytest.raises(ValueError, match="bucketing draws buckets and needs a key"):
        combined(rule, x)


@every_rule
def test_leaves_of_any_number_and_dtype_are_one_vector(name):
    make, expected = RULES[name]
    x = clients(9, 151, seed=16).astype(np.float16).astype(np.float64)
    tree = {"a": jnp.asarray(x[:, 0], jnp.float16)}
    tree |= {
        f"b{i:03}": jnp.asarray(x[:, i : i + 1], jnp.float32) for i in range(1, 149)
    }
    tree["c"] = jnp.asarray(x[:, 149:].reshape(9, 1, 2), jnp.float16)

    value = first_round_compiled(fedagg.combining(make(1)), tree).value

    order = [np.ravel(v).astype(np.float64) for v in value.values()]
    assert value["c"].dtype == jnp.float16 and value["c"].shape == (1, 2)
    got, want = np.concatenate(order), expected(x, 1)
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(got[1:149], want[1:149], rtol=2e-4, atol=2e-4)


@first_now("name", RULES)
def test_many_blocks_and_a_rest_are_as_one(name):
    make, expected = RULES[name]
    x = clients(9, 40_000, seed=17)

    assert_close(combined(make(1), x), expected_of_many(name, expected, x), rtol=1e-4)


@first_now("name", ["median", "trimmed_mean", "mean_around_median"])
@first_now("n", [5, 16, 17, 64, 65])
def test_order_statistics_of_any_number_of_clients_with_ties_and_absent_ones(name, n):
    make, expected = RULES[name]
    x = np.round(2.0 * clients(n, 40, seed=n)) / 4.0
    held = np.where(np.arange(n)[:, None] % 5 == 1, math.nan, x)
    weights = (np.arange(n) % 5 != 1).astype(np.float32)
    there = x[weights > 0.0]

    got = combined(make(1), held, jnp.asarray(weights))

    if name == "mean_around_median":  # of which ties count for a part each
        expected = references.mean_with_ties_in_parts
    assert_close(got, expected(there, 1), rtol=2e-5)


def expected_of_many(name, expected, x: np.ndarray) -> np.ndarray:
    """Without covariances `[d, d]`: in coordinates of the clients' own space."""
    if name not in ("smea", "caf"):
        return expected(x, 1)
    basis, inner = np.linalg.qr((x - x[0]).T)
    return x[0] + basis @ expected(inner.T, 1)


@pytest.mark.parametrize(
    "rule, part",
    [
        (fedagg.centered_clipping(10.0), 1 / 5),
        (fedagg.adaptive_robust_clipping(1, fedagg.trimmed_mean(1)), 1 / 3),
    ],
    ids=["centered_clipping", "adaptive_robust_clipping"],
)
def test_a_client_of_zeros_has_a_derivative(rule, part):
    aggregator = fedagg.combining(rule)

    def result(x: jax.Array) -> jax.Array:
        return aggregator.next(aggregator.init(x[0]), x).value

    gradient = jax.grad(result)(jnp.asarray([-2.0, -1.0, 0.0, 1.0, 2.0]))

    np.testing.assert_allclose(gradient[2], part, rtol=1e-6)
