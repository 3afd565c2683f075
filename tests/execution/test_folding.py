"""The default sum folds what stages do into one number for each client.

`at_once` is the plain path that it must equal.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from fedagg._execution.builder import NotFoldable
from fedagg._execution.folding import sum_folded
from fedagg._execution.program import Program

pytestmark = pytest.mark.thorough


def make_updates(n=7, **shapes):
    shapes = shapes or {"b": (3,), "s": (), "w": (4, 5)}
    draw = np.random.default_rng(2)
    return {
        name: jnp.asarray(draw.normal(size=(n, *shape)), jnp.float32)
        for name, shape in shapes.items()
    }


def own_stage(change):
    """A stage of a user's own that does `change` to each leaf."""

    def client(shared, update, key):
        leaves, structure = jax.tree.flatten(update.value)
        leaves = [change(i, x, update.weight) for i, x in enumerate(leaves)]
        return update._replace(value=jax.tree.unflatten(structure, leaves)), ()

    def server(state, total, note, key):
        return fedagg.Output(state, total, {})

    return fedagg.Stage(lambda template: (), lambda state: (), client, server)


FOLDABLE = {
    "sum": [],
    "mean": [fedagg.mean()],
    "zeroing L1": [fedagg.zeroing(18.0, norm_order=1.0), fedagg.mean()],
    "zeroing L2": [fedagg.zeroing(5.0, norm_order=2.0), fedagg.mean()],
    "zeroing, clipping": [
        fedagg.zeroing(2.0),
        fedagg.clipping(2.0),
        fedagg.mean(weighted=False),
    ],
    "clipping, zeroing": [fedagg.clipping(2.0), fedagg.zeroing(0.7), fedagg.mean()],
    "absent when zeroed": [fedagg.zeroing(2.0, keep_weight=False), fedagg.mean()],
    "a known factor": [
        own_stage(lambda i, x, weight: 0.5 * x),
        fedagg.clipping(1.0),
        fedagg.mean(),
    ],
    "a zero of another dtype": [
        own_stage(lambda i, x, weight: jnp.where(weight > 2.0, x, 0)),
    ],
    "a factor for each leaf": [
        fedagg.clipping(2.0),
        own_stage(lambda i, x, weight: (weight + i) * x),
    ],
    "a selection for each leaf": [
        own_stage(lambda i, x, weight: jnp.where(weight > 2 + i, x, 0.0)),
    ],
}

MORE_THAN_FOLDABLE = {
    "noise": own_stage(
        lambda i, x, weight: x + jax.random.normal(jax.random.key(i), x.shape)
    ),
    "a square": own_stage(lambda i, x, weight: x * x),
    "a sine": own_stage(lambda i, x, weight: jnp.sin(x)),
    "a threshold": own_stage(lambda i, x, weight: jnp.where(x > 0.0, x, 0.0)),
    "another fill": own_stage(lambda i, x, weight: jnp.where(weight > 2.0, x, 1.0)),
    "a mask": own_stage(
        lambda i, x, weight: jnp.where(np.arange(x.size).reshape(x.shape) < 3, x, 0.0)
    ),
    "a product with an array": own_stage(
        lambda i, x, weight: x * np.arange(x.size, dtype=np.float32).reshape(x.shape)
    ),
    "an order": own_stage(lambda i, x, weight: jnp.sort(x) if x.ndim else x),
    "a constant": own_stage(lambda i, x, weight: jnp.full((2000,), weight)),
    "a maximum": own_stage(lambda i, x, weight: x * jnp.max(x)),
}


def is_folded(stages, updates, weights):
    """Whether the sum of a round of these stages is of the kind that folds."""
    folded = []

    def sum_over(fn, clients):
        try:
            folded.append(sum_folded(Program.of(fn, clients), clients))
        except NotFoldable:
            return fedagg.at_once()(fn, clients)
        return folded[-1]

    aggregator = fedagg.aggregator(*stages, sum_over=sum_over)
    jax.eval_shape(aggregator.next, aggregator.init(None), updates, weights)
    return bool(folded)


def assert_close(a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b
    )


def default_and_plain(stages, updates, weights):
    rounds = [
        fedagg.aggregator(*stages, sum_over=way) for way in (None, fedagg.at_once())
    ]
    return [jax.jit(a.next)(a.init(None), updates, weights) for a in rounds]


