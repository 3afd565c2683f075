"""Minimum, maximum and sum of squares: a primitive under every transformation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedagg._trees import pytree
from fedagg._trees.measures import Measures, measure, minimum_and_maximum
from tests.helpers import first_now, mesh_of

SHAPES = [(), (3, 2), (0,), (70_001,)]


def arrays(n=None, seed=0):
    draw = np.random.default_rng(seed)
    lead = () if n is None else (n,)
    return [jnp.asarray(draw.normal(size=lead + x), jnp.float32) for x in SHAPES]


def expected(arrays):
    x: Any = np.concatenate([np.ravel(x) for x in arrays]).astype(np.float64)
    return Measures(x.min(), x.max(), np.sum(x**2))


def assert_close(got, expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)  # 70,000 squares in a row


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "jit"])
def test_measures_are_those_of_all_entries(compile):
    measured = (jax.jit(measure) if compile else measure)(arrays())

    assert isinstance(measured, Measures)
    assert_close(measured, expected(arrays()))


@first_now("n", [2, 9])
def test_measures_under_vmap_are_those_of_each(n):
    stacked = arrays(n)

    got = jax.vmap(measure)(stacked)
    twice = jax.vmap(jax.vmap(measure))([x[None] for x in stacked])
    one_is_shared = jax.vmap(lambda x: measure([*x, jnp.full(3, 9.0)]))(stacked)

    for i in range(n):
        of_one = expected([x[i] for x in stacked])
        assert_close([x[i] for x in got], of_one)
        assert_close([x[0, i] for x in twice], of_one)
        assert one_is_shared.maximum[i] == 9.0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_nan_is_beyond_the_infinity_of_its_sign(sign):
    nan = np.copysign(np.float32(np.nan), np.float32(sign))
    found = measure([jnp.asarray([0.0, np.inf, -np.inf, nan], jnp.float32)])

    assert np.isnan(found.maximum if sign > 0.0 else found.minimum)
    assert np.isnan(found.size())
    assert all(np.isnan(x) for x in minimum_and_maximum([jnp.float32([1.0, np.inf])]))


def total(weights, arrays):
    """Depends on all three measures."""
    return jnp.dot(weights, jnp.stack(measure(arrays)))


@pytest.mark.deep
def test_derivatives_are_those_of_the_formulas():
    x, weights = arrays(), jnp.array([2.0, 3.0, 0.5])

    gradient = jax.grad(functools.partial(total, weights))(x)
    _, tangent = jax.jvp(functools.partial(total, weights), (x,), (x,))

    flat = np.concatenate([np.ravel(x) for x in x])
    formula = flat.copy()  # 0.5 * 2 x
    formula[flat.argmin()] += 2.0
    formula[flat.argmax()] += 3.0
    np.testing.assert_allclose(
        np.concatenate([np.ravel(x) for x in gradient]), formula, rtol=1e-5
    )
    np.testing.assert_allclose(tangent, np.dot(formula, flat), rtol=1e-5)


def test_entries_that_are_equal_share_the_derivative():
    gradient = jax.grad(lambda x: measure([x]).maximum)(jnp.array([1.0, 4.0, 4.0]))

    np.testing.assert_array_equal(gradient, [0.0, 0.5, 0.5])


@pytest.mark.deep
def test_derivatives_under_vmap_and_of_second_order():
    stacked, weights = arrays(3), jnp.array([1.0, 1.0, 0.5])

    batched = jax.vmap(jax.grad(functools.partial(total, weights)))(stacked)
    second = jax.hessian(lambda x: measure([x]).squares)(jnp.arange(3.0))

    for i in range(3):
        alone = jax.grad(functools.partial(total, weights))([x[i] for x in stacked])
        for a, b in zip(batched, alone, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-6)
    np.testing.assert_allclose(second, 2.0 * np.eye(3))


@pytest.mark.parametrize("held", [np.nan, np.inf, -np.inf])
def test_what_is_not_used_has_no_derivative_whatever_it_holds(held):
    def kept(x, is_kept):
        return jnp.sum(jnp.where(is_kept, jnp.stack(measure([x])), 0.0))

    gradient = jax.grad(kept)(jnp.array([1.0, held]), False)

    np.testing.assert_array_equal(gradient, [0.0, 0.0])


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.deep
def test_measures_in_shard_map(checked):
    mesh = mesh_of(2)
    x = jnp.arange(8.0).reshape(4, 2)

    def on_one_device(x, shared):
        return jax.vmap(lambda y: measure([y, shared]))(x)

    across = jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(jax.P("clients"), jax.P()),
        out_specs=jax.P("clients"),
        check_vma=checked,
    )

    for way in (across, jax.jit(across)):
        assert_close(way(x, jnp.zeros(2)), on_one_device(x, jnp.zeros(2)))


def test_measures_in_a_scan():
    stacked = arrays(4)

    _, scanned = jax.lax.scan(lambda _, x: (None, measure(x)), None, stacked)

    assert_close(scanned, jax.vmap(measure)(stacked))


def test_measures_lower_for_accelerators():
    lowered = jax.jit(jax.vmap(measure)).trace(arrays(9))

    text = lowered.lower(lowering_platforms=("cuda", "tpu")).as_text()

    assert "callback" not in text


@pytest.mark.deep
def test_measures_of_64_bits_are_taken_in_32():
    with jax.enable_x64(True):
        x = [jnp.asarray(np.asarray(x), jnp.float64) for x in arrays()]
        found = jax.jit(measure)(x)
        gradient = jax.grad(lambda x: measure(x).squares)(x)

        assert {y.dtype for y in found} == {jnp.dtype("float32")}
        assert {y.dtype for y in gradient} == {jnp.dtype("float64")}
        assert_close(found, expected(x))


@pytest.mark.parametrize("order", [1.0, 2.0, np.inf])
def test_the_gradient_of_a_norm_at_zero_is_finite(order):
    gradient = jax.grad(functools.partial(pytree.norm, order=order))(jnp.zeros(3))

    assert np.all(np.isfinite(gradient))


def test_the_norm_keeps_what_is_not_finite():
    for held in (np.nan, np.inf):
        np.testing.assert_equal(float(pytree.norm(jnp.float32([1.0, held]))), held)
