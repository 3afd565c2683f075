"""What every stage, rule and recipe owes, over every one of them.

A new one is added to `STAGES`, `RULES` or `RECIPES`, and to the sets below where it has
the property they name.
"""

import functools
import math
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest

import fedagg
from tests.compiling import in_haste, jit
from tests.helpers import (
    TEMPLATE,
    WAYS,
    N,
    assert_close,
    assert_same,
    assert_same_round,
    every_way,
    first_now,
    make_updates,
    stack,
    take,
    with_absent,
    with_rows,
)


def largest() -> fedagg.Bound:
    return fedagg.quantile_bound(
        2.0, 0.9, math.log(10.0), multiplier=2.0, increment=1.0
    )


def norms() -> fedagg.Bound:
    return fedagg.quantile_bound(1.0, 0.8, 0.2)


def noisy_norms() -> fedagg.Bound:
    return fedagg.quantile_bound(
        1.0, 0.5, 0.2, below_estimate_stddev=0.5, expected_num_clients=10
    )


def thousands(key: jax.Array) -> jax.Array:
    """A whole number, in one draw: compiling draws is what takes time here."""
    return jax.random.bits(key, (), jnp.uint32).astype(jnp.int32) % 1000


def jitter() -> fedagg.Stage:
    """A user's own stage: every client adds a draw of its own, the server another.

    It works on any dtype, counts its rounds in its state, and reports the draws.
    """

    def client(shared: Any, update: fedagg.Update, key: jax.Array | None):
        del shared
        if key is None:
            raise ValueError("jitter draws and needs a key.")
        draw = thousands(key)
        value = jax.tree.map(lambda x: x + draw.astype(x.dtype), update.value)
        return update._replace(value=value), draw

    def server(state: Any, total: Any, note: jax.Array, key: jax.Array | None):
        if key is None:
            raise ValueError("jitter draws and needs a key.")
        draw = thousands(key)
        total = jax.tree.map(lambda x: x + draw.astype(x.dtype), total)
        return fedagg.Output(state, total, {"jitter/sum": note})

    return fedagg.Stage(lambda template: (), lambda state: (), client, server)


def alternating() -> optax.GradientTransformation:
    """A privatizer whose noise is taken back by half in the next round."""

    def init(params: Any) -> Any:
        return jax.random.key(0), jax.tree.map(jnp.zeros_like, params)

    def update(updates: Any, state: Any, params: Any = None):
        key, before = state
        noise = optax.tree.random_like(key, before, jax.random.normal)
        noised = jax.tree.map(lambda x, y, z: x + y - 0.5 * z, updates, noise, before)
        return noised, (key, noise)

    return optax.GradientTransformation(init, update)


def by_halves(first: fedagg.Stage, rest: fedagg.Stage) -> fedagg.Stage:
    """The first leaf through one stage, and all others through another."""

    def labels(value: Any) -> Any:
        count = len(jax.tree.leaves(value))
        names = ["first", *["rest"] * (count - 1)]
        return jax.tree.unflatten(jax.tree.structure(value), names)

    return fedagg.grouped({"first": first, "rest": rest}, labels)