@pytest.mark.parametrize("stages", FOLDABLE.values(), ids=FOLDABLE.keys())
@pytest.mark.parametrize("poison", [0.0, np.nan, np.inf, 1e30])
def test_a_folded_round_is_the_plain_one(stages, poison):
    updates, weights = make_updates(), jnp.array([1.0, 2.0, 0.0, 4.0, 5.0, 1.0, 3.0])
    updates["w"] = updates["w"].at[2, 1, 1].set(poison)

    assert is_folded(stages, updates, weights)
    default, plain = default_and_plain(stages, updates, weights)

    assert_close(default, plain)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(default.value))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e30])
def test_a_present_client_that_zeroing_takes_out_leaves_no_trace(poison):
    updates, weights = make_updates(), jnp.arange(1.0, 8.0)
    updates["b"] = updates["b"].at[4, 0].set(poison)
    stages = [fedagg.zeroing(9.0), fedagg.clipping(2.0), fedagg.mean()]

    default, plain = default_and_plain(stages, updates, weights)

    assert_close(default, plain)
    assert default.metrics["zeroing/count"] == 1.0


def test_a_present_client_that_nothing_takes_out_shows():
    updates = make_updates(w=(3,))
    updates["w"] = updates["w"].at[1, 2].set(jnp.nan)

    mean = fedagg.aggregator(fedagg.mean())
    value = mean.next(mean.init(None), updates, jnp.arange(7.0)).value["w"]

    np.testing.assert_array_equal(np.isnan(value), [False, False, True])


@pytest.mark.parametrize(
    "stage", MORE_THAN_FOLDABLE.values(), ids=MORE_THAN_FOLDABLE.keys()
)
def test_what_does_more_to_a_client_goes_the_plain_way(stage):
    updates, weights = make_updates(), jnp.array([1.0, 2.0, 0.0, 4.0, 5.0, 1.0, 3.0])

    assert not is_folded([stage], updates, weights)
    default, plain = default_and_plain([stage], updates, weights)

    assert_close(default, plain)


@pytest.mark.parametrize(
    "stage", MORE_THAN_FOLDABLE.values(), ids=MORE_THAN_FOLDABLE.keys()
)
@pytest.mark.parametrize("poison", [0.0, np.nan, -np.inf])
def test_measures_taken_ahead_are_those_of_each_client(stage, poison):
    updates, weights = make_updates(), jnp.array([1.0, 2.0, 0.0, 4.0, 5.0, 1.0, 3.0])
    for client in (2, 5):
        updates["w"] = updates["w"].at[client, 1, 1].set(poison)
    stages = [
        fedagg.zeroing(fedagg.quantile_bound(9.0, 0.9, 0.5)),
        fedagg.clipping(fedagg.quantile_bound(2.0, 0.5, 0.5)),
        stage,
        fedagg.mean(),
    ]

    default, plain = default_and_plain(stages, updates, weights)

    assert not is_folded(stages, updates, weights)
    assert_close(default, plain)
    assert default.metrics["clipping/count"] > 0.0
    assert default.metrics["zeroing/count"] == float(poison != 0.0)


@pytest.mark.parametrize("poison", [0.0, np.nan])
@pytest.mark.parametrize("halves", ["w", "bs", "bsw"])
def test_rows_in_bfloat16_are_summed_in_full_precision(halves, poison):
    updates = make_updates(n=9, b=(3,), s=(), w=(400, 50))
    updates |= {name: updates[name].astype("bfloat16") for name in halves}
    weights = jnp.arange(9.0) / 3.0 + 0.1234567
    is_kept = np.arange(9) != 4
    rows = {k: np.asarray(x, np.float64)[is_kept] for k, x in updates.items()}
    updates["s"] = updates["s"].at[4].set(poison)

    def fn(client):
        value, weight, is_kept = client
        wide = {name: x.astype(jnp.float32) for name, x in value.items()}
        scaled = {name: weight * x for name, x in wide.items()}
        squares = jnp.sum(jnp.square(wide["w"]))
        kept = {name: jnp.where(is_kept, x, 0.0) for name, x in scaled.items()}
        return kept, jnp.where(is_kept, squares, 0.0)

    clients = updates, weights, jnp.asarray(is_kept)
    total, squares = sum_folded(Program.of(fn, clients), clients)

    numbers = np.asarray(weights, np.float64)[is_kept]
    for name, x in rows.items():
        assert_close(total[name], np.tensordot(numbers, x, 1))
    np.testing.assert_allclose(squares, np.sum(rows["w"] ** 2), rtol=1e-5)


