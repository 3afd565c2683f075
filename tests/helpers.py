"""What tests of rounds share: clients, ways to sum, comparisons."""

import json
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.compiling import jit

N = 11  # neither a multiple of the devices nor of a chunk

TEMPLATE = {
    "b": jax.ShapeDtypeStruct((), jnp.float32),
    "w": jax.ShapeDtypeStruct((3, 2), jnp.float32),
}


def recorded_cases(file_name: str) -> dict[str, Any]:
    """Cases in `tests/data`, by their names."""
    text = (pathlib.Path(__file__).parent / "data" / file_name).read_text()
    return {case["name"]: case for case in json.loads(text)}


def mesh_of(devices: int = 8) -> jax.sharding.Mesh:
    """So many devices; on an accelerator, the test is left out where there are fewer.

    Only of CPUs can there be as many as asked for.
    """
    if jax.default_backend() != "cpu" and jax.device_count() < devices:
        pytest.skip(f"needs {devices} devices")
    auto = jax.sharding.AxisType.Auto
    return jax.make_mesh((devices,), ("clients",), axis_types=(auto,))


def first_now(
    names: str, values: Iterable[Any], quick: int = 1, **options: Any
) -> pytest.MarkDecorator:
    """`pytest.mark.parametrize` of which the first cases are quick, the others deep."""
    cases = [
        pytest.param(
            *(value if "," in names else [value]),
            marks=[pytest.mark.deep] * (i >= quick),
        )
        for i, value in enumerate(values)
    ]
    return pytest.mark.parametrize(names, cases, **options)


WAYS: dict[str, Callable[[], Any]] = {
    "chunks_with_a_rest": lambda: fedagg.in_chunks(3),
    "across": lambda: fedagg.across(mesh_of()),
    "default": lambda: None,
    "at_once": fedagg.at_once,
    "one_by_one": lambda: fedagg.in_chunks(1),
    "chunk_too_large": lambda: fedagg.in_chunks(50),
    "chunks_across": lambda: fedagg.across(mesh_of(), inner=fedagg.in_chunks(2)),
}

every_way = first_now("way", WAYS, quick=2)


def make_updates(n: int = N, seed: int = 0, template: Any = None) -> fedagg.Update:
    """Clients of very different sizes, some above any bound that tests use."""
    draw = np.random.default_rng(seed)
    sizes = np.resize([0.1, 0.3, 40.0, 1.0, 0.02, 3.0], n)

    def leaf(x: jax.ShapeDtypeStruct) -> jax.Array:
        values = draw.normal(size=(n, *x.shape))
        scaled = values * sizes.reshape(-1, *[1] * len(x.shape))
        return jnp.asarray(scaled.astype(x.dtype))

    value = jax.tree.map(leaf, TEMPLATE if template is None else template)
    weight = jnp.asarray(draw.integers(1, 20, size=n).astype(np.float32))
    return fedagg.Update(value, weight)


def extreme_clients(count: int) -> np.ndarray:
    """Vectors of three entries: of all sizes, near one, and what is no number."""
    draw = np.random.default_rng(1)
    return np.concatenate(
        [
            draw.normal(size=(count, 3)) * 10.0 ** draw.uniform(-30, 30, (count, 1)),
            draw.normal(size=(count, 3)) * draw.uniform(0.3, 0.9, (count, 1)),
            [[math.nan, 1.0, 1.0], [math.inf, 0.0, 0.0], [-math.inf, math.nan, 0.0]],
            [[3e38, 3e38, 3e38], [0.7, 0.0, 0.0], [1e-45, 0.0, 0.0]],
        ]
    ).astype(np.float32)


def with_absent(updates: fedagg.Update, held: float, rows: Any) -> fedagg.Update:
    """Makes some rows absent, and their values `held` throughout."""
    value = jax.tree.map(lambda x: with_rows(x, rows, held), updates.value)
    return fedagg.Update(value, with_rows(updates.weight, rows, 0.0))


# In NumPy: JAX would compile each of these small operations.


def with_rows(x: jax.Array, rows: Any, held: Any) -> jax.Array:
    changed = np.array(x)
    changed[np.asarray(rows)] = held
    return jnp.asarray(changed)


def first_round(aggregator: fedagg.Aggregator, *arguments: Any, **more: Any) -> Any:
    """A round from the state that `init` makes for the first client's value."""
    template = jax.tree.map(lambda x: x[0], arguments[0])
    return aggregator.next(aggregator.init(template), *arguments, **more)


def first_round_compiled(
    aggregator: fedagg.Aggregator, *arguments: Any, **more: Any
) -> Any:
    """The same under `jit`, for what would be slow step by step."""
    return jit(lambda *x: first_round(aggregator, *x, **more))(*arguments)


def take(tree: Any, rows: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[rows]), tree)


def stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *trees)


def assert_same(got: Any, expected: Any) -> None:
    """The same structure, dtypes and bits; a NaN equals a NaN."""
    chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    chex.assert_trees_all_equal(got, expected)


def assert_close(got: Any, expected: Any, rtol: float = 1e-5) -> None:
    """The same structure, and values to rounding; a NaN is close to nothing.

    The absolute tolerance is for sums that cancel, of terms of about one.
    """
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            np.asarray(a).astype(np.float64),
            np.asarray(b).astype(np.float64),
            rtol=rtol,
            atol=rtol,
            equal_nan=False,
        )


def assert_same_round(got: fedagg.Output, expected: fedagg.Output) -> None:
    """Close to rounding; counts, which are whole numbers, to the bit."""
    assert_close(got, expected)
    for name in got.metrics:
        if name.endswith("/count"):
            assert_same(got.metrics[name], expected.metrics[name])