STAGES: dict[str, tuple[fedagg.Stage, ...]] = {
    "sum": (),
    "mean": (fedagg.mean(),),
    "unweighted_mean": (fedagg.mean(weighted=False),),
    "zeroing": (fedagg.zeroing(2.0), fedagg.mean()),
    "zeroing_l1": (fedagg.zeroing(6.0, norm_order=1), fedagg.mean()),
    "zeroing_l2_of_a_sum": (fedagg.zeroing(2.0, norm_order=2.0),),
    "zeroing_adaptive": (fedagg.zeroing(largest()), fedagg.mean(weighted=False)),
    "zeroing_without_weight": (
        fedagg.zeroing(2.0, keep_weight=False),
        fedagg.clipping(norms()),
        fedagg.mean(),
    ),
    "clipping": (fedagg.clipping(1.0), fedagg.mean()),
    "clipping_adaptive": (fedagg.clipping(norms()), fedagg.mean()),
    "clipping_with_noise_on_the_count": (
        fedagg.clipping(noisy_norms()),
        fedagg.mean(weighted=False),
    ),
    "clipping_arithmetic": (
        fedagg.clipping(fedagg.quantile_bound(1.0, 0.5, 0.1, geometric_update=False)),
    ),
    "chain_within_a_chain": (
        fedagg.chain(fedagg.zeroing(largest()), fedagg.clipping(norms())),
        fedagg.chain(fedagg.chain(), fedagg.mean()),
    ),
    "quantization": (fedagg.mean(), fedagg.quantization(4, threshold=0)),
    "qsgd": (fedagg.mean(), fedagg.qsgd(7)),
    "terngrad": (fedagg.mean(), fedagg.terngrad()),
    "discretization": (
        fedagg.mean(),
        fedagg.discretization(0.01, stochastic=True),
    ),
    "discretization_coded": (
        fedagg.mean(),
        fedagg.with_distortion(fedagg.discretization(0.01, stochastic=False)),
        fedagg.elias_gamma(),
    ),
    "secure_sum": (
        fedagg.secure_sum(
            fedagg.chain(
                fedagg.zeroing(2.0, keep_weight=False),
                fedagg.clipping(norms()),
                fedagg.mean(),
            ),
            (norms(), largest()),
            largest_cohort=100,
            largest_weight=50.0,
        ),
    ),
    "secure_modular_sum": (
        fedagg.secure_modular_sum(
            fedagg.discretization(0.01, stochastic=False), bits=20, largest_cohort=20
        ),
    ),
    "sign": (fedagg.sign(),),
    "top_k": (fedagg.mean(), fedagg.top_k(0.3)),
    "random_k": (fedagg.mean(), fedagg.random_k(0.4)),
    "rotation": (fedagg.mean(), fedagg.rotation("hadamard")),
    "eden": (fedagg.mean(), fedagg.eden(3)),
    "gaussian_noise": (fedagg.gaussian_noise(1.0, 1.0, 10.0),),
    "gaussian_noise_weighted": (
        fedagg.gaussian_noise(0.1, 1.0, 10.0, largest_weight=8.0),
    ),
    "gaussian_noise_adaptive": (
        fedagg.zeroing(noisy_norms(), counted=False),
        fedagg.adaptive_gaussian_noise(0.5, 10.0, initial_clip=1.0),
    ),
    "skellam_noise": (
        fedagg.skellam_noise(
            0.5, 1.0, 8, bits=16, smallest_cohort=5, largest_cohort=20
        ),
    ),
    "skellam_noise_adaptive_and_secure": (
        fedagg.secure_modular_sum(
            fedagg.chain(
                fedagg.without_guarantee(fedagg.zeroing(largest())),
                fedagg.skellam_noise(
                    0.3,
                    1.0,
                    8,
                    bits=18,
                    smallest_cohort=5,
                    largest_cohort=20,
                    target_quantile=0.5,
                ),
            ),
            bits=18,
            largest_cohort=20,
        ),
    ),
    "discrete_gaussian_noise": (
        fedagg.discrete_gaussian_noise(
            0.5, 1.0, 8, bits=14, smallest_cohort=5, largest_cohort=20, rotation="dft"
        ),
    ),
    "tree_noise": (fedagg.tree_noise(1.0, 1.0, 10.0, restart_every=3),),
    "tree_noise_of_a_learnt_clip": (
        fedagg.adaptive_tree_noise(
            0.5, 10.0, initial_clip=1.0, restart_warmup=1, restart_every=2
        ),
    ),
    "matrix_factorization_noise": (
        fedagg.matrix_factorization_noise(alternating(), 1.0, 10.0),
    ),
    "banded_noise": (fedagg.banded_noise(0.5, 1.0, 10.0, bands=2, rounds=4),),
    "toeplitz_noise": (fedagg.toeplitz_noise(0.5, 1.0, 10.0, [1.0, 0.5]),),
    "local_gaussian_noise": (fedagg.local_gaussian_noise(0.5, 1.0), fedagg.mean()),
    "noised_metrics": (
        fedagg.noised_metrics(0.5, {"loss": 2.0, "accuracy": 1.0}, 10.0),
        fedagg.mean(),
    ),
    "measured": (
        fedagg.with_measurements(fedagg.zeroing(2.0), fedagg.mean(), directions=True),
    ),
    "grouped_adaptive": (
        by_halves(fedagg.clipping(norms()), fedagg.zeroing(largest())),
        fedagg.mean(),
    ),
    "grouped_coded": (
        by_halves(
            fedagg.chain(
                fedagg.zeroing(2.0, keep_weight=False),
                fedagg.mean(),
                fedagg.quantization(4, threshold=0),
            ),
            fedagg.clipping(1.0),
        ),
    ),
    "grouped_private": (
        by_halves(
            fedagg.gaussian_noise(0.5, 1.0, 10.0),
            fedagg.adaptive_gaussian_noise(0.5, 10.0, initial_clip=1.0),
        ),
    ),
    "jitter_of_a_user": (jitter(), fedagg.clipping(1000.0), fedagg.mean()),
}

