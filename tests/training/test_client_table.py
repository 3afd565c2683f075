"""Clients' examples in one table: what rounds on it cost, against padded clients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from fedagg._execution.placement import dealt
from tests.helpers import WAYS, every_way, first_now, mesh_of

SIZES = (3, 0, 17, 5, 9, 1, 2, 8, 30, 4, 0)
COHORT = np.array([8, 1, 2, 5, 10])


def make_datasets(sizes=SIZES):
    draw = np.random.default_rng(0)
    return [
        {
            "x": draw.normal(size=(m, 6)).astype(np.float32),
            "y": draw.integers(0, 3, m).astype(np.int32),
        }
        for m in sizes
    ]


def loss(parameters, examples, key):
    del key
    logits = examples["x"] @ parameters
    labels = examples["y"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels), {}


def make_training(way=None, **settings):
    work = fedagg.local_training(
        loss, optax.sgd(0.1), batch_size=4, epochs=2, **settings
    )
    mean = fedagg.aggregator(fedagg.mean(), sum_over=way)
    training = fedagg.federated_averaging(work, optax.sgd(1.0), mean)
    return training, training.init(jnp.zeros((6, 3)))


def counted(steps):
    """Work that runs a body once for each example, and counts the bodies that run."""

    def note(x):
        steps.append(np.shape(x))
        return x

    def body(carry, largest):
        place, total = carry
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        del largest
        # Of the place, so that it is not taken out of the loop.
        one = jnp.where(place < 0, 0.0, 1.0)
        one = jax.pure_callback(note, shape, one, vmap_method="expand_dims")
        return place + 1, total + one

    def work(row, key):
        del key

        def is_left(carry):
            return carry[0] < row.sizes

        first = jnp.zeros_like(row.sizes), jnp.float32(0.0)
        return jax.lax.while_loop(is_left, lambda x: body(x, None), first)[1], {}

    return work


@every_way
@pytest.mark.deep
def test_a_round_on_a_table_is_that_on_padded_clients(way):
    padded, weights = fedagg.pad_clients(make_datasets())
    table = fedagg.ClientTable.of(make_datasets())
    training, state = make_training(WAYS[way]())
    key = jax.random.key(1)
    expected = jax.jit(training.next)(state, padded, weights, key)
    got = jax.jit(training.next)(state, table, table.sizes, key)
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


@every_way
@pytest.mark.deep
def test_what_clients_keep_comes_back_in_their_order(way):
    def work(row, key, memory):
        del key
        return row.examples["x"][row.starts], {}, memory + row.sizes

    table = fedagg.ClientTable.of(make_datasets())
    summing = fedagg.aggregator(sum_over=WAYS[way]())
    memory = jnp.arange(len(SIZES), dtype=jnp.int32)
    weights = np.ones(len(SIZES))
    weights[2] = 0.0  # keeps what it had
    state = summing.init(jnp.zeros(6))
    kept = summing.next(state, table, weights, None, work=work, memory=memory)[1]
    sizes = np.where(np.arange(len(SIZES)) == 2, 0, SIZES)
    np.testing.assert_array_equal(kept, np.arange(len(SIZES)) + sizes)


@pytest.mark.deep
def test_a_cohort_is_a_few_integers():
    table = fedagg.ClientTable.of(make_datasets())
    cohort = table[COHORT]
    assert all(cohort.examples[name] is x for name, x in table.examples.items())
    assert len(cohort) == len(COHORT)
    np.testing.assert_array_equal(cohort.sizes, np.array(SIZES)[COHORT])
    (examples, mask), _ = fedagg.pad_clients(make_datasets())
    expected = jax.tree.map(lambda x: x[COHORT], (examples, mask))
    chex.assert_trees_all_equal(cohort.padded(), expected)
    chex.assert_trees_all_equal(
        table[2].padded(), jax.tree.map(lambda x: x[2], (examples, mask))
    )
    traced = jax.jit(lambda table, numbers: table[numbers].padded())(table, COHORT)
    chex.assert_trees_all_equal(traced, expected)


@pytest.mark.deep
def test_a_cohort_trains_without_a_copy_and_without_compiling_anew():
    draw = np.random.default_rng(0)
    table = fedagg.ClientTable.of([draw.normal(size=(1000, 100)) for _ in range(20)])

    traces = []

    def squares(parameters, examples, key):
        del key
        traces.append(examples)
        return jnp.sum(jnp.square(examples - parameters[None]), axis=1), {}

    work = fedagg.local_training(squares, optax.sgd(0.1), batch_size=10, shuffle=False)
    mean = fedagg.aggregator(fedagg.mean(), sum_over=fedagg.in_chunks(1))
    training = fedagg.federated_averaging(work, optax.sgd(1.0), mean)
    state = training.init(jnp.zeros(100))
    run = jax.jit(training.next)
    memory = run.lower(state, table[[1, 2, 3]]).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 100_000  # of 8,000,000
    before = len(traces)
    for numbers in ([1, 2, 3], [7, 7, 19]):
        run(state, table[numbers])
    assert len(traces) == before


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.deep
def test_a_cohort_is_gathered_from_the_host(on_host):
    table = fedagg.ClientTable.of(make_datasets(), on_host=on_host)
    cohort = table.gathered(COHORT)
    chex.assert_trees_all_equal(cohort.padded(), table[COHORT].padded())
    assert len(cohort.examples["x"]) == 64  # for 48 examples
    training, state = make_training()
    key = jax.random.key(2)
    expected = training.next(state, table[COHORT], table.sizes[COHORT], key)
    got = training.next(state, cohort, cohort.sizes, key)
    chex.assert_trees_all_close(got, expected, rtol=1e-6)
    empty = table.gathered([1])
    training.next(state, empty, empty.sizes, key)


def test_a_table_may_be_a_file(tmp_path):
    datasets = [x["x"] for x in make_datasets()]
    together = np.concatenate(datasets)
    file = np.memmap(tmp_path / "x", np.float32, "w+", shape=together.shape)
    file[:] = together
    sizes = np.array(SIZES)
    table = fedagg.ClientTable(file, np.cumsum(sizes) - sizes, sizes, max(SIZES))
    expected = fedagg.ClientTable.of(datasets)[COHORT].padded()
    chex.assert_trees_all_equal(table.gathered(COHORT).padded(), expected)


def test_clients_of_like_size_share_a_chunk():
    sizes = [1, 8, 1, 8, 2, 8, 2]
    table = fedagg.ClientTable.of([np.zeros(m) for m in sizes])
    steps = []
    summing = fedagg.aggregator(sum_over=fedagg.in_chunks(3))
    output = summing.next(summing.init(0.0), table, work=counted(steps))
    assert float(output.value) == sum(sizes)
    # Largest first: three of eight; two, two and one; one again beside two that come
    # twice so that the last chunk is whole.
    assert len(steps) <= 8 + 2 + 2


def test_an_absent_client_takes_no_steps():
    table = fedagg.ClientTable.of([np.zeros(m) for m in (5, 7, 3)])
    steps = []
    summing = fedagg.aggregator(sum_over=fedagg.in_chunks(1))
    weights = np.array([1.0, 0.0, 1.0])
    output = summing.next(summing.init(0.0), table, weights, work=counted(steps))
    assert float(output.value) == 8.0
    assert len(steps) == 8


@first_now("devices", [1, 2, 4, 8])
def test_devices_have_about_as_many_examples_each(devices):
    draw = np.random.default_rng(devices)
    sizes = (20 * (1 + draw.pareto(1.2, 16 * devices))).astype(np.int32)
    order = np.asarray(dealt(jnp.asarray(sizes), devices))
    assert sorted(order) == list(range(len(sizes)))
    loads = sizes[order].reshape(devices, -1).sum(axis=1)
    # As a list that is dealt greedily, within one client of an even share.
    assert loads.max() <= sizes.sum() / devices + sizes.max()
    if devices > 1:
        assert loads.max() < 0.7 * np.sort(sizes).reshape(devices, -1).sum(axis=1).max()


@pytest.mark.deep
def test_a_table_goes_beside_other_data():
    def work(row, key):
        del key
        table, factor = row
        return factor * jnp.sum(
            jnp.where(table.padded()[1], table.padded()[0], 0.0)
        ), {}

    datasets = [np.full(m, i + 1.0) for i, m in enumerate((2, 0, 5))]
    table = fedagg.ClientTable.of(datasets)
    factors = np.array([1.0, 10.0, 100.0], np.float32)
    summing = fedagg.aggregator()
    output = summing.next(summing.init(0.0), (table, factors), work=work)
    assert float(output.value) == 2.0 + 1500.0


@pytest.mark.deep
def test_error_feedback_takes_a_table():
    def work(row, key):
        del key
        return jnp.sum(jnp.where(row.padded()[1], row.padded()[0], 0.0)), {}

    table = fedagg.ClientTable.of([np.full(m, 2.0) for m in (1, 2, 3, 4)])
    remembering = fedagg.with_error_feedback(fedagg.chain(), clients=4)
    numbers = jnp.array([3, 1])
    state = remembering.init(jnp.float32(0.0))
    output = remembering.next(state, (table[[3, 1]], numbers), work=work)
    assert float(output.value) == pytest.approx((8.0 + 4.0) / 4)


@pytest.mark.deep
def test_one_client_takes_its_row():
    training, state = make_training()
    table = fedagg.ClientTable.of(make_datasets())
    steps = training.steps
    key = jax.random.key(3)
    total = None
    for i, size in enumerate(SIZES):
        shared = steps.broadcast(state)
        key_of_client = jax.random.fold_in(key, i)
        message = steps.client(shared, table[i], float(size), key_of_client)
        total = steps.add(total, message)
    got = steps.server(state, total)
    expected = training.next(state, table, table.sizes, key)
    chex.assert_trees_all_close(got.value, expected.value, rtol=1e-5, atol=1e-6)


def test_errors():
    table = fedagg.ClientTable.of(make_datasets())
    with pytest.raises(IndexError):
        table[[0, len(SIZES)]]
    with pytest.raises(IndexError):
        table.gathered([len(SIZES)])
    summing = fedagg.aggregator()
    with pytest.raises(TypeError, match="ClientTable holds examples"):
        summing.next(summing.init(jnp.zeros(6)), table)
    with pytest.raises(ValueError, match="expected at least one client"):
        fedagg.ClientTable.of([])
    with pytest.raises(ValueError, match="at least one example"):
        fedagg.ClientTable.of([np.zeros((0, 2))])
    with pytest.raises(ValueError, match=r"client 1 have shape \[3\]"):
        fedagg.ClientTable.of([np.zeros((2, 2)), np.zeros((2, 3))])
    with pytest.raises(ValueError, match="agree on the number of clients"):
        summing.next(
            summing.init(0.0), (table, np.zeros(3)), work=lambda row, key: (0.0, {})
        )


@pytest.mark.deep
def test_rows_of_an_explicit_mesh():
    mesh = jax.make_mesh((8,), ("clients",))
    training, state = make_training(fedagg.across(mesh))
    table = fedagg.ClientTable.of(make_datasets())
    key = jax.random.key(4)
    plain, _ = make_training()
    expected = plain.next(state, table, table.sizes, key)
    with jax.set_mesh(mesh):
        got = jax.jit(training.next)(state, table, jnp.asarray(table.sizes), key)
    chex.assert_trees_all_close(got.value, expected.value, rtol=1e-5, atol=1e-6)
    assert mesh_of().size == 8
