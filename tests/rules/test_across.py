"""Rules across devices: the same results, from a share of the values on each."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import assert_close, assert_same, first_now, mesh_of

RULES = {
    "median": fedagg.median(),
    "median_weighted": fedagg.median(weighted=True),
    "trimmed_mean": fedagg.trimmed_mean(2),
    "trimmed_mean_weighted": fedagg.trimmed_mean(2, weighted=True),
    "mean_around_median": fedagg.mean_around_median(2),
    "krum": fedagg.krum(2),
    "multi_krum": fedagg.multi_krum(2),
    "bulyan": fedagg.bulyan(1),
    "minimum_diameter": fedagg.minimum_diameter(2),
    "smea": fedagg.smea(2),
    "caf": fedagg.caf(2),
    "geometric_median": fedagg.geometric_median(),
    "centered_clipping": fedagg.centered_clipping(1.0, iterations=2),
    "mixing": fedagg.nearest_neighbor_mixing(2, fedagg.trimmed_mean(2)),
    "bucketing": fedagg.bucketing(2, fedagg.median()),
    "clipping_before": fedagg.adaptive_robust_clipping(2, fedagg.multi_krum(2)),
}
QUICK = ["median", "multi_krum", "smea", "centered_clipping"]
every_rule = pytest.mark.parametrize(
    "name",
    [x if x in QUICK else pytest.param(x, marks=pytest.mark.deep) for x in RULES],
)


def clients(n: int) -> dict[str, jax.Array]:
    draw = np.random.default_rng(n)
    shapes = {"a": (n, 7, 3), "b": (n,), "c": (n, 5)}
    return {k: jnp.asarray(draw.normal(size=v), jnp.float32) for k, v in shapes.items()}


def round_of(aggregator, values, weights, mesh=None) -> fedagg.Output:
    state = aggregator.init(jax.tree.map(lambda x: x[0], values))
    if mesh is not None:
        rows = jax.NamedSharding(mesh, jax.P("clients"))
        if len(weights) % mesh.size == 0:
            values, weights = jax.device_put((values, weights), rows)
        state = jax.device_put(state, jax.NamedSharding(mesh, jax.P()))
    return jax.jit(aggregator.next)(state, values, weights, jax.random.key(0))


@every_rule
@pytest.mark.parametrize("n", [16, pytest.param(11, marks=pytest.mark.deep)])
def test_a_rule_across_devices_gives_what_it_gives_on_one(name, n):
    mesh, values = mesh_of(8), clients(n)
    weights = jnp.ones(n).at[4].set(0.0).at[2].set(3.0)
    values["c"] = values["c"].at[4].set(math.nan)
    across = fedagg.combining(RULES[name], sum_over=fedagg.across(mesh))

    got = round_of(across, values, weights, mesh)

    expected = round_of(fedagg.combining(RULES[name]), values, weights)
    assert_close(got.value, jax.tree.map(np.asarray, expected.value))
    kept, other = got.state, expected.state
    assert jax.tree.structure(kept) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(kept), jax.tree.leaves(other), strict=True):
        assert_close(x, np.asarray(y))


@pytest.mark.deep
def test_stages_run_where_their_clients_are():
    mesh = jax.make_mesh((8,), ("clients",))  # an axis that is part of the types
    values, weights = clients(16), jnp.ones(16)
    stages = fedagg.trimmed_mean(2), fedagg.zeroing(2.0), fedagg.clipping(1.0)

    got = round_of(
        fedagg.combining(*stages, sum_over=fedagg.across(mesh)), values, weights, mesh
    )

    expected = round_of(fedagg.combining(*stages), values, weights)
    assert_close(got.value, jax.tree.map(np.asarray, expected.value))
    assert_close(got.metrics, jax.tree.map(np.asarray, expected.metrics))


ALONE = {"multi_krum": (), "median": (), "smea": (), "caf": ()}
UNDONE = {
    "median": (fedagg.rotation("hadamard"),),
    "krum": (fedagg.zeroing(9.0), fedagg.drive()),
    "multi_krum": (fedagg.discretization(0.1, stochastic=False),),
}


@first_now("name, stages", [*UNDONE.items(), *ALONE.items()])
def test_values_go_once_from_device_to_device_and_are_nowhere_all_together(
    name, stages
):
    n, d, mesh = 16, 65536, mesh_of(8)
    values = {"a": jnp.ones((n, 64, 512)), "b": jnp.ones((n, 32768))}
    across = fedagg.combining(RULES[name], *stages, sum_over=fedagg.across(mesh))
    rows = jax.NamedSharding(mesh, jax.P("clients"))
    arguments = across.init(jax.tree.map(lambda x: x[0], values)), values, jnp.ones(n)
    placed = arguments[0], *jax.device_put(arguments[1:], rows)

    compiled = jax.jit(across.next).lower(*placed, jax.random.key(0)).compile()

    text = compiled.as_text() or ""
    assert len(re.findall(r" all-to-all(?:-start)?\(", text)) == 1
    gathered = re.findall(r"= \(?\w+\[([\d,]*)\]\S* all-gather", text)
    assert gathered  # of the value, and of weights
    entries = [math.prod(map(int, x.split(","))) for x in gathered]
    assert max(entries) == d
    share = 4 * n * d / 8
    memory = compiled.memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 5.0 * share
    assert memory.argument_size_in_bytes < 1.1 * share


@pytest.mark.deep
def test_leaves_of_half_precision_go_as_they_are():
    mesh, values = mesh_of(8), clients(16)
    values["c"] = values["c"].astype(jnp.bfloat16)
    across = fedagg.combining(fedagg.median(), sum_over=fedagg.across(mesh))

    got = round_of(across, values, jnp.ones(16), mesh)

    expected = round_of(fedagg.combining(fedagg.median()), values, jnp.ones(16))
    assert_same(got.value, expected.value)


def test_a_rule_that_does_not_say_how_is_refused_across_devices():
    def first(state, updates, key):
        return fedagg.Output(state, updates.value[0], {})

    rule = fedagg.Rule(lambda template: (), first)

    with pytest.raises(ValueError, match=r"Rule\(\) does not say how it runs across"):
        fedagg.combining(rule, sum_over=fedagg.across(mesh_of(8)))
    with pytest.raises(ValueError, match=r"does not say how it runs across"):
        mixed = fedagg.bucketing(2, rule)
        fedagg.combining(mixed, sum_over=fedagg.across(mesh_of(8)))


def test_errors_across_devices_name_the_leaf_and_the_clients():
    mesh = mesh_of(8)
    across = fedagg.combining(fedagg.trimmed_mean(4), sum_over=fedagg.across(mesh))
    with pytest.raises(ValueError, match=r"trimmed_mean\(4\) needs .* got 8"):
        across.next(across.init(jnp.zeros(2)), jnp.ones((8, 2)))
    median = fedagg.combining(fedagg.median(), sum_over=fedagg.across(mesh))
    updates = {"a": jnp.ones(8), "b": jnp.ones((8, 2), jnp.int32)}
    with pytest.raises(TypeError, match=r"median takes .* \['b'\] has dtype int32"):
        median.next(median.init({"a": 0.0, "b": jnp.zeros(2, jnp.int32)}), updates)


@pytest.mark.parametrize("way", [None, fedagg.at_once(), fedagg.in_chunks(3)])
def test_stages_before_a_rule_take_any_way_to_sum(way):
    values = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)), jnp.float32)
    combined = fedagg.combining(fedagg.median(), fedagg.clipping(1.0), sum_over=way)

    output = combined.next(combined.init(values[0]), values)

    x = np.asarray(values, np.float64)
    x = x * np.minimum(1.0, 1.0 / np.linalg.norm(x, axis=1))[:, None]
    assert_close(output.value, np.median(x, axis=0))
