"""Ways to sum, driven directly and on meshes."""

import functools
import math
import re
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import (
    WAYS,
    assert_close,
    assert_same,
    every_way,
    first_round,
    make_updates,
    mesh_of,
    with_absent,
)

pytestmark = pytest.mark.thorough


def way_named(way: str) -> Any:
    sum_over = WAYS[way]()
    return fedagg.in_chunks(4) if sum_over is None else sum_over


def test_the_tests_have_eight_devices():
    assert jax.device_count() == 8


@hypothesis.given(n=st.integers(1, 9), size=st.integers(1, 10))
def test_chunks_of_any_size_sum_integers_to_the_bit(n, size):
    clients = {"x": jnp.arange(3 * n, dtype=jnp.int32).reshape(n, 3) - 7}

    got = fedagg.in_chunks(size)(lambda row: row, clients)

    assert_same(got, {"x": jnp.asarray(np.asarray(clients["x"]).sum(0))})


@every_way
@pytest.mark.parametrize("n", [1, 5, 8, 16])
def test_any_number_of_clients_sums_to_the_bit(way, n):
    clients = jnp.arange(2 * n, dtype=jnp.int32).reshape(n, 2) + 1

    got = jax.jit(functools.partial(way_named(way), lambda x: (x, x[0] * 0 + 1)))(
        clients
    )

    assert_same(got, (jnp.sum(clients, axis=0), jnp.int32(n)))


@every_way
def test_the_sum_keeps_the_dtype_of_the_function(way):
    clients = jnp.ones((11, 2), jnp.bfloat16)

    got = way_named(way)(lambda x: {"half": x, "wide": x.astype(jnp.float32)}, clients)

    assert {k: x.dtype for k, x in got.items()} == {
        "half": "bfloat16",
        "wide": "float32",
    }


@every_way
def test_a_row_that_is_summed_nowhere_may_hold_anything(way):
    clients = with_absent(make_updates(), jnp.nan, [0, 10])

    got = way_named(way)(
        lambda x: jnp.where(x.weight > 0.0, x.value["b"], 0.0), clients
    )

    assert_close(got, np.nansum(np.asarray(clients.value["b"], np.float64)))


@every_way
def test_clients_may_hold_keys(way):
    keys = jax.random.split(jax.random.key(0), 11)
    draw = functools.partial(jax.random.bits, shape=(2,), dtype=jnp.uint32)
    expected = jnp.sum(jax.vmap(draw)(jax.random.clone(keys)), axis=0)

    # JAX takes rows that are read one chunk after another for the same keys.
    with jax.debug_key_reuse(False):
        got = jax.jit(functools.partial(way_named(way), draw))(keys)

    assert_same(got, expected)


@pytest.mark.parametrize("n", [16, 11])
@pytest.mark.parametrize("inner", [None, fedagg.in_chunks(1)], ids=["none", "chunks"])
def test_parameters_may_be_spread_over_another_axis_of_the_mesh(n, inner):
    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((4, 2), ("clients", "model"), axis_types=(auto, auto))
    template = {"w": jax.ShapeDtypeStruct((4, 3), jnp.float32)}
    updates = with_absent(make_updates(n, template=template), jnp.nan, [1])
    expected = first_round(fedagg.robust_aggregator(), *updates)
    aggregator = fedagg.robust_aggregator(sum_over=fedagg.across(mesh, inner=inner))
    rows = jax.P("clients", "model") if n == 16 else jax.P(None, "model")
    value = jax.device_put(updates.value, jax.NamedSharding(mesh, rows))

    output = jax.jit(aggregator.next)(aggregator.init(template), value, updates.weight)

    assert_close(output, expected)


@pytest.mark.parametrize("n", [16, 11])
@pytest.mark.parametrize("inner", [None, fedagg.in_chunks(1)], ids=["none", "chunks"])
def test_the_mesh_that_jax_makes_by_default_will_do(n, inner):
    mesh = jax.make_mesh((8,), ("clients",))
    updates = with_absent(make_updates(n), jnp.nan, [1])
    expected = first_round(fedagg.robust_aggregator(), *updates)
    aggregator = fedagg.robust_aggregator(sum_over=fedagg.across(mesh, inner=inner))
    placed = updates
    state = aggregator.init(jax.tree.map(lambda x: x[0], updates.value))
    if n == 16:
        placed = jax.device_put(updates, jax.NamedSharding(mesh, jax.P("clients")))

    output = jax.jit(aggregator.next)(state, *placed)

    assert_close(output, expected)


