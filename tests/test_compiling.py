"""Tests are compiled as their marks say."""

import os

import jax
import pytest

from tests.compiling import FLAGS, HASTE, jit, set_haste


def test_a_test_without_a_mark_is_compiled_in_haste():
    assert jax.config.read("jax_disable_most_optimizations") and HASTE.value


@pytest.mark.thorough
def test_a_thorough_test_is_compiled_as_users_have_it():
    assert not jax.config.read("jax_disable_most_optimizations")
    assert not jax.config.values["jax_enable_compilation_cache"]
    assert not any(flag in os.environ["XLA_FLAGS"] for flag in FLAGS.split())


@pytest.mark.parametrize("compiled", [jax.jit, jit])
def test_what_was_compiled_in_haste_serves_no_thorough_test(compiled):
    traced = []

    @compiled
    def double(x):
        traced.append(HASTE.value)
        return 2.0 * x

    try:
        for is_in_haste in (True, False, True, False):
            set_haste(is_in_haste)
            assert double(3.0) == 6.0
    finally:
        set_haste(True)

    assert traced == [True, False]