RULES: dict[str, tuple[tuple[fedagg.Stage, ...], fedagg.Rule]] = {
    "median": ((), fedagg.median()),
    "median_after_stages": (
        (fedagg.zeroing(largest(), keep_weight=False), fedagg.clipping(norms())),
        fedagg.median(),
    ),
    "median_after_jitter": ((jitter(),), fedagg.median()),
    "median_after_rotation": (
        (fedagg.zeroing(largest()), fedagg.rotation("hadamard"), fedagg.clipping(5.0)),
        fedagg.median(),
    ),
    "centered_clipping_after_a_mask": (
        (fedagg.random_k(0.5),),
        fedagg.centered_clipping(0.5, iterations=2),
    ),
    "median_weighted": ((), fedagg.median(weighted=True)),
    "trimmed_mean": ((), fedagg.trimmed_mean(2)),
    "trimmed_mean_weighted": ((), fedagg.trimmed_mean(2, weighted=True)),
    "mean_around_median": ((), fedagg.mean_around_median(2)),
    "krum": ((), fedagg.krum(2)),
    "multi_krum": ((fedagg.clipping(5.0),), fedagg.multi_krum(2)),
    "bulyan": ((), fedagg.bulyan(1)),
    "minimum_diameter": ((), fedagg.minimum_diameter(2)),
    "smea": ((), fedagg.smea(2)),
    "caf": ((), fedagg.caf(2)),
    "geometric_median": ((), fedagg.geometric_median()),
    "geometric_median_unweighted": ((), fedagg.geometric_median(weighted=False)),
    "centered_clipping": ((), fedagg.centered_clipping(0.5, iterations=2)),
    "nearest_neighbor_mixing": (
        (),
        fedagg.nearest_neighbor_mixing(2, fedagg.trimmed_mean(2)),
    ),
    "bucketing": ((), fedagg.bucketing(2, fedagg.centered_clipping(1.0))),
    "arc_before_multi_krum": (
        (),
        fedagg.adaptive_robust_clipping(2, fedagg.multi_krum(2)),
    ),
}

RECIPES: dict[str, Callable[..., fedagg.Aggregator]] = {
    "robust_aggregator": fedagg.robust_aggregator,
    "robust_unweighted": functools.partial(fedagg.robust_aggregator, weighted=False),
    "robust_without_zeroing": functools.partial(
        fedagg.robust_aggregator, zeroing=False
    ),
    "robust_without_clipping": functools.partial(
        fedagg.robust_aggregator, clipping=False
    ),
    "compression_aggregator": fedagg.compression_aggregator,
    "dp_aggregator": functools.partial(fedagg.dp_aggregator, 0.5, 10.0),
    "secure_aggregator": fedagg.secure_aggregator,
    "distributed_dp_aggregator": functools.partial(
        fedagg.distributed_dp_aggregator, 0.5, 11, 18, smallest_cohort=5
    ),
}

