"""Integers all the way: what noise is made of, and how near draws are to their law."""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from fedagg._messages.marks import NoisedModulo
from fedagg._noise.integer_laws import discrete_gaussian
from fedagg._noise.sum_grid import BITS, SumGrid, draw_error, integer_noise
from fedagg._privacy.binary_tree import add_leaf, empty_tree
from fedagg._privacy.toeplitz import column_noise
from tests.helpers import first_now
from tests.noise.test_integer_noise import errors, exact_weights

D, DELTA = 5, 1e-6
OUT: dict[str, Any] = {"neighbors": "zero_out"}


def as_row(key: jax.Array, stddev: float, size: int = D) -> np.ndarray:
    drawn = integer_noise(stddev, key, jnp.zeros(size))
    return np.asarray(drawn).astype(np.int64)


@pytest.mark.parametrize("efficient", [True, False])
@pytest.mark.deep
def test_a_tree_releases_what_noised_sums_of_its_nodes_say(efficient):
    rounds, stddev = 13, 1e6
    sums = np.random.default_rng(0).integers(-(2**20), 2**20, (rounds, D))
    keys = [jax.random.key(i) for i in range(rounds)]
    tree, released = empty_tree(jnp.zeros(D), rounds), []
    grow = jax.jit(lambda tree, key: add_leaf(tree, key, rounds, stddev, efficient)[:2])
    for t in range(rounds):
        tree, noise = grow(tree, keys[t])
        released.append(sums[t] + np.asarray(noise).astype(np.int64))

    # By the nodes alone, of which each is a sum of rounds and a draw.
    read, prefix = {}, np.zeros(D, np.int64)
    for t in range(rounds):
        top = ((t + 1) & -(t + 1)).bit_length() - 1
        for level in range(top + 1):
            first = t + 1 - 2**level
            draw = as_row(jax.random.fold_in(keys[t], level), stddev)
            noised = sums[first : t + 1].sum(axis=0) + draw
            if efficient and level:
                middle = first + 2 ** (level - 1)
                children = read[level - 1, first] + read[level - 1, middle]
                part = np.float32(1.0 / (2.0 - 0.5**level))
                apart = (noised - children).astype(np.float32)
                noised = children + np.round(part * apart).astype(np.int64)
            read[level, first] = noised
        end, now = t + 1, np.zeros(D, np.int64)
        while end:
            level = (end & -end).bit_length() - 1
            end -= 2**level
            now += read[level, end]
        np.testing.assert_array_equal(released[t], now - prefix)
        prefix = now


