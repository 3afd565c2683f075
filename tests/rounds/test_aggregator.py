"""Rounds: what goes in, `work`, values that are decoded, errors."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import (
    TEMPLATE,
    WAYS,
    N,
    assert_close,
    assert_same,
    assert_same_round,
    every_way,
    first_now,
    first_round,
    first_round_compiled,
    make_updates,
    take,
    with_rows,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Coded(fedagg.Payload):
    """A vector on a grid of the client's own, as a message would hold it."""

    codes: jax.Array  # [d] int8
    step: jax.Array  # []

    def decode(self) -> jax.Array:
        return self.codes.astype(jnp.float32) * self.step


def coding() -> fedagg.Stage:
    """Rounds each leaf to 127 steps between zero and its largest entry."""

    def code(x: jax.Array) -> Coded:
        step = jnp.maximum(jnp.max(jnp.abs(x)), 1e-9) / 127.0
        return Coded(jnp.round(x / step).astype(jnp.int8), step)

    def client(update: fedagg.Update, key: Any):
        del key
        return update._replace(value=jax.tree.map(code, update.value)), ()

    return fedagg.Stage.stateless(client, traits=fedagg.Traits("coding", codes=True))


def decoded(stacked: Any) -> Any:
    """What the sum of the coded values should add."""

    def of_leaf(x: jax.Array) -> np.ndarray:
        exact = np.asarray(x, np.float64)
        axes = tuple(range(1, exact.ndim))
        steps = np.max(np.abs(exact), axis=axes, keepdims=True) / 127.0
        return np.round(exact / steps) * steps

    return jax.tree.map(of_leaf, stacked)


@every_way
@pytest.mark.parametrize("before", [(), (fedagg.clipping(5.0), fedagg.mean())])
def test_a_value_that_needs_decoding_is_decoded_before_it_is_added(way, before):
    values = {"w": make_updates().value["w"]}
    aggregator = fedagg.aggregator(*before, coding(), sum_over=WAYS[way]())

    weights = with_rows(jnp.ones(N), [3], 0.0)
    value = first_round_compiled(aggregator, values, weights).value

    present = np.delete(np.asarray(values["w"], np.float64), 3, axis=0)
    if before:
        norms = np.sqrt((present**2).sum((1, 2), keepdims=True))
        present = present * np.minimum(1.0, 5.0 / norms)
    expected = decoded({"w": present})["w"].sum(0) / (10 if before else 1)
    # Rounding to the grid may differ where float32 meets the middle of a step.
    assert_close(value, {"w": expected}, rtol=1e-4)


@pytest.mark.deep
def test_a_value_that_needs_decoding_is_decoded_before_a_rule():
    values = {"w": make_updates().value["w"]}
    aggregator = fedagg.combining(fedagg.median(), coding())

    value = first_round(aggregator, values).value

    assert_close(value["w"], np.median(decoded(values)["w"], axis=0), rtol=1e-4)


def make_data(n: int = N) -> dict[str, jax.Array]:
    return {
        "x": jnp.asarray(np.random.default_rng(3).normal(size=(n, 6)), jnp.float32),
        "scale": jnp.arange(1.0, n + 1.0),
    }


def work(row: dict[str, jax.Array], key: jax.Array | None):
    """Uses its data and its key, and reports."""
    assert key is not None
    drawn = jax.random.uniform(key, (), jnp.float32)
    value = {"b": drawn, "w": row["scale"] * row["x"].reshape(3, 2)}
    return value, {"loss": jnp.mean(row["x"]), "drawn": drawn}


@every_way
@pytest.mark.deep
def test_work_gives_what_stacked_values_give(way):
    data, weights = make_data(), make_updates().weight
    weights = with_rows(weights, [4], 0.0)
    aggregator = fedagg.robust_aggregator(sum_over=WAYS[way]())
    state = aggregator.init(TEMPLATE)

    worked = jax.jit(lambda *x: aggregator.next(*x, work=work))(
        state, data, weights, jax.random.key(5)
    )

    key = jax.random.key(5)
    values, metrics = jax.vmap(lambda row, i: work(row, jax.random.fold_in(key, i)))(
        data, jnp.arange(N)
    )
    stacked = first_round(fedagg.robust_aggregator(), values, weights)
    share = np.asarray(weights / jnp.sum(weights), np.float64)
    assert_close(worked.value, stacked.value)
    assert_close(worked.state, stacked.state)
    assert_close({k: worked.metrics[k] for k in stacked.metrics}, stacked.metrics)
    for name in ("loss", "drawn"):
        assert_close(worked.metrics[name], np.asarray(metrics[name]) @ share)


