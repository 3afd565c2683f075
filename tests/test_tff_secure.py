"""Secure sums recorded from TensorFlow Federated, replayed with the state carried."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fedagg
from tests.helpers import assert_close, first_now, recorded_cases

CASES = recorded_cases("tff_secure.json")
COHORT = 12


def aggregator_of(case: dict[str, Any]) -> fedagg.Aggregator:
    params = case["params"]
    nothing = fedagg.chain()
    if "secure_aggregator" in params:
        options = params["secure_aggregator"]
        return fedagg.secure_aggregator(**options, largest_cohort=COHORT)
    if "modulus" in params:
        bits = params["modulus"].bit_length() - 1
        assert 2**bits == params["modulus"]
        return fedagg.aggregator(
            fedagg.secure_modular_sum(nothing, bits=bits, largest_cohort=COHORT)
        )
    if "clip_range_lower" in params:
        ends = params["clip_range_lower"], params["clip_range_upper"]
        return fedagg.aggregator(fedagg.modular_clipping(*ends, estimate_stddev=True))
    bound = params["upper"]
    if isinstance(bound, dict):
        bound = fedagg.quantile_bound(**bound)
    elif params["lower"] is not None:
        bound = params["lower"], bound
    return fedagg.aggregator(fedagg.secure_sum(nothing, bound, largest_cohort=COHORT))


def stacked(client_values: list[dict[str, Any]], dtype: str) -> Any:
    return {
        leaf: jnp.asarray(np.asarray([x[leaf] for x in client_values], dtype))
        for leaf in client_values[0]
    }


@first_now("name", CASES)
def test_a_recorded_secure_sum_agrees_to_the_step(name):
    case = CASES[name]
    aggregator = aggregator_of(case)
    dtype = case["params"].get("dtype", "float32")
    first = stacked(case["rounds"][0]["client_values"], dtype)
    state = aggregator.init(jax.tree.map(lambda x: x[0], first))

    for recorded in case["rounds"]:
        updates = stacked(recorded["client_values"], dtype)
        weights = recorded["weights"]
        weights = None if weights is None else jnp.asarray(weights)
        n = len(recorded["client_values"])

        state, value, metrics = jax.jit(aggregator.next)(state, updates, weights)

        threshold = metrics.get("secure_sum/upper_threshold", 0.0)
        divisor = 1.0 if weights is None else float(jnp.sum(weights))
        # Ours is off by half a step a client, TFF's by as much of a finer one.
        step = 0.0 if dtype == "int32" else 2 * COHORT * float(threshold) / 2**31
        for leaf, expected in recorded["result"].items():
            got = np.asarray(value[leaf], np.float64)
            if "modulus" in case["params"]:  # TFF's are from zero, ours around it
                got = got % case["params"]["modulus"]
            error = np.abs(got - np.asarray(expected, np.float64))
            assert np.all(error <= n * step / divisor + 5e-6 * np.abs(got) + 1e-7)
        check_metrics(metrics, recorded["measurements"], weights)


def check_metrics(metrics: Any, measured: Any, weights: Any) -> None:
    if not measured:
        return
    if "mean_value" in measured:
        assert_close(metrics["mean/weight"], np.float64(jnp.sum(weights)))
        measured = measured["mean_value"]
    for theirs, expected in measured.items():
        if theirs == "estimated_stddev":
            assert_close(metrics["modular/estimated_stddev"], np.float64(expected))
        elif theirs != "modclip":
            ours = theirs.replace("secure_", "secure_sum/")
            assert_close(metrics[ours], np.float64(expected))
