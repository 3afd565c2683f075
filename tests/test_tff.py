"""Rounds recorded from TensorFlow Federated, replayed with the state carried."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import WAYS, assert_close, every_way, recorded_cases

CASES = recorded_cases("tff.json")
QUANTILES = [name for name in CASES if name.startswith("quantile_")]
DRAWN = [name for name in CASES if name.endswith("_stats")]
ROUNDS = [name for name in CASES if name not in [*QUANTILES, *DRAWN]]

NORM_ORDERS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}
QUANTILE_NAMES = {"expected_num_records": "expected_num_clients"}


class Replay(NamedTuple):
    """A case's aggregator, and which of its stages a bound of TFF's belongs to."""

    aggregator: fedagg.Aggregator
    bounds: dict[str, int]  # "zeroing_norm" or "clipping_norm" to the stage's position


def quantile_from(params: dict[str, Any]) -> fedagg.Bound:
    return fedagg.quantile_bound(
        **{QUANTILE_NAMES.get(name, name): x for name, x in params.items()}
    )


def bound_from(params: Any) -> fedagg.Bound | float:
    return quantile_from(params) if isinstance(params, dict) else params


def quantization_from(params: dict[str, Any]) -> fedagg.Stage:
    return fedagg.quantization(
        params["quantization_bits"],
        params["threshold"],
        stochastic=params.get("stochastic", True),
    )


def names_within(measurements: Any) -> set[str]:
    if not isinstance(measurements, dict):
        return set()
    return set(measurements).union(*map(names_within, measurements.values()))


def replay_of(case: dict[str, Any], sum_over: Any) -> Replay:
    params = case["params"]
    if "robust_aggregator" in params:
        options = params["robust_aggregator"]
        used = [x for x in ("zeroing", "clipping") if options.get(x, True)]
        aggregator = fedagg.robust_aggregator(**options, sum_over=sum_over)
        return Replay(aggregator, {f"{x}_norm": i for i, x in enumerate(used)})
    stages, bounds = [], {}
    if "zeroing_norm" in params:
        bounds["zeroing_norm"] = len(stages)
        order = NORM_ORDERS[params.get("norm_order", "linf")]
        bound = bound_from(params["zeroing_norm"])
        stages.append(fedagg.zeroing(bound, norm_order=order))
    if "clipping_norm" in params:
        bounds["clipping_norm"] = len(stages)
        stages.append(fedagg.clipping(bound_from(params["clipping_norm"])))
    if "step_size" in params:
        step_size = params["step_size"]
        stages.append(fedagg.discretization(step_size, stochastic=False))
    if "quantization_bits" in params:
        stages.append(quantization_from(params))
    names = names_within(case["rounds"][0]["measurements"])
    if "mean_weight" in names or case["weighted"]:
        stages.append(fedagg.mean())
    elif "mean_count" in names:
        stages.append(fedagg.mean(weighted=False))
    return Replay(fedagg.aggregator(*stages, sum_over=sum_over), bounds)


def stacked(client_values: list[dict[str, Any]], n: int, dtype: str) -> Any:
    """One array a leaf, filled up to n clients so that all rounds compile once."""
    filled = client_values + client_values[-1:] * (n - len(client_values))
    return {
        leaf: jnp.asarray(np.asarray([x[leaf] for x in filled], dtype))
        for leaf in filled[0]
    }


def check_replay(name: str, way: str) -> None:
    case = CASES[name]
    replay = replay_of(case, WAYS[way]())
    dtype = case["params"].get("dtype", "float32")
    weight_dtype = case["params"].get("weight_dtype", "float32")
    n = max(len(x["client_values"]) for x in case["rounds"])
    next_round = jax.jit(replay.aggregator.next)
    first = stacked(case["rounds"][0]["client_values"], n, dtype)
    state = replay.aggregator.init(jax.tree.map(lambda x: x[0], first))
    check_estimates(state, replay, case["initial_estimates"])

    for recorded in case["rounds"]:
        present = len(recorded["client_values"])
        weights = np.zeros(n, weight_dtype)
        weights[:present] = 1 if recorded["weights"] is None else recorded["weights"]
        updates = stacked(recorded["client_values"], n, dtype)

        state, value, metrics = next_round(state, updates, jnp.asarray(weights))

        assert set(value) == set(recorded["result"])
        for leaf, expected in recorded["result"].items():
            expected = np.asarray(expected, np.float64)
            assert_close(np.asarray(value[leaf], np.float64), expected)
        check_metrics(metrics, recorded, weights)
        check_estimates(state, replay, recorded["estimates"])


def check_metrics(metrics: Any, recorded: Any, weights: np.ndarray) -> None:
    measured = recorded["measurements"]
    while isinstance(measured, dict):  # each stage's are inside those of the one before
        for ours, theirs in (("zeroing", "zeroed"), ("clipping", "clipped")):
            if f"{ours}_norm" in measured:
                assert_close(metrics[f"{ours}/bound"], measured[f"{ours}_norm"])
                assert metrics[f"{ours}/count"] == measured[f"{theirs}_count"]
        if "mean_weight" in measured:
            assert_close(metrics["mean/weight"], weights.sum())
        if "mean_count" in measured:
            assert metrics["mean/weight"] == len(recorded["client_values"])
        inner = [measured[x] for x in ("zeroing", "clipping") if x in measured]
        measured = inner[0] if inner else None


def check_estimates(state: Any, replay: Replay, estimates: dict[str, float]) -> None:
    for path, expected in estimates.items():
        if path == "step_size":  # which TFF holds in its state, and never changes
            continue
        (position,) = [replay.bounds[x] for x in path.split("/") if x in replay.bounds]
        assert_close(state[position], np.float64(expected))


@pytest.mark.parametrize("name", ROUNDS)
def test_a_recorded_round_gives_the_recorded_result(name):
    check_replay(name, "default")


@pytest.mark.parametrize(
    "name", ["zeroing_adaptive_default_weighted", "clipping_constant_sum"]
)
@every_way
def test_a_recorded_round_gives_the_recorded_result_in_every_way(name, way):
    check_replay(name, way)


@functools.partial(jax.jit, static_argnums=0)
def sum_of_notes(bound: fedagg.Bound, state: Any, sizes: jax.Array) -> Any:
    shared = bound.broadcast(state)
    notes = jax.vmap(lambda x: bound.note(shared, x))(sizes)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), notes)


@pytest.mark.parametrize("name", QUANTILES)
def test_a_recorded_quantile_moves_as_recorded(name):
    case = CASES[name]
    bound = quantile_from(case["params"])
    state = bound.init()
    first = bound.value(bound.broadcast(state))

    states, reports = [], []
    for recorded in case["rounds"]:
        sizes = jnp.asarray(recorded["client_values"], jnp.float32)
        state = bound.update(state, sum_of_notes(bound, state, sizes), None)
        states.append(state)
        reports.append(bound.value(bound.broadcast(state)))

    assert_close(first, np.float64(case["initial_report"]))
    for i, recorded in enumerate(case["rounds"]):
        assert_close(reports[i], np.float64(recorded["report"]))
        assert_close(states[i], np.float64(recorded["estimates"]["0/current_estimate"]))


@pytest.mark.parametrize("name", DRAWN)
def test_random_rounding_has_the_recorded_statistics(name):
    case, n = CASES[name], 2000
    stage = quantization_from(case["params"])
    value = {k: jnp.asarray(x, jnp.float32) for k, x in case["client_value"].items()}
    aggregator = fedagg.aggregator(stage)

    def sum_of_one(key: jax.Array) -> Any:
        updates = jax.tree.map(lambda x: x[None], value)
        return aggregator.next(aggregator.init(value), updates, None, key).value

    keys = jax.random.split(jax.random.key(0), n)
    draws = jax.tree.map(np.asarray, jax.jit(jax.vmap(sum_of_one))(keys))

    for leaf, statistics in case["statistics"].items():
        got = draws[leaf].astype(np.float64)
        recorded = {k: np.asarray(x, np.float64) for k, x in statistics.items()}
        # Both are means of draws; float32's rounding is what is left at the ends.
        error = recorded["std"] * np.sqrt(1.0 / n + 1.0 / case["draws"])
        assert np.all(np.abs(got.mean(axis=0) - recorded["mean"]) <= 5 * error + 1e-6)
        # The range's sixteen values, exactly: every entry meets both its neighbours.
        assert_close(got.min(axis=0), recorded["min"])
        assert_close(got.max(axis=0), recorded["max"])
        # A deviation of few ones among 400 draws is itself known to a tenth or so.
        steps = recorded["max"] - recorded["min"]
        off = np.abs(got.std(axis=0) - recorded["std"])
        assert np.all(off <= 0.06 * steps + 1e-6)


def test_every_part_of_this_library_that_tff_has_is_recorded():
    kinds = {name.split("_")[0] for name in CASES}

    assert kinds == {
        *("sum", "weighted", "zeroing", "clipping", "quantile"),
        *("deterministic", "encoded"),
    }
