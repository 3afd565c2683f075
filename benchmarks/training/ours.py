"""fedagg's rounds: `federated_averaging` with `local_training`, by a way to sum."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedagg
from benchmarks.training.models import MODELS, flat_of, loss, variables_of
from benchmarks.training.rounds import Job, Round
from benchmarks.training.workloads import Workload

PyTree = Any

CORES = "across(cpu_mesh())"


def prepare(job: Job) -> Round:
    workload = job.workload
    # Before anything makes an array, since it says how many devices there are.
    way = way_named(job.way)
    frozen = {name: jnp.asarray(x) for name, x in job.frozen.items()}
    data = client_data(workload)
    state = training_of(workload, frozen, way).init(variables_of(job.start))
    if job.way == CORES:
        everywhere = jax.NamedSharding(fedagg.cpu_mesh(), jax.P())
        # What the loss closes over stays where it is: shard_map takes it from there.
        state, data = jax.device_put((state, data), everywhere)

    @jax.jit
    def next_model(frozen: PyTree, state: PyTree, data: PyTree) -> PyTree:
        return training_of(workload, frozen, way).next(state, data).value

    @functools.cache
    def compiled() -> jax.stages.Compiled:
        return next_model.lower(frozen, state, data).compile()

    def held() -> float | None:
        memory = compiled().memory_analysis()
        return None if memory is None else memory.temp_size_in_bytes / 1e6

    return Round(
        job.way,
        lambda: jax.block_until_ready(compiled()(frozen, state, data)),
        flat_of,
        held,
    )


def training_of(workload: Workload, frozen: PyTree, way: Any) -> fedagg.Aggregator:
    """The round; frozen parameters may be traced."""
    whole = fedagg.linen_loss(MODELS[workload.model], loss)

    def loss_of_trained(variables: PyTree, batch: PyTree, key: jax.Array | None):
        return whole(variables_of(frozen, flat_of(variables)), batch, key)

    work = fedagg.local_training(
        loss_of_trained if frozen else whole,
        optax.sgd(workload.rate),
        batch_size=workload.batch_size,
        epochs=workload.epochs,
        shuffle=False,
    )
    mean = fedagg.aggregator(fedagg.mean(weighted=False), sum_over=way)
    return fedagg.federated_averaging(work, optax.sgd(1.0), mean)


def client_data(workload: Workload) -> PyTree:
    """The cohort's examples, as `next` takes them."""
    table = fedagg.ClientTable.of(workload.clients)
    return jax.tree.map(jnp.asarray, table[np.arange(len(table))])


def way_named(way: str) -> Any:
    """A way to sum: `default`, `at_once()`, `in_chunks(k)`, or on a device a core."""
    if way == "default":
        return None
    if way == "at_once()":
        return fedagg.at_once()
    if way == CORES:
        return fedagg.across(fedagg.cpu_mesh())
    chunk = re.fullmatch(r"in_chunks\((\d+)\)", way)
    if chunk is None:
        raise ValueError(
            f"expected default, at_once(), in_chunks(k) or {CORES}, got {way=}"
        )
    return fedagg.in_chunks(int(chunk[1]))
