"""Rules of several leaves, as programs; leaves of other dtypes, and empty ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.compiling import jit
from tests.helpers import first_now, mesh_of
from tests.rules import references

RULES = {
    "median": fedagg.median(),
    "weighted median": fedagg.median(weighted=True),
    "trimmed_mean": fedagg.trimmed_mean(2),
    "weighted trimmed mean": fedagg.trimmed_mean(2, weighted=True),
    "mean_around_median": fedagg.mean_around_median(2),
    "krum": fedagg.krum(2),
    "geometric_median": fedagg.geometric_median(),
    "centered_clipping": fedagg.centered_clipping(1.0),
}
rules = pytest.mark.parametrize("name", RULES)
of_cpus = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="programs of accelerators are others"
)


def program(name: str, widths: list[int]) -> str:
    """What is compiled for nine clients and leaves of so many columns."""
    values = [jnp.ones((9, width)) for width in widths]
    aggregator = fedagg.combining(RULES[name])
    state = aggregator.init(jax.tree.map(lambda x: x[0], values))
    text = jax.jit(aggregator.next).lower(state, values).compile().as_text()
    assert text is not None
    return text


@of_cpus
@pytest.mark.parametrize("name", ["median", "trimmed_mean", "mean_around_median"])
def test_a_program_compares_as_often_for_six_leaves_as_for_one(name):
    def selections(widths: list[int]) -> int:
        return program(name, widths).count(" select(")

    one = selections([60])

    assert one > 20
    # Beside comparisons of clients, a loop has some for where a block begins.
    assert selections([10] * 6) < one + 10
    assert selections([70_000, 80_000, 20, 30]) < one + 10


@of_cpus
@rules
@pytest.mark.deep
def test_a_loop_over_large_blocks_is_not_made_one_kernel_of_a_cpu(name):
    text = program(name, [200_000, 300])

    # A kernel so made runs on one core. Loops of few numbers may be one.
    calls = [x for x in text.splitlines() if 'xla_cpu_small_call="true"' in x]
    sizes = [
        np.prod([int(x) for x in shape.split(",")])
        for call in calls
        for shape in re.findall(r"\[([\d,]+)\]", call.split(" call(")[0])
    ]
    assert max(sizes, default=0) < 10_000


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_centered_clipping_keeps_its_dtype_for_clients_of_wider_floats(name):
    x = np.random.default_rng(7).normal(size=(5, 3))
    with jax.enable_x64(True):
        aggregator = fedagg.combining(fedagg.centered_clipping(0.5))
        state = aggregator.init(jnp.zeros(3, name))

        output = aggregator.next(state, jnp.asarray(x))

        kept = jax.tree.map(lambda x: x.dtype, output.state)
        assert kept == jax.tree.map(lambda x: x.dtype, state)
        assert output.value.dtype == jnp.float64
        expected = references.centered_clipping(x, np.zeros(3), 0.5, 1)
        np.testing.assert_allclose(output.value, expected, rtol=1e-12)


@first_now("rule", [fedagg.median(), fedagg.krum(1), fedagg.centered_clipping(9.0)])
def test_leaves_without_entries_come_back_from_devices_too(rule):
    values = {"none": jnp.zeros((5, 0), jnp.float16), "x": jnp.arange(5.0)}
    nothing = {"none": values["none"]}
    for value in (values, nothing):
        aggregator = fedagg.combining(rule, sum_over=fedagg.across(mesh_of(4)))
        plain = fedagg.combining(rule)
        state = aggregator.init(jax.tree.map(lambda x: x[0], value))

        got = jit(aggregator.next)(state, value).value

        assert got["none"].shape == (0,) and got["none"].dtype == jnp.float16
        if "x" in value:
            np.testing.assert_allclose(got["x"], plain.next(state, value).value["x"])
