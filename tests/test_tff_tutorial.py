"""TFF's tutorial on recommended aggregators: ours beside the rounds that TFF computed.

The aggregators are those of `docs/tff_tutorial.md`, which runs here. The rounds are in
`tests/data`, recorded from TFF's own.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import assert_close, assert_same, make_updates, recorded_cases
from tests.test_pages import snippets_of

pytestmark = pytest.mark.deep

PAGE = "docs/tff_tutorial.md"
CASES = recorded_cases("tff.json") | recorded_cases("tff_secure.json")
CASES |= recorded_cases("tff_privacy.json")

# What the page says that each of its aggregators is equivalent to.
RECIPES = {
    "zeroing_mean": lambda: fedagg.robust_aggregator(clipping=False),
    "clipping_mean": lambda: fedagg.robust_aggregator(zeroing=False),
    "dp_mean": lambda: fedagg.dp_aggregator(0.1, 100),
    "compressed_mean": lambda: fedagg.compression_aggregator(
        zeroing=False, clipping=False
    ),
    "secure_mean": lambda: fedagg.secure_aggregator(zeroing=False, clipping=False),
    "whole": lambda: fedagg.compression_aggregator(),
}


@pytest.fixture(scope="module")
def tutorial() -> dict[str, Any]:
    """What the page makes, by its names."""
    names: dict[str, Any] = {}
    for snippet, _ in snippets_of(PAGE):
        exec(compile(snippet, PAGE, "exec"), names)
    return names


def replayed(
    aggregator: fedagg.Aggregator, case: dict[str, Any]
) -> Iterator[tuple[Any, Any, Any]]:
    """Our value and metrics of each round, beside what was recorded of TFF's."""
    first = case["rounds"][0]["client_values"][0]
    state = aggregator.init({k: jnp.zeros(np.shape(x)) for k, x in first.items()})
    next_round = jax.jit(aggregator.next)
    for recorded in case["rounds"]:
        clients, given = recorded["client_values"], recorded["weights"]
        values = {
            leaf: jnp.asarray([x[leaf] for x in clients], jnp.float32) for leaf in first
        }
        weights = None if given is None else jnp.asarray(given, jnp.float32)
        state, value, metrics = next_round(state, values, weights, jax.random.key(0))
        yield value, metrics, recorded


def result_of(recorded: dict[str, Any]) -> Any:
    return {k: np.asarray(x, np.float64) for k, x in recorded["result"].items()}


def test_the_mean_is_tffs(tutorial):
    for value, _, recorded in replayed(tutorial["mean"], CASES["weighted_mean"]):
        assert_close(value, result_of(recorded), 1e-6)


@pytest.mark.parametrize(
    "name, case, norm, count",
    [
        (
            "zeroing_mean",
            "zeroing_adaptive_default_weighted",
            *("zeroing_norm", "zeroed_count"),
        ),
        (
            "clipping_mean",
            "clipping_adaptive_default_unweighted",
            *("clipping_norm", "clipped_count"),
        ),
    ],
)
def test_a_learnt_bound_and_its_mean_are_tffs(tutorial, name, case, norm, count):
    stage = name.removesuffix("_mean")

    for value, metrics, recorded in replayed(tutorial[name], CASES[case]):
        assert_close(value, result_of(recorded), 1e-6)
        measured = recorded["measurements"]
        assert_close(metrics[f"{stage}/bound"], np.float64(measured[norm]))
        assert metrics[f"{stage}/count"] == measured[count]


def test_the_median_is_tffs(tutorial):
    case, bound = CASES["quantile_no_noise_q0.5_lr0.2"], tutorial["median_estimate"]
    state = bound.init()

    for recorded in case["rounds"]:
        notes = [bound.note(state, jnp.float32(x)) for x in recorded["client_values"]]
        total = jax.tree.map(lambda *x: sum(x), *notes)
        state = bound.update(state, total, None)

        assert_close(bound.value(state), np.float64(recorded["report"]))


def test_the_private_mean_without_noise_is_tffs():
    case = CASES["dp_gaussian_adaptive_noise0"]

    for value, _, recorded in replayed(fedagg.dp_aggregator(0.0, 8), case):
        # Ours is on a grid.
        assert_close(value, result_of(recorded), 1e-5)


def test_the_secure_mean_is_tffs_to_a_step(tutorial):
    case = CASES["secure_aggregator_no_zeroing_no_clipping_weighted"]

    for value, metrics, recorded in replayed(tutorial["secure_mean"], case):
        measured = recorded["measurements"]["mean_value"]
        threshold = measured["secure_upper_threshold"]
        assert_close(metrics["secure_sum/upper_threshold"], np.float64(threshold))
        # Half a step a client of ours, as far from TFF's as that is from the mean.
        clients = len(recorded["client_values"])
        step = threshold * 1000 / 2**31
        most = clients * step / sum(recorded["weights"])
        for leaf, expected in result_of(recorded).items():
            assert np.all(np.abs(np.asarray(value[leaf]) - expected) <= most + 1e-6)


def test_a_compressed_mean_is_within_a_step_of_the_mean(tutorial):
    layer = {"w": jax.ShapeDtypeStruct((300, 100), jnp.float32)}
    values, weights = make_updates(3, template=layer)
    compressed, key = tutorial["compressed_mean"], jax.random.key(0)

    got = jax.jit(compressed.next)(compressed.init(layer), values, weights, key).value

    weighted = np.asarray(values["w"], np.float64) * np.asarray(weights)[:, None, None]
    error = np.abs(np.asarray(got["w"]) - weighted.sum(0) / np.asarray(weights).sum())
    # A client's entries are rounded to one of two neighbours among 256 in its range.
    ranges = weighted.max((1, 2)) - weighted.min((1, 2))
    step = ranges.sum() / 255 / float(weights.sum())
    assert 0.2 * step < error.max() <= 1.001 * step


@pytest.mark.parametrize("name", RECIPES)
def test_an_aggregator_of_the_page_is_its_recipe_to_the_bit(tutorial, name):
    recipe = RECIPES[name]()
    layer = {"w": jax.ShapeDtypeStruct((201, 100), jnp.float32)}

    def rounds(aggregator: fedagg.Aggregator) -> Any:
        state, outputs = aggregator.init(layer), []
        for i in range(2):
            values, weights = make_updates(4, seed=i, template=layer)
            output = jax.jit(aggregator.next)(state, values, weights, jax.random.key(i))
            # A chain of one stage has its state in a tuple more.
            learnt = jax.tree.leaves(output.state)
            outputs.append((learnt, output.value, output.metrics))
            state = output.state
        return outputs

    assert_same(rounds(tutorial[name]), rounds(recipe))
