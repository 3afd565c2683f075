"""Noise of trees: variances of sums and of rounds, restarts, learnt clips."""

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import assert_close, first_round_compiled, make_updates
from tests.privacy.test_gaussian import CASES, stacked

STDS = {row["use_efficient"]: row for row in CASES["dp_tree_noise_std"]["rows"]}
D = 40_000


def rounds_of(stage: fedagg.Stage, count: int, value: Any = None, n: int = 1) -> Any:
    """Values and metrics of so many rounds of the same clients."""
    value = {"x": jnp.zeros((n, D))} if value is None else value
    aggregator = fedagg.aggregator(stage)
    start = aggregator.init(jax.tree.map(lambda x: x[0], value))

    def body(state: Any, key: jax.Array):
        output = aggregator.next(state, value, None, key)
        return output.state, (output.value, output.metrics)

    _, (values, metrics) = jax.lax.scan(
        body, start, jax.random.split(jax.random.key(1), count)
    )
    return values, metrics


@pytest.mark.parametrize("efficient", [True, False])
@pytest.mark.deep
def test_residuals_and_sums_have_the_recorded_deviations(efficient):
    row, clip, z, n = STDS[efficient], 2.0, 0.5, 4.0
    stage = fedagg.tree_noise(z, clip, n, restart_every=17, efficient=efficient)

    values, metrics = rounds_of(stage, 17)

    # The scale is clip * z / n; ours and theirs are known to half a percent each.
    residuals = np.asarray(values["x"], np.float64) * n / (clip * z)
    sums = np.cumsum(residuals, axis=0)
    for ours, theirs in (
        (residuals, row["residual_std_per_step"]),
        (sums, row["cumulative_std_per_step"]),
    ):
        np.testing.assert_allclose(ours.std(axis=1), theirs, rtol=0.02)
    np.testing.assert_allclose(
        metrics["tree_noise/stddev"] * n / (clip * z),
        row["residual_std_per_step"],
        rtol=0.02,
    )


@pytest.mark.parametrize("efficient", [True, False])
@pytest.mark.deep
def test_a_prefix_has_the_variance_of_its_ones(efficient):
    stage = fedagg.tree_noise(1.0, 1.0, 1.0, restart_every=12, efficient=efficient)

    values, _ = rounds_of(stage, 12)

    sums = np.cumsum(np.asarray(values["x"], np.float64), axis=0)
    for t in range(1, 13):
        ones = [b for b in range(4) if t >> b & 1]
        variance = sum(1 / (2 - 0.5**b) if efficient else 1.0 for b in ones)
        np.testing.assert_allclose(sums[t - 1].var(), variance, rtol=0.04)
        assert abs(sums[t - 1].mean()) < 0.03


def reference_deviations(rounds: int) -> list[float]:
    """Of each round's noise, from the draws of all nodes of a whole tree, in float64.

    A node is the average of its two children and a draw of its own, divided by its
    variance where it is read (Honaker 2015, section 3.3).
    """
    size = 1 << rounds.bit_length()
    draws = iter(np.eye(2 * size))
    levels = [[next(draws) for _ in range(size)]]
    while len(levels[-1]) > 1:
        pairs = zip(levels[-1][::2], levels[-1][1::2], strict=True)
        levels.append([(a + b) / 2.0 + next(draws) for a, b in pairs])
    prefixes, deviations = [np.zeros(2 * size)], []
    for t in range(1, rounds + 1):
        read = [b for b in range(t.bit_length()) if t >> b & 1]
        nodes = [levels[b][(t >> b) - 1] for b in read]
        prefixes.append(np.sum([x / (x @ x) for x in nodes], axis=0))
        deviations.append(float(np.linalg.norm(prefixes[-1] - prefixes[-2])))
    return deviations


@pytest.mark.deep
def test_the_reported_deviation_is_that_of_the_tree_to_rounding():
    stage = fedagg.tree_noise(0.5, 3.0, 2.0, restart_every=23)

    _, metrics = rounds_of(stage, 23, {"x": jnp.zeros((1, 2))})

    expected = 0.5 * 3.0 / 2.0 * np.asarray(reference_deviations(23))
    np.testing.assert_allclose(metrics["tree_noise/stddev"], expected, rtol=1e-5)


