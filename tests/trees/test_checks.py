"""Checks of arguments that are numbers or choices."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from fedagg._trees import checks


@pytest.mark.parametrize("x", [1, 0.5, np.float32(2.0), np.int64(3), jnp.float32(1.0)])
def test_a_positive_number_of_any_type_passes(x):
    checks.check_positive(clip=x)
    checks.check_above_zero(clip=x)
    checks.check_not_negative(clip=x)


@pytest.mark.parametrize("x", [0.0, -1, math.nan, math.inf, np.float32("nan")])
def test_what_is_not_positive_and_finite_is_refused_by_name(x):
    with pytest.raises(ValueError, match="clip must be positive and finite, got clip="):
        checks.check_positive(other=1.0, clip=x)


@pytest.mark.parametrize("x", [-1e-30, math.nan, math.inf])
def test_what_is_negative_or_infinite_is_refused_by_name(x):
    with pytest.raises(ValueError, match="z must be finite and not negative, got z="):
        checks.check_not_negative(z=x)


@pytest.mark.parametrize("x", [True, np.True_, jnp.bool_(True), "1", None, (1.0, 2.0)])
def test_what_is_no_number_is_refused_by_name(x):
    for check in (
        checks.check_positive,
        checks.check_above_zero,
        checks.check_not_negative,
        lambda **x: checks.check_within("[0, 1]", **x),
    ):
        with pytest.raises(TypeError, match="z must be a number, got z="):
            check(z=x)


@pytest.mark.parametrize(
    "interval, inside, outside",
    [
        ("[0, 1]", [0, 0.5, 1], [-0.1, 1.1, math.nan]),
        ("(0, 1]", [0.5, 1], [0, 1.1, math.nan]),
        ("(0, 1)", [0.5], [0, 1, math.nan]),
        ("[0, 1)", [0, 0.5], [1, math.nan]),
    ],
)
def test_an_interval_is_what_is_written(interval, inside, outside):
    for x in inside:
        checks.check_within(interval, q=x)
    for x in outside:
        with pytest.raises(ValueError) as caught:
            checks.check_within(interval, q=x)
        assert str(caught.value) == f"q must be in {interval}, got q={x}."


@pytest.mark.parametrize("x", [1, 4, np.int32(2), np.uint8(3)])
def test_a_whole_number_of_any_type_passes(x):
    checks.check_whole(1, 4, bits=x)


@pytest.mark.parametrize("x", [0, 5, 1.0, 1.5, True, "2", None, math.nan])
def test_what_is_no_whole_number_in_range_is_refused_by_name(x):
    with pytest.raises(ValueError, match="bits must be a whole number, 1 to 4, got"):
        checks.check_whole(1, 4, bits=x)
    with pytest.raises(ValueError, match="bits must be a whole number, 9 or more, got"):
        checks.check_whole(9, bits=x)


def test_a_name_that_is_no_choice_is_refused_with_the_choices():
    checks.check_choice(("dft", "hadamard"), kind="dft")

    with pytest.raises(ValueError, match="kind must be one of dft, hadamard, got kind"):
        checks.check_choice(("dft", "hadamard"), kind="other")
