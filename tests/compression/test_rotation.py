import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from fedagg._compression.rotation import _KINDS
from tests.helpers import assert_close, first_now, recorded_cases

CASES = recorded_cases("tff_rotation.json")
kinds = pytest.mark.parametrize("kind", ["hadamard", "dft"])


def make_rows(n=4):
    draw = np.random.default_rng(1)
    return {
        "b": jnp.asarray(draw.normal(size=n), jnp.float32),
        "w": jnp.asarray(draw.normal(size=(n, 7, 5)), jnp.float32),
    }


def turned(stage, rows, state=None):
    """What each client sends, `[n, length]`."""
    template = jax.tree.map(lambda x: x[0], rows)
    shared = stage.broadcast(stage.init(template) if state is None else state)
    return jax.vmap(
        lambda row: (
            stage.client(shared, fedagg.Update(row, jnp.float32(1.0)), None)[0].value
        )
    )(rows)


def as_vectors(rows):
    leaves = [np.asarray(x).reshape(len(x), -1) for x in jax.tree.leaves(rows)]
    return np.concatenate(leaves, axis=1)


@kinds
def test_the_sum_comes_back_in_shape(kind):
    rows = make_rows()
    aggregator = fedagg.aggregator(fedagg.rotation(kind))
    state = aggregator.init(jax.tree.map(lambda x: x[0], rows))

    output = jax.jit(aggregator.next)(state, rows)

    assert_close(output.value, jax.tree.map(lambda x: jnp.sum(x, axis=0), rows))


@kinds
@pytest.mark.deep
def test_norms_are_kept_and_rotations_are_linear(kind):
    rows = make_rows()
    vectors = turned(fedagg.rotation(kind), rows)
    total = jax.tree.map(lambda x: jnp.sum(x, axis=0, keepdims=True), rows)

    np.testing.assert_allclose(
        np.linalg.norm(vectors, axis=1),
        np.linalg.norm(as_vectors(rows), axis=1),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        turned(fedagg.rotation(kind), total)[0], jnp.sum(vectors, axis=0), atol=1e-5
    )


@pytest.mark.parametrize(
    "kind, size, length",
    [
        ("hadamard", s, n)
        for s, n in [(1, 1), (2, 2), (3, 4), (1024, 1024), (1025, 2048)]
    ]
    + [("dft", s, n) for s, n in [(1, 2), (2, 2), (3, 4), (1025, 1026)]],
)
@pytest.mark.deep
def test_vectors_are_filled_up_as_far_as_needed(kind, size, length):
    rows = jnp.ones((1, size))
    aggregator = fedagg.aggregator(fedagg.rotation(kind))

    assert turned(fedagg.rotation(kind), rows).shape == (1, length)
    value = aggregator.next(aggregator.init(rows[0]), rows).value
    np.testing.assert_allclose(value, rows[0], atol=1e-5)


@kinds
@pytest.mark.deep
def test_a_spike_is_spread_over_all_entries(kind):
    rows = jnp.zeros((1, 4096)).at[0, 17].set(5.0)

    vector = np.asarray(turned(fedagg.rotation(kind), rows))[0]

    # Of a Hadamard rotation all entries have one size; a Fourier one has two parts.
    assert np.max(np.abs(vector)) <= 5.0 / np.sqrt(4096 / 2) + 1e-5


@kinds
@pytest.mark.deep
def test_each_round_turns_anew_and_each_seed_otherwise(kind):
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(1, 512)), jnp.float32)
    stage = fedagg.rotation(kind)
    aggregator = fedagg.aggregator(stage)
    first = aggregator.init(rows[0])
    second = aggregator.next(first, rows).state
    empty = aggregator.next(first, rows, jnp.zeros(1)).state

    vectors = [
        turned(stage, rows, first[0])[0],
        turned(stage, rows, second[0])[0],
        turned(fedagg.rotation(kind, seed=1), rows)[0],
    ]

    # Independent directions in 512 dimensions: cosines below five times 1 / sqrt(512).
    cosines = np.corrcoef(np.stack(vectors))[np.triu_indices(3, 1)]
    assert np.max(np.abs(cosines)) < 5 / np.sqrt(512)
    assert int(empty[0].round) == 0 and int(second[0].round) == 1


def test_signs_are_fair():
    n, rounds = 4096, 50
    words = jax.vmap(lambda i: _KINDS["hadamard"].draw(jax.random.key(i), n))(
        jnp.arange(rounds)
    )

    ones = int(jnp.sum(jax.lax.population_count(words)))

    assert abs(ones - n * rounds / 2) < 5 * np.sqrt(n * rounds) / 2


@first_now("row", CASES["dft_transform"]["rows"], ids=lambda row: str(row["dim"]))
def test_the_fourier_rotation_equals_the_recorded_one(row):
    theta = np.asarray(row["theta"])
    phases = jnp.asarray(np.exp(1j * theta), jnp.complex64)
    padded = jnp.asarray(row["padded"], jnp.float32)

    got = _KINDS["dft"].rotate(phases, padded)

    np.testing.assert_allclose(got, row["y"], atol=1e-5)
    np.testing.assert_allclose(_KINDS["dft"].back(phases, got), padded, atol=1e-5)


@pytest.mark.deep
def test_the_recorded_round_comes_back():
    for recorded in CASES["rotation_hadamard_sum_repeats1"]["rounds"]:
        clients = recorded["client_values"]
        rows = {
            name: jnp.asarray(np.array([c[name] for c in clients]), jnp.float32)
            for name in clients[0]
        }
        aggregator = fedagg.aggregator(fedagg.rotation("hadamard"))
        state = aggregator.init(jax.tree.map(lambda x: x[0], rows))
        value = aggregator.next(state, rows).value
        for name, want in recorded["result"].items():
            np.testing.assert_allclose(value[name], want, atol=1e-5)


def test_another_kind_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match="hadamard, dft, got kind='haar'"):
        fedagg.rotation("haar")


@kinds
def test_values_unlike_the_template_are_an_error_that_names_the_place(kind):
    aggregator = fedagg.aggregator(fedagg.rotation(kind))
    state = aggregator.init({"w": jnp.zeros(4)})

    with pytest.raises(ValueError, match="'w'"):
        aggregator.next(state, {"w": jnp.zeros((2, 5))})
    with pytest.raises(TypeError, match="'w'.*int32"):
        aggregator.init({"w": jnp.zeros(4, jnp.int32)})