def test_the_second_round_across_devices_is_not_compiled_anew():
    mesh, traces = mesh_of(), []
    aggregator = fedagg.robust_aggregator(sum_over=fedagg.across(mesh))
    updates = jax.device_put(
        make_updates(16), jax.NamedSharding(mesh, jax.P("clients"))
    )
    state = aggregator.init(jax.tree.map(lambda x: x[0], make_updates().value))
    state = jax.device_put(state, jax.NamedSharding(mesh, jax.P()))

    @jax.jit
    def next_round(state: Any, updates: fedagg.Update) -> fedagg.Output:
        traces.append(None)
        return aggregator.next(state, *updates)

    for _ in range(3):
        state = next_round(state, updates).state

    assert len(traces) == 1


def test_an_axis_of_another_name_may_hold_the_clients():
    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((8,), ("hosts",), axis_types=(auto,))

    got = fedagg.across(mesh, "hosts")(lambda x: x, jnp.arange(11))

    assert got == 55


def test_work_needs_the_memory_of_a_chunk():
    data = jnp.ones((64, 32))
    aggregator = fedagg.aggregator(fedagg.mean(), sum_over=fedagg.in_chunks(4))

    def next_round(rows: jax.Array) -> fedagg.Output:
        return aggregator.next(
            aggregator.init(jnp.zeros(128)),
            rows,
            work=lambda i, key: (jnp.tile(data[i], 4), {}),
        )

    program = str(jax.make_jaxpr(next_round)(jnp.arange(64)))

    assert "f32[4,128]" in program
    assert "f32[64,128]" not in program


@pytest.mark.parametrize("size", [0, -1, 2.0, None, "3"])
def test_a_chunk_has_a_positive_whole_number_of_clients(size):
    with pytest.raises(ValueError, match="size must be a whole number, 1 or more, got"):
        fedagg.in_chunks(size)


def test_an_axis_that_the_mesh_lacks_is_refused():
    with pytest.raises(ValueError, match=r"mesh's axes \('clients',\), got 'users'"):
        fedagg.across(mesh_of(), axis="users")


def compiled_text_and_temporary_bytes(aggregator, *arguments):
    compiled = jax.jit(aggregator.next).lower(*arguments).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return compiled.as_text() or "", analysis.temp_size_in_bytes


@pytest.mark.parametrize("axes", [("clients",), ("clients", "model")])
def test_devices_exchange_one_message_and_gather_nothing(axes):
    auto = jax.sharding.AxisType.Auto
    shape = {1: (8,), 2: (4, 2)}[len(axes)]
    mesh = jax.make_mesh(shape, axes, axis_types=(auto,) * len(axes))
    robust = fedagg.robust_aggregator(sum_over=fedagg.across(mesh))
    spread = jax.NamedSharding(mesh, jax.P(*axes))
    everywhere = jax.NamedSharding(mesh, jax.P())
    updates = {"w": jax.ShapeDtypeStruct((16, 64, 4), jnp.float32, sharding=spread)}
    state = jax.device_put(robust.init(None), everywhere)

    text, _ = compiled_text_and_temporary_bytes(robust, state, updates)

    # With a sharded model, partial norms of a device's clients are exchanged too.
    gathered = re.findall(r"\w+\[([\d,]+)\]\S* (?:all-gather|all-to-all)\(", text)
    assert all(math.prod(map(int, x.split(","))) <= 4 * 2 for x in gathered)
    assert len(axes) == 2 or not gathered
    assert "all-reduce" in text


def test_one_client_at_a_time_needs_memory_for_fewer_than_four():
    size = 50_000
    robust = fedagg.robust_aggregator(sum_over=fedagg.in_chunks(1))
    updates = {"w": jax.ShapeDtypeStruct((40, size), jnp.float32)}

    _, temporary = compiled_text_and_temporary_bytes(robust, robust.init(None), updates)

    assert temporary < 4 * 4 * size


def test_a_leaf_on_a_second_explicit_axis_is_an_error_that_says_what_to_do():
    mesh = jax.make_mesh((4, 2), ("clients", "model"))
    sharding = jax.NamedSharding(mesh, jax.P("clients", "model"))
    updates = {"w": jax.device_put(jnp.ones((8, 6)), sharding)}
    robust = fedagg.robust_aggregator(sum_over=fedagg.across(mesh))

    with pytest.raises(ValueError, match=r"across: .*'w'.*AxisType.Auto"):
        jax.jit(robust.next)(robust.init(None), updates)


