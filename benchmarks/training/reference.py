"""Makes a workload, and what its rounds are held against; prints the latter as JSON.

A plain Python loop over clients and their steps gives the model after a round and the
seconds of the steps alone.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.training.models import MODELS, first_parameters, loss, variables_of
from benchmarks.training.workloads import (
    WORKLOADS,
    Parameters,
    Workload,
    save,
    save_parameters,
)

PyTree = Any


def main() -> None:
    chosen = _options()
    try:
        workload = WORKLOADS[chosen.workload](chosen.share)
    except ImportError as missing:
        print(json.dumps({"skipped": str(missing)}))
        return
    trained, frozen = first_parameters(workload)
    save(workload, chosen.folder / "workload.npz")
    save_parameters(trained, chosen.folder / "start.npz")
    save_parameters(frozen, chosen.folder / "frozen.npz")
    speed = product_speed()
    told: dict[str, Any] = {"title": workload.title, "steps": workload.steps}
    told["speed"] = speed
    told["arithmetic_seconds"] = workload.steps * _operations(workload) / speed
    told["own_seconds"] = None
    if chosen.check:
        expected, told["own_seconds"] = plain_loop(workload, trained, frozen)
        save_parameters(expected, chosen.folder / "expected.npz")
    print(json.dumps(told))


def lone_step(workload: Workload) -> jax.stages.Wrapped:
    """A client's step on a full batch, on its own: `(trained, frozen, batch, mask)`."""
    model = MODELS[workload.model]

    def step(trained: PyTree, frozen: PyTree, batch: PyTree, mask: jax.Array) -> PyTree:
        def mean_loss(trained: PyTree) -> jax.Array:
            outputs: Any = model.apply(variables_of(frozen, trained), batch[0])
            losses = jnp.where(mask, loss(outputs, batch[1]), 0.0)
            return jnp.sum(losses) / jnp.sum(mask, dtype=jnp.float32)

        gradient = jax.grad(mean_loss)(trained)
        return jax.tree.map(lambda x, g: x - workload.rate * g, trained, gradient)

    return jax.jit(step)


def plain_loop(
    workload: Workload, trained: Parameters, frozen: Parameters
) -> tuple[Parameters, float]:
    """The mean of the clients' ends in float64, and the seconds of their steps."""
    step = lone_step(workload)
    start, frozen = jax.device_put((trained, frozen))
    total = {name: np.zeros(x.shape, np.float64) for name, x in trained.items()}
    spent, is_compiled = 0.0, False
    for client in range(len(workload.clients)):
        batches = _full_batches(workload, client)
        if not is_compiled:
            jax.block_until_ready(step(start, frozen, *batches[0]))
            is_compiled = True
        begun = time.perf_counter()
        end = start
        for batch in batches * workload.epochs:
            end = step(end, frozen, *batch)
        jax.block_until_ready(end)
        spent += time.perf_counter() - begun
        for name, x in end.items():
            total[name] += np.asarray(x, np.float64)
    return {name: x / len(workload.clients) for name, x in total.items()}, spent


def product_speed() -> float:
    """Floating-point operations a second of a large product of float32 matrices."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((side, side), jnp.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    return 2 * side**3 / _median_seconds(lambda: product(x))


def _full_batches(workload: Workload, client: int) -> list[PyTree]:
    """Pairs of a batch and the mask of its examples, on the device."""
    size = workload.batch_size

    def fill(x: np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, size - len(x)), *(x.ndim - 1) * [(0, 0)]])

    batches = [
        (tuple(map(fill, batch)), np.arange(size) < len(batch[0]))
        for batch in workload.batches(client)
    ]
    return jax.device_put(batches)


def _operations(workload: Workload) -> float:
    """Floating-point operations of a step, as XLA counts them."""
    trained, frozen = first_parameters(workload)
    batch = _full_batches(workload, 0)[0]
    lowered = lone_step(workload).lower(trained, frozen, *batch)
    cost: Any = lowered.compile().cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])


def _median_seconds(run: Callable[[], Any]) -> float:
    jax.block_until_ready(run())
    turns = []
    end = time.perf_counter() + 2.0
    while len(turns) < 3 or (len(turns) < 20 and time.perf_counter() < end):
        start = time.perf_counter()
        jax.block_until_ready(run())
        turns.append(time.perf_counter() - start)
    return statistics.median(turns)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("folder", type=Path, help="to write to")
    parser.add_argument("--share", type=float, default=1.0, help="of the clients")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