DRAWS_FOR_CLIENTS = {
    "grouped_coded",
    "eden",
    "quantization",
    "qsgd",
    "terngrad",
    "discretization",
    "local_gaussian_noise",
    "sign",
    "skellam_noise",
    "skellam_noise_adaptive_and_secure",
    "discrete_gaussian_noise",
    "distributed_dp_aggregator",
    "jitter_of_a_user",
    "median_after_jitter",
    "bucketing",
}
ANSWERS_WITHOUT_CLIENTS = {
    "gaussian_noise": "noise, which hides that nobody is there",
    "gaussian_noise_weighted": "noise",
    "gaussian_noise_adaptive": "noise, and p = 1/2",
    "grouped_private": "noise, and p = 1/2",
    "tree_noise": "noise",
    "tree_noise_of_a_learnt_clip": "noise",
    "matrix_factorization_noise": "noise",
    "banded_noise": "noise",
    "toeplitz_noise": "noise",
    "noised_metrics": "rounds are counted",
    "dp_aggregator": "noise, and p = 1/2",
    "clipping_with_noise_on_the_count": "a round without clients reads as p = 1/2",
    "jitter_of_a_user": "the server's own draw is added",
    "median_after_jitter": "the server's own draw is added",
}

# Normal draws of 64 bits are other numbers than those of 32.
DRAWS_NORMALS = {
    *("gaussian_noise", "gaussian_noise_weighted", "gaussian_noise_adaptive"),
    *("grouped_private", "tree_noise", "tree_noise_of_a_learnt_clip"),
    *("local_gaussian_noise", "banded_noise", "dp_aggregator"),
    "toeplitz_noise",
}

# Those that differ from another one by an option. The laws about what goes in and out
# of a round hold for them as for the other, and are not tried twice.
KIN = {
    *("unweighted_mean", "zeroing_l1", "zeroing_l2_of_a_sum", "zeroing_without_weight"),
    *("clipping_arithmetic", "qsgd", "terngrad", "discretization_coded"),
    *("gaussian_noise_weighted", "skellam_noise_adaptive_and_secure"),
    *("discrete_gaussian_noise", "tree_noise_of_a_learnt_clip"),
    *("robust_unweighted", "robust_without_zeroing", "robust_without_clipping"),
    *("median_after_stages", "median_weighted", "trimmed_mean_weighted"),
    "geometric_median_unweighted",
}

ALL = (*STAGES, *RULES, *RECIPES)
BUT_KIN = tuple(x for x in ALL if x not in KIN)

# Of a law, a few are quick. Where it compiles a program of its own, fewer are.
EXAMPLES = ("quantization", "multi_krum", "robust_aggregator")
NOW = {
    *EXAMPLES,
    *("zeroing_adaptive", "secure_sum", "top_k", "gaussian_noise"),
    *("grouped_coded", "jitter_of_a_user", "median_after_stages", "bucketing"),
}


def over(names: Iterable[str], now: Collection[str] = NOW) -> pytest.MarkDecorator:
    """A law of these, deep unless it is in `now`."""
    return pytest.mark.parametrize(
        "name",
        [pytest.param(x, marks=[pytest.mark.deep] * (x not in now)) for x in names],
    )


everything = over(ALL)
everything_but_kin = over(BUT_KIN)
examples_now_and_everything_later = over(ALL, EXAMPLES)
examples_now_and_all_but_kin_later = over(BUT_KIN, EXAMPLES)
everything_with_state = over(
    [
        name
        for name in ALL
        if any(
            x in name
            for x in (
                "adaptive",
                "robust",
                "compression",
                "secure_sum",
                "secure_aggregator",
                "random_k",
                "rotation",
                "eden",
                "skellam",
                "discrete_gaussian",
                "distributed",
            )
        )
        or name.startswith(("clipping_", "dp_"))
    ],
)

KEY = 17


def build(name: str, sum_over: Any = None) -> fedagg.Aggregator:
    if name in RECIPES:
        return RECIPES[name](sum_over=sum_over)
    if name in RULES:
        stages, rule = RULES[name]
        return fedagg.combining(rule, *stages, sum_over=sum_over)
    return fedagg.aggregator(*STAGES[name], sum_over=sum_over)


class Compiled(NamedTuple):
    """An aggregator whose `next` takes a number for a key, so that no key is reused."""

    init: Callable[[Any], Any]
    next: Callable[..., fedagg.Output]
    uncompiled: Callable[..., fedagg.Output]


@functools.cache
def compiled(name: str, way: str = "default") -> Compiled:
    aggregator = build(name, WAYS[way]())

    def next_round(state: Any, updates: Any, weights: Any, seed: Any) -> fedagg.Output:
        return aggregator.next(state, updates, weights, jax.random.key(seed))

    return Compiled(aggregator.init, jit(next_round), next_round)


