"""The cores of a CPU as devices, so that clients train side by side on them."""

import os

import jax
import numpy as np

from fedagg._trees import checks


def cpu_mesh(cores: int | None = None, axis: str = "clients") -> jax.sharding.Mesh:
    """A mesh of the CPU's cores, for `across(mesh)`.

    XLA gives all cores to one operation after the other, of which small ones use one.
    With a core for each device clients train side by side: rounds of small models are
    about as many times faster as there are cores. Call this first in a program, since
    JAX counts its devices once.

    Put what stays between rounds on all of them, by
    `jax.device_put((state, table), jax.NamedSharding(mesh, jax.P()))`.

    Args:
        cores: how many. None takes all that this process may use.
        axis: what the axis of the mesh is called.

    Raises:
        ValueError: if `cores` is not a positive integer.
        RuntimeError: if JAX has begun with fewer devices.
    """
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if _HAS_AFFINITY else os.cpu_count() or 1
    checks.check_whole(1, cores=cores)
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError:
        pass  # it has begun, perhaps with as many
    devices = jax.devices("cpu")
    if len(devices) < cores:
        raise RuntimeError(
            f"cpu_mesh: JAX has begun with {len(devices)} CPU devices, fewer than "
            f"{cores}. Call cpu_mesh before anything that makes an array."
        )
    auto = jax.sharding.AxisType.Auto
    return jax.sharding.Mesh(np.array(devices[:cores]), (axis,), axis_types=(auto,))


_HAS_AFFINITY = hasattr(os, "sched_getaffinity")
