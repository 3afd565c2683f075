"""What a robust round costs beside a copy: `-m benchmarks.accelerator`."""

import argparse
import itertools
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import options
from benchmarks.contenders import default_row
from benchmarks.inputs import Size, as_vector, make_tree, make_weights
from benchmarks.measuring import check, compile_round, seconds
from benchmarks.reference import robust_mean_of_columns
from benchmarks.report import Report, markdown, markdown_row

PyTree = Any

SIZES = [Size(64, 1_000_000), Size(256, 10_000_000)]
SMALL_SIZES = [Size(16, 10_000), Size(16, 100_000)]
# Per dtype, how far an entry may be off: by the order of a sum, or by rounding.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2.0**-8}

_COPIED = 2**26  # float32 entries: far more than any cache holds
_LEGEND = """
Robust rounds by the default way to sum. *GB/s* counts the bytes of the updates once,
and *of a copy* is that over the speed of the copy, which counts bytes read and written.
Two reads of the updates at the copy's speed make 0.5.
"""
_HEADER = ["clients x parameters", "dtype", "leaves", "ms", "GB/s", "of a copy"]
_HEADER += ["compile s", "temporary MB"]
_FORMS = {
    "milliseconds": "{:.3f}",
    "gigabytes_a_second": "{:,.1f}",
    "of_a_copy": "{:.2f}",
    "compile_seconds": "{:.2f}",
    "temporary_megabytes": "{:,.2f}",
}


def main() -> None:
    chosen = _options()
    device = jax.devices()[0]
    with Report("Robust rounds beside a copy", _path(chosen.out, device)) as report:
        platform = " ".join(device.client.platform_version.split())
        copying = _copy_speed()
        report.say(f"- Platform: {platform}\n- A copy: {copying / 1e9:,.1f} GB/s")
        if device.platform == "cpu":
            report.say(
                "\nThis is no accelerator: the numbers only show that the script runs."
            )
        report.say(f"{_LEGEND}\n{markdown([_HEADER])}")
        for size, dtype, leaves in itertools.product(
            chosen.sizes, TOLERANCES, chosen.leaves
        ):
            what = {**size._asdict(), "dtype": dtype, "leaves": leaves}
            try:
                row = _measure(size, dtype, leaves, copying)
                columns = [form.format(row[name]) for name, form in _FORMS.items()]
            except jax.errors.JaxRuntimeError as error:  # out of memory, most likely
                row = {"skipped": f"failed: {str(error).splitlines()[0]}"}
                columns = [row["skipped"], *4 * [""]]
            report.say(markdown_row([str(size), dtype, str(leaves), *columns]))
            report.keep(**what, **row)
        report.compare("accelerator", chosen.compare)


def _measure(size: Size, dtype: str, leaves: int, copying: float) -> dict[str, Any]:
    tree, weights = make_tree(size, leaves, dtype), make_weights(size)
    run, compile_seconds, temporary = compile_round(
        default_row("robust"), tree, weights
    )
    _check(f"{size}, {dtype}, {leaves} leaves", run().value, tree, weights)
    spent = _median_seconds(run)
    speed = sum(x.nbytes for x in jax.tree.leaves(tree)) / spent
    return {
        "milliseconds": 1e3 * spent,
        "gigabytes_a_second": speed / 1e9,
        "of_a_copy": speed / copying,
        "compile_seconds": compile_seconds,
        "temporary_megabytes": temporary / 1e6,
    }


def _check(what: str, value: PyTree, tree: PyTree, weights: jax.Array) -> None:
    """Compares columns from all over the tree, each leaf's last among them."""
    ends = np.cumsum([x.size for x in jax.tree.leaves(value)])
    columns = np.union1d(np.arange(0, ends[-1], ends[-1] // 3000), ends - 1)

    def one(client: PyTree) -> tuple[jax.Array, jax.Array, jax.Array]:
        row = as_vector(client).astype(jnp.float32)
        return row[columns], jnp.max(jnp.abs(row)), jnp.linalg.norm(row)

    sampled = jax.jit(lambda tree: jax.lax.map(one, tree))(tree)
    want = robust_mean_of_columns(
        *(np.asarray(x, np.float64) for x in (*sampled, weights))
    )
    got = np.asarray(as_vector(value)[columns], np.float64)
    dtype = jax.tree.leaves(value)[0].dtype
    check(what, got, want, TOLERANCES[dtype.name])


def _copy_speed() -> float:
    """Bytes read and written a second."""
    x = jnp.ones(_COPIED, jnp.float32)
    copy = jax.jit(jnp.negative).lower(x).compile()
    return 2 * x.nbytes / _median_seconds(lambda: copy(x))


def _median_seconds(run: Callable[[], Any]) -> float:
    """Median over up to 20 turns of up to ten calls.

    A turn queues its calls, so that launching one hides behind the one before.
    """
    calls = max(1, min(10, int(0.05 / seconds(run))))
    turns = []
    end = time.perf_counter() + 2.0
    while len(turns) < 3 or (len(turns) < 20 and time.perf_counter() < end):
        turns.append(seconds(lambda: [run() for _ in range(calls)]) / calls)
    return statistics.median(turns)


def _path(folder: Path | None, device: jax.Device) -> Path | None:
    """The file named after the device; none for a CPU, unless a folder is given."""
    if folder is None and device.platform == "cpu":
        return None
    name = re.sub("[^a-z0-9]+", "-", device.device_kind.lower())
    return (folder or options.RESULTS) / f"{name}-accelerator.md"


def _options() -> argparse.Namespace:
    parser = options.parser("accelerator")
    options.add_sizes(parser)
    chosen = parser.parse_args()
    is_cpu = jax.default_backend() == "cpu"
    chosen.sizes = chosen.sizes or (SMALL_SIZES if is_cpu else SIZES)
    chosen.leaves = chosen.leaves or [6, 150]
    return chosen


if __name__ == "__main__":
    main()