@every_way
def test_rows_may_be_indices_into_a_data_set(way):
    data = jnp.asarray(np.random.default_rng(0).normal(size=(50, 4)), jnp.float32)
    rows = jnp.asarray([3, 49, 7, 0, 0, 12, 31])
    aggregator = fedagg.aggregator(fedagg.mean(), sum_over=WAYS[way]())

    output = first_round_compiled(aggregator, rows, work=lambda i, key: (data[i], {}))

    assert_close(output.value, np.asarray(data)[np.asarray(rows)].mean(0))
    assert set(output.metrics) == {"mean/weight"}


@pytest.mark.deep
def test_work_runs_before_a_rule_too():
    aggregator = fedagg.combining(fedagg.median())

    output = first_round(
        aggregator,
        jnp.asarray([1.0, 2.0, 30.0, 4.0]),
        jnp.asarray([1.0, 3.0, 1.0, 0.0]),
        work=lambda x, key: (10.0 * x, {"x": x}),
    )

    assert output.value == 20.0
    assert_close(output.metrics, {"x": np.float64(37.0 / 5.0)})


@first_now("bad", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_left_out_of_that_metric_alone(bad):
    losses = jnp.asarray([1.0, bad, 3.0, bad])
    weights = jnp.asarray([1.0, 1.0, 3.0, 0.0])

    output = first_round(
        fedagg.aggregator(fedagg.mean()),
        losses,
        weights,
        work=lambda x, key: (jnp.ones(2), {"loss": x, "one": jnp.ones(())}),
    )

    assert_close(output.value, np.ones(2))
    assert output.metrics["loss"] == 10.0 / 4.0
    assert output.metrics["one"] == 1.0
    assert output.metrics["mean/weight"] == 5.0


def test_a_metric_that_nobody_gives_is_not_a_number():
    output = first_round(
        fedagg.aggregator(),
        jnp.ones(3),
        jnp.zeros(3),
        work=lambda x, key: (x, {"loss": x}),
    )

    assert np.isnan(output.metrics["loss"])


@pytest.mark.parametrize("dtype", ["bool", "int32", "bfloat16"])
def test_a_metric_may_be_of_any_dtype(dtype):
    output = first_round(
        fedagg.aggregator(),
        jnp.asarray([1.0, 0.0, 0.0, 1.0]),
        work=lambda x, key: (x, {"hits": x.astype(dtype)}),
    )

    assert output.metrics["hits"] == 0.5
    assert output.metrics["hits"].dtype == jnp.float32


def test_values_made_by_work_decide_the_dtypes_that_come_back():
    output = first_round(
        fedagg.aggregator(fedagg.mean()),
        jnp.arange(5),
        work=lambda i, key: (i.astype(jnp.bfloat16), {}),
    )

    assert_same(output.value, jnp.asarray(2.0, jnp.bfloat16))


@pytest.mark.deep
def test_numpy_arrays_will_do():
    updates = make_updates()
    numpy = jax.tree.map(np.asarray, updates)

    got = first_round(fedagg.robust_aggregator(), *numpy)

    assert_same_round(got, first_round(fedagg.robust_aggregator(), *updates))


@pytest.mark.deep
def test_another_tree_than_the_template_takes_another_state():
    aggregator = fedagg.aggregator(fedagg.clipping(1e9), fedagg.mean())
    updates = [jnp.ones((4, 5)), jnp.zeros((4, 0))]

    with pytest.raises(ValueError, match="For other values make another state"):
        aggregator.next(aggregator.init(TEMPLATE), updates)

    output = aggregator.next(aggregator.init([jnp.ones(5), jnp.zeros(0)]), updates)
    assert_same(output.value, [jnp.ones(5), jnp.zeros(0)])


@pytest.mark.deep
def test_other_clients_draw_the_same_when_one_is_absent():
    updates, data = make_updates(), make_data()
    aggregator = fedagg.aggregator()

    def drawn(weights: jax.Array) -> jax.Array:
        key = jax.random.key(1)
        return first_round(
            aggregator,
            data["scale"],
            weights,
            key,
            work=lambda x, key: (jax.random.bits(key, (2,), jnp.uint32), {}),
        ).value

    everyone = jnp.ones_like(updates.weight)
    key_of_last = jax.random.fold_in(jax.random.key(1), N - 1)
    last = jax.random.bits(key_of_last, (2,), jnp.uint32)
    assert_same(drawn(everyone), drawn(with_rows(everyone, [N - 1], 0.0)) + last)


@pytest.mark.parametrize("weight", [0.0, -0.0, -3.0, math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_positive_and_finite_is_absence(weight):
    value = {"x": jnp.asarray([1.0, math.nan, 4.0])}
    aggregator = fedagg.aggregator(fedagg.mean())

    output = first_round(aggregator, value, jnp.asarray([1.0, weight, 2.0]))

    assert_same(output.value, {"x": jnp.float32(3.0)})
    assert output.metrics["mean/weight"] == 3.0


good = jnp.ones((3, 2))


@pytest.mark.parametrize(
    "updates, error, message",
    [
        (
            {"a": good, "b": [jnp.ones((4, 2))]},
            ValueError,
            r"\['a'\] has 3 and \['b'\]\[0\] has 4",
        ),
        (
            {"a": good, "b": jnp.ones(())},
            ValueError,
            r"leading axis .* \['b'\] has shape \[\]",
        ),
        (jnp.ones(()), ValueError, "leading axis .* the only leaf has shape"),
        ({}, ValueError, "updates holds no arrays"),
        (None, ValueError, "updates holds no arrays"),
        ({"a": jnp.ones((0, 2))}, ValueError, "expected at least one client"),
        ({"a": good, "b": 1.0}, TypeError, r"arrays of shape .* \['b'\] is a float"),
        ({"a": [1.0, 2.0]}, TypeError, r"\['a'\]\[0\] is a float"),
        (
            {"a": good, "b": jnp.ones((3, 2), bool)},
            TypeError,
            r"\['b'\] has dtype bool",
        ),
    ],
)
@pytest.mark.parametrize(
    "aggregator",
    [fedagg.aggregator(), fedagg.combining(fedagg.median())],
    ids=["summed", "median"],
)
def test_updates_that_are_not_stacked_clients_are_refused(
    updates, error, message, aggregator
):
    with pytest.raises(error, match=message):
        aggregator.next(aggregator.init(TEMPLATE), updates)


@pytest.mark.parametrize(
    "weights, got",
    [
        (jnp.ones(4), r"\(4,\)"),
        (jnp.ones(1), r"\(1,\)"),
        (jnp.ones((3, 1)), r"\(3, 1\)"),
        (jnp.ones(()), r"\(\)"),
        (1.0, r"\(\)"),
        ([1.0, 2.0], r"\(2,\)"),
    ],
)
def test_weights_of_another_shape_are_refused(weights, got):
    with pytest.raises(
        ValueError, match=rf"weights: expected shape \(3,\).* got {got}"
    ):
        first_round(fedagg.aggregator(fedagg.mean()), good, weights)


def test_complex_weights_are_refused():
    with pytest.raises(TypeError, match="weights: expected real numbers, got dtype co"):
        first_round(fedagg.aggregator(), good, jnp.ones(3, jnp.complex64))


def test_a_metric_of_work_must_be_a_scalar():
    with pytest.raises(ValueError, match=r"work: .* 'all' has shape \(2,\)"):
        first_round(
            fedagg.aggregator(), good, work=lambda x, key: (x, {"all": x, "one": x[0]})
        )


def test_a_metric_of_work_may_not_take_the_name_of_a_stages():
    with pytest.raises(ValueError, match="the metric 'mean/weight' is reported twice"):
        first_round(
            fedagg.aggregator(fedagg.mean()),
            good,
            work=lambda x, key: (x, {"mean/weight": x[0]}),
        )


def test_the_state_of_an_aggregator_without_a_rule_is_refused_by_one_with():
    aggregator = fedagg.combining(fedagg.median())
    other = fedagg.aggregator(fedagg.clipping(1.0))

    with pytest.raises(ValueError, match="state: expected"):
        aggregator.next(other.init(TEMPLATE), take(make_updates().value, range(3)))


PLAIN = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(3)}


@pytest.mark.parametrize(
    "aggregator",
    [
        fedagg.aggregator(fedagg.mean()),
        fedagg.robust_aggregator(),
        fedagg.combining(fedagg.median()),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.deep
def test_a_list_of_clients_is_refused_with_what_to_write(aggregator, kind):
    # All leaves have a leading axis of 3, as if they were of three clients.
    with pytest.raises(ValueError, match=r"got 5 trees .* jax.tree.map\(lambda \*x"):
        aggregator.next(aggregator.init(PLAIN), kind([PLAIN] * 5))


@pytest.mark.parametrize(
    "aggregator",
    [fedagg.aggregator(fedagg.mean()), fedagg.combining(fedagg.median())],
    ids=str,
)
def test_a_value_without_the_axis_of_clients_is_refused(aggregator):
    with pytest.raises(ValueError, match="updates: expected a leading axis of clients"):
        aggregator.next(aggregator.init(PLAIN), PLAIN)


@pytest.mark.deep
def test_a_list_is_a_value_too():
    template = [jnp.zeros(2), jnp.zeros(2)]
    aggregator = fedagg.aggregator(fedagg.mean())

    output = aggregator.next(aggregator.init(template), [jnp.ones((2, 2))] * 2)

    assert_same(output.value, [jnp.ones(2)] * 2)


def test_a_state_may_be_a_plain_tuple():
    aggregator = fedagg.robust_aggregator()
    state = aggregator.init(TEMPLATE)

    remembered = aggregator.next(state, *make_updates())
    plain = aggregator.next(tuple(state), *make_updates())

    assert_same(plain.value, remembered.value)
    assert type(plain.state) is tuple


@pytest.mark.parametrize("other", [2, "across", fedagg.mean(), jnp.ones(3)])
def test_what_is_no_way_to_sum_is_refused(other):
    for make in (fedagg.aggregator, fedagg.robust_aggregator):
        with pytest.raises(TypeError, match="sum_over: expected a way to sum"):
            make(sum_over=other)


@pytest.mark.parametrize("state", [TEMPLATE, None, jnp.ones(3), ((), ())])
def test_another_state_is_refused(state):
    aggregator = fedagg.aggregator(fedagg.mean())

    with pytest.raises(ValueError, match="state: expected what init returned"):
        aggregator.next(state, *make_updates())


NOTES = {
    "bool": (jnp.bool_(True), 3),
    "int8": (jnp.int8(100), 300),
    "uint8": (jnp.uint8(200), 600),
    "float16": (jnp.float16(40000.0), 120000.0),
    "bfloat16": (jnp.bfloat16(256.0), 768.0),
    "uint32": (jnp.uint32(2**31), 2**31),  # wraps around, as 32 bits do
}


@every_way
def test_a_note_of_any_dtype_is_summed_as_a_number(way):
    stage = fedagg.Stage.stateless(
        lambda update, key: (update, {name: note for name, (note, _) in NOTES.items()}),
        lambda total, note, key: (total, note),
    )
    aggregator = fedagg.aggregator(stage, sum_over=WAYS[way]())

    output = first_round_compiled(aggregator, jnp.arange(3.0))

    for name, (_, total) in NOTES.items():
        assert np.asarray(output.metrics[name]) == total
        assert output.metrics[name].dtype.itemsize == 4


@every_way
@pytest.mark.parametrize("has_memory", [False, True])
def test_work_is_traced_once_and_calls_the_host_once_a_client(way, has_memory):
    traces, calls = [], []

    def work(row, key, memory=None):
        traces.append(None)
        jax.debug.callback(lambda x: calls.append(int(x)), row)
        kept = () if memory is None else (memory + row,)
        return row, {}, *kept

    aggregator = fedagg.aggregator(
        fedagg.clipping(3.0), fedagg.mean(), sum_over=WAYS[way]()
    )
    rows = jnp.arange(float(N))
    memory = {"memory": rows} if has_memory else {}
    output = first_round_compiled(aggregator, rows, work=work, **memory)
    jax.block_until_ready(output)
    jax.effects_barrier()

    assert sorted(calls) == list(range(N))
    assert len(traces) == 1


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.deep
def test_work_and_stages_draw_from_keys_apart(compiled):
    aggregator = fedagg.aggregator(fedagg.mean(), fedagg.qsgd(3))
    run = first_round_compiled if compiled else first_round

    def work(row, key):
        return row + jax.random.normal(key, (), jnp.float32), {}

    # With JAX's check that no key is used twice, as all tests have it.
    value = run(aggregator, jnp.arange(3.0), None, jax.random.key(0), work=work).value

    assert np.isfinite(value)