EXPLICIT = {
    "default": lambda: fedagg.aggregator(fedagg.mean()),
    "at_once": lambda: fedagg.aggregator(sum_over=fedagg.at_once()),
    "in_chunks": lambda: fedagg.aggregator(sum_over=fedagg.in_chunks(2)),
    "robust": fedagg.robust_aggregator,
    "rule": lambda: fedagg.combining(fedagg.median()),
    "feedback": lambda: fedagg.with_error_feedback(fedagg.top_k(1.0), 16),
}


@pytest.mark.parametrize("name", EXPLICIT)
@pytest.mark.parametrize("compiled", [True, False])
def test_rows_on_an_explicit_axis_are_told_what_to_write(name, compiled):
    mesh = jax.make_mesh((8,), ("clients",))
    assert mesh.axis_types == (jax.sharding.AxisType.Explicit,)
    by_client = jax.NamedSharding(mesh, jax.P("clients"))
    rows = jax.device_put(jnp.ones((16, 3)), by_client)
    aggregator = EXPLICIT[name]()
    state = aggregator.init(jnp.zeros(3))

    def next_round(state, rows):
        if name == "feedback":
            rows = rows, jnp.arange(16)
        return aggregator.next(state, rows).value

    with pytest.raises(ValueError, match=r"fedagg.across\(mesh, 'clients'\)"):
        (jax.jit(next_round) if compiled else next_round)(state, rows)


@pytest.mark.parametrize("padded", [False, True])
def test_error_feedback_sums_across_an_explicit_mesh(padded):
    mesh = jax.make_mesh((8,), ("clients",))
    n = 13 if padded else 16
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(n, 3)), jnp.float32)
    plain = fedagg.with_error_feedback(fedagg.top_k(0.4), n)
    spread = fedagg.with_error_feedback(
        fedagg.top_k(0.4), n, sum_over=fedagg.across(mesh)
    )
    state = plain.init(rows[0])

    expected = plain.next(state, (rows, jnp.arange(n)))
    placed = rows
    if not padded:
        placed = jax.device_put(rows, jax.NamedSharding(mesh, jax.P("clients")))
    state = jax.device_put(state, jax.NamedSharding(mesh, jax.P()))
    got = jax.jit(spread.next)(state, (placed, jnp.arange(n)))

    assert_close(got.value, expected.value)
    assert_close(got.state.memory, expected.state.memory)


def test_work_may_close_over_arrays_that_are_on_the_mesh():
    mesh = mesh_of(8)
    summing = fedagg.aggregator(sum_over=fedagg.across(mesh))
    rows = jnp.arange(1.0, 12.0)

    @jax.jit
    def run(frozen, rows):
        def work(row, key):
            del key

            def grow(x, unused):
                return x * frozen, unused

            return jax.lax.scan(grow, row, None, 3)[0], {}

        return summing.next(summing.init(jnp.float32(0.0)), rows, work=work).value

    frozen = jax.device_put(jnp.float32(2.0), jax.NamedSharding(mesh, jax.P()))
    assert float(run(frozen, rows)) == 8.0 * 66.0


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3, 3], [40, 1, 2, 1, 1]])
def test_clients_that_convolve_on_a_gpu_give_what_they_give_one_by_one(
    monkeypatch, sizes
):
    draw = np.random.default_rng(0)
    table = fedagg.ClientTable.of([draw.normal(size=(m, 6, 1)) for m in sizes])
    kernel = jnp.asarray(draw.normal(size=(1, 1, 3)), jnp.float32)

    def convolved(table, key):
        examples, mask = table.padded()
        channels_first = jnp.moveaxis(examples, -1, 1)
        results = jax.lax.conv(channels_first, kernel, (1,), "SAME")
        return jnp.sum(jnp.where(mask[:, None, None], results, 0.0)), {}

    def round_of(sum_over):
        mean = fedagg.aggregator(fedagg.mean(), sum_over=sum_over)
        state = mean.init(jnp.float32(0.0))
        return lambda table: mean.next(state, table, work=convolved).value

    want = jax.jit(round_of(fedagg.in_chunks(1)))(table)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    got = jax.jit(round_of(None))
    assert_close(got(table), want)
    assert "cond[" in str(jax.make_jaxpr(got)(table))