class Donating(NamedTuple):
    """An aggregator whose `next` takes the state's memory, and where it was traced."""

    init: Callable[[Any], Any]
    next: Callable[..., fedagg.Output]
    traced: list[str]


@functools.cache
def donating(name: str) -> Donating:
    aggregator, traced = build(name), []

    def next_round(*arguments: Any) -> fedagg.Output:
        traced.append(name)
        return aggregator.next(*arguments)

    return Donating(aggregator.init, jit(next_round, donate_argnums=0), traced)


def one_round(
    name: str, updates: fedagg.Update, state: Any = None, way: str = "default"
) -> fedagg.Output:
    aggregator = compiled(name, way)
    state = aggregator.init(TEMPLATE) if state is None else state
    return aggregator.next(state, updates.value, updates.weight, KEY)


def avals(tree: Any) -> Any:
    """Structure, shapes, dtypes and weak types."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@everything
def test_an_absent_client_changes_nothing_whatever_it_holds(name):
    updates = make_updates()
    here, gone = np.arange(8), np.arange(8, N)
    without = one_round(name, take(updates, here))

    clean = one_round(name, with_absent(updates, 0.0, gone))
    dirty = [
        one_round(
            name, poisoned._replace(weight=with_rows(poisoned.weight, gone, weight))
        )
        for held in (math.nan, math.inf, -math.inf, 1e30, -1e30)
        for poisoned in [with_absent(updates, held, gone)]
        for weight in (0.0, -1.0, math.nan, math.inf, -math.inf)
    ]

    assert_same_round(clean, without)
    # On an accelerator a sum with a NaN to be dropped is made in another order.
    compare = assert_same if jax.default_backend() == "cpu" else assert_same_round
    for output in dirty:
        compare(output, clean)


@examples_now_and_all_but_kin_later
def test_no_weights_are_weights_of_one(name):
    updates = make_updates()
    aggregator = compiled(name)
    state = aggregator.init(TEMPLATE)

    without = aggregator.next(state, updates.value, None, KEY)

    assert_same_round(without, aggregator.next(state, updates.value, jnp.ones(N), KEY))


@over(RULES, EXAMPLES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_rule_of_half_precision_is_that_of_the_same_numbers(name, dtype):
    updates = with_absent(make_updates(), math.nan, [3])
    half = jax.tree.map(lambda x: x.astype(dtype), updates.value)
    same = jax.tree.map(lambda x: x.astype(jnp.float32), half)

    expected = one_round(name, updates._replace(value=same))
    aggregator = compiled(name)
    state = aggregator.init(take(half, 0))
    got = aggregator.next(state, half, updates.weight, KEY)

    assert avals(got.value) == avals(take(half, 0))
    rounding = float(jnp.finfo(dtype).eps)
    assert_close(got.value, expected.value, rtol=rounding)
    assert_close(got.metrics, expected.metrics)


@over(x for x in ALL if x not in DRAWS_FOR_CLIENTS)
def test_the_order_of_clients_does_not_matter(name):
    updates = with_absent(make_updates(), math.nan, [0, 5])
    order = np.random.default_rng(1).permutation(N)

    straight = one_round(name, updates)
    permuted = one_round(name, take(updates, order))

    assert_same_round(permuted, straight)


# One by one is what full optimization is compared with, but for rules, and a chunk that
# is too large splits nothing.
FOR_FEW = {"one_by_one", "chunk_too_large"}


def splits() -> list[Any]:
    """Names with ways to sum, some of which are tried with a few alone."""
    return [
        pytest.param(
            *(name, way),
            marks=[pytest.mark.deep] * (name not in EXAMPLES or way not in [*WAYS][:2]),
        )
        for name in ALL
        for way in WAYS
        if way != "at_once" and (name in NOW or name in RULES or way not in FOR_FEW)
    ]


@pytest.mark.parametrize("name, way", splits())
def test_every_way_to_sum_gives_the_same(name, way):
    # The last row is the one that chunks and devices fill up with.
    updates = with_absent(make_updates(), math.nan, [0, 4])
    expected = one_round(name, updates, way="at_once")

    got = one_round(name, updates, way=way)

    assert_same_round(got, expected)


@every_way
@first_now("stages", [(jitter(),), ()], ids=["jitter", "sum"])
def test_integers_and_draws_sum_to_the_same_bits_in_every_way(way, stages):
    values = {"k": jnp.arange(3 * N, dtype=jnp.int32).reshape(N, 3) ** 2}
    weights = with_rows(jnp.ones(N), [2, 10], 0.0)

    def round_of(sum_over: Any) -> fedagg.Output:
        aggregator = fedagg.aggregator(*stages, sum_over=sum_over)
        return jax.jit(aggregator.next)(
            aggregator.init(take(values, 0)), values, weights, jax.random.key(3)
        )

    got, expected = round_of(WAYS[way]()), round_of(fedagg.at_once())

    assert_same(got, expected)
    if not stages:
        assert_same(
            got.value["k"], values["k"].sum(0) - take(values, [2, 10])["k"].sum(0)
        )


@pytest.mark.thorough
@everything
def test_a_round_is_the_same_with_full_optimization(name):
    updates = with_absent(make_updates(), math.nan, [0, 4])
    with in_haste():
        # Values of rules are compared as they are in one way.
        way = "default" if name in RULES else "one_by_one"
        expected = one_round(name, updates, way=way)

    got = one_round(name, updates)

    assert_same_round(got, expected)


@examples_now_and_all_but_kin_later
def test_a_round_lowers_for_accelerators(name):
    aggregator, updates = compiled(name), make_updates()
    arguments = aggregator.init(TEMPLATE), updates.value, updates.weight, KEY

    traced = jax.jit(aggregator.uncompiled).trace(*arguments)
    lowered = traced.lower(lowering_platforms=("cuda", "tpu")).as_text()

    assert "callback" not in lowered  # nothing that runs on the host


@examples_now_and_all_but_kin_later
def test_rounds_scan(name):
    _, next_round, uncompiled = compiled(name)
    start = build(name).init(TEMPLATE)
    rounds = stack([make_updates(seed=s) for s in range(3)])

    def body(state: Any, x: Any):
        updates, seed = x
        output = uncompiled(state, updates.value, updates.weight, seed)
        return output.state, (output.value, output.metrics)

    end, scanned = jit(functools.partial(jax.lax.scan, body))(
        start, (rounds, jnp.arange(3))
    )

    state, looped = start, []
    for i in range(3):
        updates = take(rounds, i)
        state, *rest = next_round(state, updates.value, updates.weight, i)
        looped.append(tuple(rest))
    assert_close(end, state)
    assert_close(scanned, stack(looped))


@examples_now_and_all_but_kin_later
def test_next_is_traced_once_and_the_state_keeps_its_type(name):
    aggregator = donating(name)
    state = aggregator.init(TEMPLATE)
    before = avals(state)

    for i in range(3):
        state = aggregator.next(state, *make_updates(seed=i), jax.random.key(i)).state

        assert avals(state) == before
    assert len(aggregator.traced) == 1
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    assert not any(x.weak_type for x in jax.tree.leaves(state))


@examples_now_and_all_but_kin_later
@pytest.mark.parametrize(
    "dtypes",
    [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("float16", "float16"),
        ("float16", "float32"),
        ("bfloat16", "float16"),
    ],
    ids="-".join,
)
def test_the_value_comes_back_in_the_structure_and_dtypes_of_the_template(name, dtypes):
    template = [
        {"a": jax.ShapeDtypeStruct((), dtypes[0])},
        (jax.ShapeDtypeStruct((2, 3), dtypes[1]),),
    ]
    updates = make_updates(template=template)
    aggregator = build(name)
    state = aggregator.init(template)

    output = jax.eval_shape(aggregator.next, state, *updates, jax.random.key(0))

    chex.assert_trees_all_equal_shapes_and_dtypes(output.value, template)
    chex.assert_trees_all_equal_shapes_and_dtypes(output.state, state)
    chex.assert_rank(list(output.metrics.values()), 0)


def with_64_bits(updates: fedagg.Update, dtypes: tuple[str, str]) -> fedagg.Update:
    """The same numbers in other dtypes, and weights as int64."""
    value = {
        name: jnp.asarray(np.asarray(updates.value[name]).astype(dtype))
        for name, dtype in zip(("b", "w"), dtypes, strict=True)
    }
    return fedagg.Update(value, jnp.asarray(np.asarray(updates.weight), jnp.int64))


def two_rounds(
    name: str, updates: fedagg.Update, way: str = "default"
) -> list[fedagg.Output]:
    state, outputs = build(name).init(take(updates.value, 0)), []
    for _ in range(2):
        outputs.append(one_round(name, updates, state, way))
        assert avals(outputs[-1].state) == avals(state)
        state = outputs[-1].state
    return outputs


def assert_is_64_bits_of(
    got: fedagg.Output, expected: fedagg.Output, updates: fedagg.Update, name: str
) -> None:
    """A round in the dtypes of the updates, with the numbers of one with 32 bits."""
    assert avals(got.value) == avals(take(updates.value, 0))
    if name in DRAWS_NORMALS:
        got_all, expected_all = (x.value | x.metrics for x in (got, expected))
        assert got_all.keys() == expected_all.keys()
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(got_all))
    else:
        assert_close((got.value, got.metrics), (expected.value, expected.metrics))


@examples_now_and_everything_later
def test_rounds_with_64_bits_are_those_with_32(name):
    expected = two_rounds(name, make_updates())

    with jax.enable_x64(True):
        updates = with_64_bits(make_updates(), ("float32", "float64"))
        outputs = two_rounds(name, updates)

        for got, want in zip(outputs, expected, strict=True):
            assert_is_64_bits_of(got, want, updates, name)


@over(BUT_KIN, EXAMPLES[:1])
def test_a_round_of_64_bits_runs_step_by_step(name):
    expected = one_round(name, make_updates())

    with jax.enable_x64(True):
        aggregator = build(name)
        updates = with_64_bits(make_updates(), ("float64", "float64"))
        state = aggregator.init(take(updates.value, 0))
        got = aggregator.next(state, *updates, jax.random.key(KEY))

        assert avals(got.state) == avals(state)
        assert_is_64_bits_of(got, expected, updates, name)


@examples_now_and_all_but_kin_later
def test_rounds_of_32_bits_are_the_same_where_64_are_on(name):
    expected = two_rounds(name, make_updates())

    with jax.enable_x64(True):
        outputs = two_rounds(name, make_updates())

    for got, want in zip(outputs, expected, strict=True):
        assert avals(got) == avals(want)
        assert_close(got, want)


@every_way
@first_now("name", ["robust_aggregator", "quantization", "secure_sum"])
def test_every_way_sums_64_bits(way, name):
    expected = one_round(name, make_updates())

    with jax.enable_x64(True):
        updates = with_64_bits(make_updates(), ("float32", "float64"))
        got = two_rounds(name, updates, way)[0]

        assert_is_64_bits_of(got, expected, updates, name)


@over(x for x in ALL if x != "sum")
def test_integers_are_refused_with_the_path_of_the_leaf(name):
    template = {
        "a": {"k": jax.ShapeDtypeStruct((3,), jnp.int32)},
        "w": jax.ShapeDtypeStruct((2,), jnp.float32),
    }
    updates, aggregator = make_updates(template=template), build(name)

    with pytest.raises(TypeError, match=r"\['a'\]\['k'\] has dtype int32"):
        state = aggregator.init(template)
        jax.eval_shape(aggregator.next, state, *updates, jax.random.key(0))


def but_for_rounds(state: Any, before: Any) -> Any:
    """The state with the rounds of private stages, which always go on, as before."""
    return jax.tree.map(
        lambda x, y: y if x.dtype == jnp.uint32 and x == y + 1 else x, state, before
    )


@everything
@pytest.mark.parametrize("held", [1.0, math.nan])
def test_nobody_present_gives_zeros_and_leaves_the_state(name, held):
    started = one_round(name, make_updates()).state

    output = one_round(name, with_absent(make_updates(), held, range(N)), started)

    assert all(
        np.isfinite(x).all() for x in jax.tree.leaves((output.state, output.metrics))
    )
    if name not in ANSWERS_WITHOUT_CLIENTS:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), TEMPLATE)
        assert_same(output.value, zeros)
        assert_same(but_for_rounds(output.state, started), started)


@everything_but_kin
def test_every_round_reports_the_same_metrics(name):
    some = one_round(name, make_updates())
    nobody = one_round(name, with_absent(make_updates(), 0.0, range(N)), some.state)

    assert list(nobody.metrics) == list(some.metrics)
    assert all(x.shape == () for x in some.metrics.values())


@everything_but_kin
def test_the_state_survives_flax_serialization(name):
    state = one_round(name, make_updates()).state
    fresh = build(name).init(TEMPLATE)

    restored = flax.serialization.from_bytes(fresh, flax.serialization.to_bytes(state))

    assert_same(jax.tree.map(jnp.asarray, restored), state)
    assert_same(
        one_round(name, make_updates(seed=1), restored),
        one_round(name, make_updates(seed=1), state),
    )


@examples_now_and_all_but_kin_later
def test_the_state_survives_orbax(name, tmp_path):
    # Orbax refuses a tree without any array, which some states are.
    saved = {"state": one_round(name, make_updates()).state, "round": jnp.int32(3)}
    fresh = {"state": build(name).init(TEMPLATE), "round": jnp.int32(0)}

    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "round", saved)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "round", fresh)

    assert_same(restored["state"], saved["state"])
    assert_same(
        one_round(name, make_updates(seed=1), restored["state"]),
        one_round(name, make_updates(seed=1), saved["state"]),
    )


@examples_now_and_all_but_kin_later
def test_several_federations_run_side_by_side_under_vmap(name):
    cohorts = [make_updates(seed=s) for s in range(3)]
    states = [one_round(name, cohort).state for cohort in cohorts]
    together = stack(list(zip(states, cohorts, strict=True)))

    side_by_side = jax.vmap(
        lambda state, updates: compiled(name).next(
            state, updates.value, updates.weight, KEY
        )
    )(*together)

    for i in range(3):
        alone = one_round(name, cohorts[i], states[i])
        assert_same_round(take(side_by_side, i), alone)


@examples_now_and_all_but_kin_later
def test_the_state_can_be_donated(name):
    aggregator = donating(name)
    state = aggregator.init(TEMPLATE)

    for i in range(2):
        given = state
        output = aggregator.next(state, *make_updates(seed=i), jax.random.key(i))
        state = output.state

        assert all(x.is_deleted() for x in jax.tree.leaves(given))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(output))


@everything_but_kin
def test_init_takes_shapes_or_arrays(name):
    aggregator = build(name)
    arrays = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), TEMPLATE)

    from_arrays, from_shapes = aggregator.init(arrays), aggregator.init(TEMPLATE)

    assert_same(from_arrays, from_shapes)


@everything_with_state
def test_a_state_that_learns_does_move(name):
    before = build(name).init(TEMPLATE)

    after = one_round(name, make_updates()).state

    moved = [
        a != b for a, b in zip(*map(jax.tree.leaves, (after, before)), strict=True)
    ]
    assert moved and all(moved)


@every_way
@first_now("weighted", [True, False])
def test_the_gradient_of_a_mean_is_the_share_of_the_client(way, weighted):
    updates = with_absent(make_updates(), math.nan, [3])
    aggregator = fedagg.aggregator(fedagg.mean(weighted=weighted), sum_over=WAYS[way]())

    def linear(value: Any) -> jax.Array:
        mean = aggregator.next(aggregator.init(TEMPLATE), value, updates.weight).value
        return 2.0 * jnp.sum(mean["w"]) + 3.0 * mean["b"]

    gradient = jax.jit(jax.grad(linear))(updates.value)

    counted = updates.weight if weighted else jnp.sign(updates.weight)
    share = np.asarray(counted / jnp.sum(counted))
    assert_close(gradient["b"], 3.0 * share)
    assert_close(gradient["w"], 2.0 * np.tile(share[:, None, None], (1, 3, 2)))


def test_a_stage_that_draws_says_that_it_needs_a_key():
    updates = make_updates()
    aggregator = fedagg.aggregator(fedagg.clipping(noisy_norms()))

    with pytest.raises(ValueError, match="quantile_bound .* needs a key, got key=None"):
        aggregator.next(aggregator.init(TEMPLATE), *updates)