@pytest.mark.parametrize("separation, times", [(1, 1), (3, 3), (4, 2), (1, 4)])
@pytest.mark.deep
def test_bands_draw_noise_that_a_client_moves_by_no_more_than_is_said(
    separation, times
):
    rounds, size = 9, 200
    grid = SumGrid(512.0, 700.0)  # so few steps that roundings count
    source = column_noise(np.array([1.0, 0.55, 0.3]))
    (strategy,) = [source.mechanism(0.0, (grid,))]
    assert strategy is not None
    state, noise = source.init(jnp.zeros(size)), []
    nothing = NoisedModulo(jnp.zeros(size, jnp.int32), BITS)
    for t in range(rounds):
        state, value, _ = source.add(state, nothing, grid, jax.random.key(t))
        noise.append(np.asarray(value).astype(np.int64))
    # What is drawn is read off what was released, in whole numbers.
    back = np.round(np.array([0.55, 0.3]) * 2**12).astype(np.int64)
    length = math.sqrt(1.0 + np.sum((back / 2**12) ** 2))

    def drawn(released: np.ndarray) -> np.ndarray:
        before = np.zeros_like(released)
        for k, part in enumerate(back, start=1):
            before[k:] += part * released[:-k]
        return released + -(-before // 2**12)

    draws = drawn(np.stack(noise))
    for t in range(rounds):
        own = as_row(jax.random.key(t), length * grid.deviation, size)
        np.testing.assert_array_equal(draws[t], own)
    assert source.shift(size) == math.sqrt(2 * size)
    largest = 0.0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        moved = np.zeros((rounds, size), np.int64)
        way = rng.normal(size=size)
        for i in range(times):
            at = rng.normal(size=size) if seed % 2 else way
            clip = grid.steps - source.shift(size) - math.sqrt(size) / 2.0
            moved[i * separation] = np.round(at * clip / np.linalg.norm(at))
        apart = np.linalg.norm(drawn(np.stack(noise) - moved) - draws)
        largest = max(largest, apart / (length * grid.deviation))
    said = strategy.sensitivity(rounds, separation, times) / strategy.noise_multiplier
    assert 0.85 * said < largest < said


@pytest.mark.deep
def test_a_matrix_in_whole_units_is_near_the_one_that_is_best():
    (mechanism,) = fedagg.banded_noise(
        1.0, 1.0, 10.0, bands=12, rounds=100
    ).traits.mechanisms

    # Its columns are of norm one, so that a round costs what it did.
    assert mechanism.sensitivity(12, 12, 1) == pytest.approx(1.0, abs=1e-12)
    assert mechanism.noise_multiplier == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("stddev", [0.8, 5.0])
def test_a_draw_is_as_near_to_its_law_as_is_said(stddev):
    shares, _ = discrete_gaussian(stddev)

    weights = exact_weights(
        "discrete_gaussian", Fraction(stddev), len(shares) // 2 + 60
    )
    off = sum(errors(shares, weights)) / 2**97
    assert 0 < off <= draw_error(stddev) < 2.0**-85


@pytest.mark.parametrize("stddev", [2000.0, 2.0**20, 2.0**26])
def test_wide_draws_add_up_the_errors_of_their_parts(stddev):
    # At most three tables of less than 2**16 integers, and sums of two.
    assert 2.0**-90 < draw_error(stddev) < 3 * 2.0**-80


class Draws:
    """Stages with integers for noise, and the draws of a round with 30 entries."""

    template = {"x": jnp.zeros(30)}
    made = {
        "gaussian": (fedagg.gaussian_noise(1.0, 1.0, 10.0), 30),
        "adaptive": (fedagg.adaptive_gaussian_noise(1.0, 100.0), 31),
        "tree": (fedagg.tree_noise(2.0, 1.0, 10.0, restart_every=8), 60),
        "adaptive tree": (
            fedagg.adaptive_tree_noise(2.0, 100.0, restart_every=8, restart_warmup=3),
            62,
        ),
        "bands": (fedagg.banded_noise(1.0, 1.0, 10.0, bands=2, rounds=4), 30),
        "metrics": (
            fedagg.chain(
                fedagg.noised_metrics(1.0, {"a": 1.0, "b": 2.0}, 10.0),
                fedagg.gaussian_noise(1.0, 1.0, 10.0),
            ),
            32,
        ),
        "after a rotation": (
            fedagg.chain(
                fedagg.rotation("hadamard"), fedagg.gaussian_noise(1.0, 1.0, 10.0)
            ),
            32,
        ),
        "skellam": (fedagg.skellam(1.0, 1.0, 4).secure_sum(), 4 * 32),
        "discrete Gaussian, learnt": (
            fedagg.discrete_gaussian(
                1.0, fedagg.quantile_bound(0.1, 0.5, 0.2), 20
            ).secure_sum(),
            20 * 33,
        ),
    }


@first_now("name", Draws.made)
def test_delta_is_as_asked_for_and_what_draws_add(name):
    stage, draws = Draws.made[name]
    every = [x.draw_error for x in stage.traits.mechanisms]

    got = fedagg.guarantee(stage, Draws.template, 3, DELTA, **OUT)

    off = sum(x(Draws.template) for x in every if x is not None)
    # Of each draw one table or two are off, of up to 2**16 integers.
    assert draws * 2.0**-90 < off < draws * 2.0**-79
    # Twice: what runs is as far from what is accounted, with a client and without.
    expected = 3 * off * (1.0 + math.exp(got.epsilon))
    assert got.of_draws == pytest.approx(min(1.0, expected), rel=1e-12)
    assert got.delta == DELTA + got.of_draws >= DELTA
    assert got.unknown_draws == () and "draws" not in str(got)


def test_a_million_entries_in_a_thousand_rounds_add_less_than_a_millionth_of_delta():
    stage = fedagg.gaussian_noise(26.0, 1.0, 1000.0)
    template = jax.ShapeDtypeStruct((10**6,), jnp.float32)

    got = fedagg.guarantee(stage, template, 1000, DELTA, **OUT)

    assert 5.5 < got.epsilon < 6.5
    assert 1e-14 < got.of_draws < 1e-12


def test_what_draws_add_is_said_where_it_counts():
    rough = fedagg.Mechanism.gaussian(2.0)._replace(draw_error=lambda template: 1e-9)
    stage = fedagg.Stage.stateless(
        lambda update, key: (update._replace(value=NoisedModulo(0, BITS)), ()),
        traits=fedagg.Traits("own", is_private=True, mechanisms=(rough,)),
    )

    got = fedagg.guarantee(stage, jnp.zeros(3), 10, DELTA, **OUT)

    assert got.delta == pytest.approx(DELTA + 1e-8 * (1.0 + math.exp(got.epsilon)))
    assert f"of delta {got.of_draws:.2g} for draws" in str(got)


def test_draws_in_floats_are_named():
    plain = optax.GradientTransformation(
        lambda params: (), lambda updates, state, params=None: (updates, state)
    )
    matrix = fedagg.Mechanism.matrix(2.0, np.eye(9))
    stage = fedagg.matrix_factorization_noise(plain, 1.0, 9.0, mechanism=matrix)

    got = fedagg.guarantee(stage, jnp.zeros(3), 9, DELTA, **OUT)

    assert got.unknown_draws == (matrix,)
    assert "without an error of draws in floats, of mat" in str(got)


def test_what_a_bound_learns_with_noise_is_integers_and_their_error_is_in_delta():
    bound = fedagg.quantile_bound(
        10.0, 0.98, 2.0, below_estimate_stddev=2.0, expected_num_clients=100
    )
    noise = fedagg.gaussian_noise(2.0, 1.0, 100.0)
    stage = fedagg.chain(fedagg.zeroing(bound, counted=False), noise)

    got = fedagg.guarantee(stage, jnp.zeros(3), 9, DELTA, **OUT)
    alone = fedagg.guarantee(noise, jnp.zeros(3), 9, DELTA, **OUT)

    assert not got.unknown_draws and bound.draw_error is not None
    of_values = alone.of_draws / (1.0 + math.exp(alone.epsilon))
    expected = (of_values + 9 * bound.draw_error) * (1.0 + math.exp(got.epsilon))
    assert got.of_draws == pytest.approx(expected, rel=1e-9)
    assert 0.0 < bound.draw_error < 2.0**-79


@pytest.mark.deep
@pytest.mark.parametrize("stddev, clients", [(0.5, 3.0), (10.0, 100.0), (3.0, 1e6)])
def test_the_noise_of_a_bound_is_on_a_grid_and_of_the_deviation_asked_for(
    stddev, clients
):
    rate, present = 0.3, 0.1 * clients
    bound = fedagg.quantile_bound(
        1.0, 0.5, rate, below_estimate_stddev=stddev, expected_num_clients=clients
    )
    note = bound.note(jnp.float32(1.0), jnp.float32(0.5))
    note = note._replace(below=jnp.float32(0.5 * round(2.0 * present)))

    def estimate(key: jax.Array) -> jax.Array:
        return bound.update(bound.init(), note, key).estimate

    keys = jax.random.split(jax.random.key(3), 20_000)
    found = np.asarray(jax.jit(jax.vmap(estimate))(keys), np.float64)

    count = -np.log(found) / rate * clients  # of those below, each a half or minus it
    is_inside = np.abs(count) < 0.499 * clients
    middle = count[is_inside]
    if is_inside.all():
        error = np.finfo(np.float32).eps * clients / rate
        assert abs(middle.mean() - note.below) < 5 * stddev / 141.0 + error
        assert abs(middle.std() / stddev - 1.0) < 0.03 + error / stddev
    share = np.mean(count > float(note.below))
    assert abs(share - 0.5) < 0.02 or not is_inside.all()
    grid = SumGrid.of(2.0 * stddev, clients)
    assert grid.deviation > 1000.0  # so that a draw tells no more than its law


def test_the_halves_of_many_clients_are_counted_exactly():
    bound = fedagg.quantile_bound(
        1.0, 0.5, 1.0, below_estimate_stddev=1e-3, expected_num_clients=2**21
    )
    key, note = jax.random.key(0), bound.note(jnp.float32(1.0), jnp.float32(0.5))

    def after(below: float) -> float:
        told = note._replace(below=jnp.float32(below))
        return -math.log(float(bound.update(bound.init(), told, key).estimate))

    # One client more is a half more, whoever else is there: the draw is the same.
    for below in (0.0, 1000.5, 2.0**18):
        apart = (after(below + 64.0) - after(below)) * 2**21
        assert apart == pytest.approx(64.0, abs=0.3)


@pytest.mark.parametrize("column", [[1.0], [1.0, 0.5], [2.0, 1.0, 0.5]])
def test_a_column_costs_what_its_matrix_does(column):
    stage = fedagg.toeplitz_noise(1.5, 1.0, 10.0, column)
    (got,) = stage.traits.mechanisms
    expected = fedagg.Mechanism.matrix(1.5, column)

    for pattern in ((8, 1, 8), (8, 3, 2), (8, 8, 1)):
        ours = got.sensitivity(*pattern) / got.noise_multiplier
        theirs = expected.sensitivity(*pattern) / 1.5
        assert ours == pytest.approx(theirs, rel=1e-9)
    assert got.bands == len(column) and got.draw_error is not None


@pytest.mark.deep
def test_noise_of_a_column_is_white_after_its_matrix():
    column, z, clip, rounds = [2.0, 1.0, 0.5], 0.5, 3.0, 6
    made = fedagg.aggregator(fedagg.toeplitz_noise(z, clip, 4.0, column))
    state, next = made.init(jnp.zeros(40_000)), jax.jit(made.next)
    noise = []
    for _ in range(rounds):
        output = next(state, jnp.zeros((1, 40_000)), None, jax.random.key(0))
        state = output.state
        noise.append(np.asarray(output.value, np.float64) * 4.0 / (clip * z))

    matrix = sum(c * np.eye(rounds, k=-k) for k, c in enumerate(column))
    white = np.cov(matrix @ np.stack(noise))

    np.testing.assert_allclose(white, np.eye(rounds), atol=0.03)


@pytest.mark.parametrize("column", [[], [0.0, 1.0], [-1.0], [[1.0]], [1.0, math.nan]])
def test_what_is_no_column_is_refused(column):
    with pytest.raises(ValueError, match="column must"):
        fedagg.toeplitz_noise(1.0, 1.0, 10.0, column)
