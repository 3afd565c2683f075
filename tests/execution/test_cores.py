"""A mesh of cores, in programs of their own, as JAX counts devices once."""

import subprocess
import sys

import pytest

import fedagg

_ROUND = """
import fedagg
mesh = fedagg.cpu_mesh(3)
import jax, jax.numpy as jnp
assert dict(mesh.shape) == {"clients": 3} and len(jax.devices()) == 3
summing = fedagg.aggregator(sum_over=fedagg.across(mesh))
rows = jnp.arange(5.0)
compiled = jax.jit(summing.next).lower(summing.init(rows[0]), rows).compile()
assert "all-reduce" in compiled.as_text()
assert float(compiled(summing.init(rows[0]), rows).value) == 10.0
"""

_LATE = """
import jax
jax.devices()
import fedagg
fedagg.cpu_mesh(3)
"""


def _run(code):
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=flags
    )


def test_cores_become_devices():
    done = _run(_ROUND)
    assert done.returncode == 0, done.stderr


@pytest.mark.deep
def test_it_is_called_first():
    done = _run(_LATE)
    assert "JAX has begun with 1 CPU devices, fewer than 3" in done.stderr


def test_some_of_the_devices_that_there_are():
    assert dict(fedagg.cpu_mesh(2, axis="people").shape) == {"people": 2}
    with pytest.raises(ValueError, match="cores must be a whole number"):
        fedagg.cpu_mesh(0)
