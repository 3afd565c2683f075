"""Flax saves a state although fedagg is imported without Flax."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import fedagg
import jax.numpy as jnp

assert "flax" not in sys.modules
mean = fedagg.aggregator(fedagg.rotation("hadamard"), fedagg.mean())
state = mean.next(mean.init(jnp.zeros(3)), jnp.ones((2, 3)), jnp.ones(2)).state

import flax.serialization

saved = flax.serialization.to_bytes(state)
restored = flax.serialization.from_bytes(mean.init(jnp.zeros(3)), saved)
assert type(restored) is type(state) and restored.template == state.template
next_round = mean.next(restored, jnp.ones((2, 3)), jnp.ones(2))
print(len(saved), *next_round.value.round(3).tolist())
"""


@pytest.mark.deep
def test_flax_may_be_imported_after_the_state_is_made():
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True
    )

    assert run.returncode == 0, run.stderr
    length, *mean = run.stdout.split()
    assert int(length) > 0 and mean == ["1.0", "1.0", "1.0"]
