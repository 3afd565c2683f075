"""The size of messages, against arrays and against counts by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import fedagg
from tests.helpers import first_now

TEMPLATE = {
    "w": jax.ShapeDtypeStruct((10, 10), jnp.float32),
    "b": jax.ShapeDtypeStruct((), jnp.float32),
}

# Bytes for 100 entries and one: codes, what comes with each tensor, and notes.
BYTES = {
    "nothing": ((), 400 + 4),
    "mean": ((fedagg.mean(),), 400 + 4 + 4),
    "zeroing": ((fedagg.zeroing(1.0),), 400 + 4 + 4),
    "quantization_8": ((fedagg.quantization(8, 0),), 100 + 8 + 1 + 8),
    "quantization_4": ((fedagg.quantization(4, 0),), 50 + 8 + 1 + 8),
    "quantization_3": ((fedagg.quantization(3, 0),), 25 + 13 + 8 + 2 + 8),
    "quantization_above": ((fedagg.quantization(8, 99),), 100 + 8 + 4),
    "quantization_by_default": ((fedagg.quantization(),), 400 + 4),
    "qsgd": ((fedagg.qsgd(7),), 50 + 4 + 1 + 4),
    "terngrad": ((fedagg.terngrad(),), 25 + 4 + 1 + 4),
    "sign": ((fedagg.sign(),), 13 + 4 + 1 + 4),
    # Eleven of 101 entries, at positions of seven bits: 4, 2 and 1 of them apart.
    "top_k": ((fedagg.top_k(0.1),), 44 + 6 + 3 + 2),
    "random_k": ((fedagg.random_k(0.1),), 44 + 4),
    "discretization": ((fedagg.discretization(0.1, stochastic=True),), 404 + 8),
    "chain": (
        (fedagg.zeroing(1.0), fedagg.mean(), fedagg.quantization(8, 0)),
        100 + 8 + 1 + 8 + 4 + 4,
    ),
}


@pytest.mark.parametrize("name", BYTES)
def test_bits_are_those_counted_by_hand(name):
    stages, expected = BYTES[name]

    assert fedagg.message_bits(fedagg.chain(*stages), TEMPLATE) == 8 * expected


@first_now("name", BYTES, quick=4)
def test_bits_are_those_of_the_arrays_that_are_sent(name):
    stage = fedagg.chain(*BYTES[name][0])
    value = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), TEMPLATE)

    def message(key: jax.Array) -> Any:
        shared = stage.broadcast(stage.init(value))
        update, note = stage.client(shared, fedagg.Update(value, jnp.float32(2.0)), key)
        return update.value, note

    arrays = jax.tree.leaves(jax.jit(message)(jax.random.key(0)))

    sent = sum(len(x.tobytes()) for x in arrays)
    assert fedagg.message_bits(stage, value) == 8 * sent


def test_a_fourth_of_the_size_is_what_eight_bits_take():
    template = {"w": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}

    plain = fedagg.message_bits(fedagg.mean(), template)
    coded = fedagg.message_bits(
        fedagg.chain(fedagg.mean(), fedagg.quantization()), template
    )

    # Twelve bytes more: two of the range, one note.
    assert coded - 8 * 12 == 8 * 10**6
    assert plain - 8 * 4 == 32 * 10**6


def test_nothing_is_run_to_know_a_size():
    # Four terabytes.
    template = {"w": jax.ShapeDtypeStruct((2**20, 2**10, 2**10), jnp.float32)}

    assert fedagg.message_bits(fedagg.mean(), template) == 2**45 + 32


def test_half_precision_is_counted_as_it_is_sent():
    half = {"w": jax.ShapeDtypeStruct((100,), jnp.bfloat16)}

    assert fedagg.message_bits(fedagg.chain(), half) == 16 * 100
    assert fedagg.message_bits(fedagg.mean(), half) == 32 * 100 + 32
    assert fedagg.message_bits(fedagg.quantization(4, 0), half) == 4 * 100 + 64


def test_what_a_stage_refuses_is_refused():
    integers = {"w": jax.ShapeDtypeStruct((3,), jnp.int32)}

    with pytest.raises(TypeError, match=r"quantization .* \['w'\] has dtype int32"):
        fedagg.message_bits(fedagg.quantization(), integers)