def test_what_rounds_in_bfloat16_is_not_folded():
    updates = {"w": make_updates()["w"].astype("bfloat16")}
    third = own_stage(lambda i, x, weight: x * jnp.bfloat16(1 / 3))

    assert not is_folded([third], updates, jnp.ones(7))
    default, plain = default_and_plain([third], updates, jnp.ones(7))

    assert_close(
        default.value["w"].astype(jnp.float32), plain.value["w"].astype(jnp.float32)
    )


@pytest.mark.parametrize("dtype", ["float16", "int32"])
def test_other_dtypes_go_the_plain_way(dtype):
    updates = make_updates()
    updates["b"] = (10 * updates["b"]).astype(dtype)

    assert not is_folded([], updates, jnp.ones(7))
    default, plain = default_and_plain([], updates, jnp.ones(7))

    assert_close(
        jax.tree.map(lambda x: x.astype(jnp.float32), default.value),
        jax.tree.map(lambda x: x.astype(jnp.float32), plain.value),
    )


def test_many_small_and_some_large_leaves_are_told_apart():
    shapes = {f"{i:02}": (i % 5, 3) for i in range(20)} | {
        "x": (300, 100),
        "y": (9000,),
    }
    updates = make_updates(**shapes)
    stages = [fedagg.zeroing(4.2), fedagg.clipping(2.0), fedagg.mean()]

    default, plain = default_and_plain(stages, updates, jnp.arange(7.0))

    assert_close(default, plain)


def test_gradients_are_those_of_the_plain_round():
    updates, weights = make_updates(), jnp.arange(1.0, 8.0)
    stages = [fedagg.zeroing(2.0), fedagg.clipping(3.0), fedagg.mean()]

    def total(updates, way):
        aggregator = fedagg.aggregator(*stages, sum_over=way)
        value = aggregator.next(aggregator.init(None), updates, weights).value
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(value))

    folded, plain = (jax.grad(total)(updates, way) for way in (None, fedagg.at_once()))

    assert_close(folded, plain)
    assert max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(folded)) > 0.01


@pytest.mark.parametrize("n", [40, 160])
def test_the_default_writes_no_copy_of_the_updates(n):
    shapes = {"w": (100, 100), "b": (100,), "v": (10_000,)}
    robust = fedagg.robust_aggregator()
    updates = jax.eval_shape(lambda: make_updates(n, **shapes))

    compiled = (
        jax.jit(robust.next).lower(robust.init(None), updates, jnp.ones(n)).compile()
    )

    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 4 * 4 * 20_100


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(
    "build",
    [
        lambda: fedagg.aggregator(fedagg.mean()),
        lambda: fedagg.aggregator(fedagg.clipping(1.0), fedagg.mean()),
        fedagg.robust_aggregator,
        lambda: fedagg.aggregator(
            fedagg.clipping(1.0), MORE_THAN_FOLDABLE["a sine"], fedagg.mean()
        ),
    ],
    ids=["mean", "clipping", "robust", "not foldable"],
)
def test_no_tracer_outlives_its_trace(build, compile):
    aggregator, updates = build(), make_updates()
    next_round = jax.jit(aggregator.next) if compile else aggregator.next
    state = aggregator.init(jax.tree.map(lambda x: x[0], updates))

    with jax.checking_leaks():
        output = next_round(state, updates, jnp.ones(7))

    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(output.value))


def test_what_does_not_fold_is_found_before_anything_is_traced():
    calls = []

    def fn(client):
        noted = jax.pure_callback(
            lambda x: calls.append(x) or x,
            jax.ShapeDtypeStruct((), jnp.float32),
            client["s"],
            vmap_method="sequential",
        )
        return {"w": jnp.sin(client["w"]), "s": noted}

    updates = make_updates()
    program = Program.of(fn, updates)

    with pytest.raises(NotFoldable):
        sum_folded(program, updates)
    around = jax.make_jaxpr(
        lambda x: [pytest.raises(NotFoldable, sum_folded, program, x), x["s"]][1]
    )(updates)

    assert not calls
    assert not around.eqns


def test_zero_may_be_what_a_condition_selects():
    big = own_stage(lambda i, x, weight: jnp.where(weight > 2.0, 0.0, x))
    updates, weights = make_updates(), jnp.arange(7.0)

    default, plain = default_and_plain([big], updates, weights)

    assert_close(default, plain)