@pytest.mark.deep
def test_prefixes_share_the_nodes_that_they_have_in_common():
    values, _ = rounds_of(
        fedagg.tree_noise(1.0, 1.0, 1.0, restart_every=8, efficient=False), 8
    )

    sums = np.cumsum(np.asarray(values["x"], np.float64), axis=0)
    # 4 = 100 and 5 = 101, 6 = 110, 7 = 111 have the node of the first four rounds.
    covariance = np.cov(sums)
    for i, j, shared in [(4, 5, 1), (5, 7, 1), (6, 7, 2), (3, 4, 0), (7, 8, 0)]:
        assert abs(covariance[i - 1, j - 1] - shared) < 0.06


@pytest.mark.deep
def test_a_full_tree_makes_room_for_another():
    values, _ = rounds_of(fedagg.tree_noise(1.0, 1.0, 1.0, restart_every=3), 9)

    sums = np.cumsum(np.asarray(values["x"], np.float64), axis=0)
    tree = [1.0, 1 / 1.5, 1.0 + 1 / 1.5]
    expected = [k * tree[-1] + x for k in range(3) for x in tree]
    np.testing.assert_allclose(sums.var(axis=1), expected, rtol=0.05)


@pytest.mark.deep
def test_recorded_rounds_without_noise_give_the_recorded_results():
    case = CASES["dp_tree_aggregation_noise0"]
    stage = fedagg.tree_noise(0.0, 0.7, 8.0, restart_every=10)
    aggregator = fedagg.aggregator(stage)
    n = max(len(x["client_values"]) for x in case["rounds"])
    next_round = jax.jit(aggregator.next)
    first = stacked(case["rounds"][0]["client_values"], n)
    state = aggregator.init(jax.tree.map(lambda x: x[0], first))

    for i, recorded in enumerate(case["rounds"]):
        clients = recorded["client_values"]
        present = jnp.asarray(np.arange(n) < len(clients), jnp.float32)
        updates = stacked(clients, n)
        state, value, metrics = next_round(state, updates, present, jax.random.key(i))
        for leaf, expected in recorded["result"].items():
            assert_close(value[leaf], np.asarray(expected, np.float64))
        clip = recorded["measurements"]["dp_query_metrics"]["tree_agg_dpftrl_clip"]
        assert_close(metrics["tree_noise/clip"], np.float64(clip))


@pytest.mark.deep
def test_the_adaptive_tree_takes_its_estimate_on_at_restarts_only():
    value = {"x": jnp.ones((10, 1))}
    stage = fedagg.adaptive_tree_noise(
        0.0, 10.0, restart_warmup=2, restart_every=5, count_stddev=0.0
    )

    values, metrics = rounds_of(stage, 9, value)

    # Nobody is below, so that the estimate grows by exp(0.2 / 2) in every round.
    grown = 0.1 * np.exp(0.1 * np.asarray([0, 0, 2, 2, 2, 2, 2, 7, 7]))
    np.testing.assert_allclose(metrics["tree_noise/clip"], grown, rtol=1e-5)
    np.testing.assert_allclose(values["x"][:, 0], grown, rtol=1e-5)


@pytest.mark.deep
def test_the_adaptive_tree_noises_values_and_count_by_their_parts():
    z, n = 1.0, 40.0
    stage = fedagg.adaptive_tree_noise(
        z, n, initial_clip=3.0, restart_warmup=7, restart_every=8
    )
    aggregator = fedagg.aggregator(stage)
    value = {"x": jnp.zeros((1, D))}
    start = aggregator.init({"x": jnp.zeros(D)})
    next_round = jax.jit(aggregator.next)

    noise = next_round(start, value, None, jax.random.key(0)).value["x"]
    some = {"x": jnp.zeros((1, 1))}
    small = fedagg.aggregator(stage)

    def estimates(key: jax.Array) -> jax.Array:
        state, seen = small.init({"x": jnp.zeros(1)}), []
        for k in jax.random.split(key, 2):
            before = state[0].clip.estimate.estimate
            state = small.next(state, some, None, k).state
            seen.append(0.5 - jnp.log(state[0].clip.estimate.estimate / before) / 0.2)
        return jnp.stack(seen)

    keys = jax.random.split(jax.random.key(1), 10_000)
    fractions = np.asarray(jax.jit(jax.vmap(estimates))(keys), np.float64)

    left = (1.0 - (2.0 * 2.0) ** -2) ** -0.5
    np.testing.assert_allclose(np.std(noise), 3.0 * left / n, rtol=0.02)
    # Below: one half; the noise of one node, and then of two with an average.
    np.testing.assert_allclose(fractions[:, 0].std(), 2.0 / n, rtol=0.03)
    sums = fractions.sum(axis=1)
    np.testing.assert_allclose(sums.std(), 2.0 / n / math.sqrt(1.5), rtol=0.03)
    assert abs(fractions[:, 0].mean() - (0.5 + 0.5 / n)) < 0.002


@pytest.mark.parametrize("start", [0.05, 100.0])
@pytest.mark.deep
def test_the_adaptive_tree_follows_the_clients_from_below_and_from_above(start):
    norms = np.random.default_rng(0).lognormal(1.0, 1.0, 100)
    stage = fedagg.adaptive_tree_noise(
        1.0,
        100.0,
        initial_clip=start,
        restart_warmup=5,
        restart_every=20,
        target_quantile=0.7,
    )

    value = {"x": jnp.asarray(norms[:, None], jnp.float32)}
    _, metrics = rounds_of(stage, 200, value)

    assert abs(np.mean(norms <= metrics["tree_noise/clip"][-1]) - 0.7) < 0.1


def test_the_defaults_are_those_of_tensorflow_federated():
    parameters = inspect.signature(fedagg.adaptive_tree_noise).parameters

    defaults = {name: x.default for name, x in parameters.items()}
    assert defaults | {"name": None} == {
        "noise_multiplier": inspect.Parameter.empty,
        "clients_per_round": inspect.Parameter.empty,
        "initial_clip": 0.1,
        "restart_warmup": 128,
        "restart_every": 1024,
        "target_quantile": 0.5,
        "learning_rate": 0.2,
        "count_stddev": None,
        "name": None,
    }


@pytest.mark.parametrize("rounds, nodes", [(1, 1), (2, 2), (3, 2), (4, 3), (1024, 11)])
def test_a_client_is_in_one_node_of_each_level(rounds, nodes):
    (mechanism,) = fedagg.tree_noise(
        3.0, 1.0, 1.0, restart_every=rounds
    ).traits.mechanisms

    got = mechanism.sensitivity(4 * rounds, rounds, 4)

    # Less by what rounds Gaussian noise to the discrete.
    assert 3.0 * (1.0 - 1e-9) < mechanism.noise_multiplier <= 3.0
    np.testing.assert_allclose(got, math.sqrt(4 * nodes))
    # By the tree itself: nodes are intervals [k * 2**b, (k + 1) * 2**b) that are full.
    most = max(
        sum((t >> b) + 1 << b <= rounds for b in range(20)) for t in range(rounds)
    )
    assert most == nodes


STAGES = {
    "tree_noise": lambda **x: fedagg.tree_noise(1.0, 1.0, 10.0, restart_every=4, **x),
    "adaptive_tree_noise": lambda **x: fedagg.adaptive_tree_noise(0.5, 10.0, **x),
}


@pytest.mark.parametrize("stage", STAGES)
def test_noise_needs_a_key(stage):
    aggregator = fedagg.aggregator(STAGES[stage](name="own"))

    with pytest.raises(ValueError, match="own draws noise and needs a key"):
        first_round_compiled(aggregator, *make_updates())


@pytest.mark.parametrize("stage", STAGES)
def test_a_mean_is_refused_before_and_after(stage):
    made = STAGES[stage]()

    for stages in ((made, fedagg.mean()), (fedagg.mean(), made)):
        with pytest.raises(ValueError, match="tree_noise"):
            fedagg.aggregator(*stages)


def test_a_clip_that_moves_in_every_round_is_refused():
    bound: Any = fedagg.quantile_bound(
        1.0, 0.5, 0.1, below_estimate_stddev=1.0, expected_num_clients=10
    )

    with pytest.raises(TypeError, match="clip must be a number: a Bound learns"):
        fedagg.tree_noise(1.0, bound, 10.0, restart_every=4)


@pytest.mark.parametrize("restart_every", [0, -1, 1.5, 2**31, True])
def test_a_tree_has_a_whole_number_of_rounds(restart_every):
    with pytest.raises(ValueError, match="restart_every must be a whole number"):
        fedagg.tree_noise(1.0, 1.0, 1.0, restart_every=restart_every)


@pytest.mark.parametrize("warmup", [0, 10, 11])
def test_the_warmup_is_shorter_than_a_tree(warmup):
    with pytest.raises(ValueError, match="restart_warmup must be positive and below"):
        fedagg.adaptive_tree_noise(0.5, 10.0, restart_warmup=warmup, restart_every=10)
