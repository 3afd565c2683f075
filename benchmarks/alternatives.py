"""The same rounds without fedagg: by hand in JAX, and by DrJAX, Optax, JAX-Privacy.

Each is a function `(updates, weights) -> value`. Bounds are those that fedagg's
recipes start from.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any
Peer = Callable[[PyTree, jax.Array], PyTree]

_CLIP, _ZERO = 1.0, 21.0


def _optional(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


drjax = _optional("drjax")
jax_privacy_clipping = _optional("jax_privacy.clipping")


def _clip(update: PyTree) -> PyTree:
    factor = jnp.minimum(1.0, _CLIP / optax.tree.norm(update))
    return jax.tree.map(lambda x: x * factor, update)


def _zero_and_clip(update: PyTree) -> PyTree:
    kept = optax.tree.norm(update, ord=jnp.inf) <= _ZERO
    return _clip(jax.tree.map(lambda x: jnp.where(kept, x, 0.0), update))


def _sum_by_hand(updates: PyTree, weights: jax.Array) -> PyTree:
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), updates)


def _mean_by_hand(updates: PyTree, weights: jax.Array) -> PyTree:
    total = jnp.sum(weights)
    return jax.tree.map(lambda x: jnp.tensordot(weights, x, 1) / total, updates)


def _clipped_mean_by_hand(updates: PyTree, weights: jax.Array) -> PyTree:
    return _mean_by_hand(jax.vmap(_clip)(updates), jnp.ones_like(weights))


def _weighted_clipped_mean_by_hand(updates: PyTree, weights: jax.Array) -> PyTree:
    return _mean_by_hand(jax.vmap(_clip)(updates), weights)


def _robust_mean_by_hand(updates: PyTree, weights: jax.Array) -> PyTree:
    return _mean_by_hand(jax.vmap(_zero_and_clip)(updates), weights)


def _clipped_mean_folded(updates: PyTree, weights: jax.Array) -> PyTree:
    """The factors go into the weights, so that no clipped copy is written."""
    factors = jnp.minimum(1.0, _CLIP / jax.vmap(optax.tree.norm)(updates))
    return jax.tree.map(lambda x: jnp.tensordot(factors, x, 1) / len(factors), updates)


def _noised(clipped: PyTree) -> PyTree:
    """With one draw for each leaf."""
    leaves, structure = jax.tree.flatten(clipped)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noised = [
        x + jax.random.normal(k, x.shape, x.dtype)
        for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, noised)


def _gaussian_folded(updates: PyTree, weights: jax.Array) -> PyTree:
    factors = jnp.minimum(1.0, _CLIP / jax.vmap(optax.tree.norm)(updates))
    return _noised(jax.tree.map(lambda x: jnp.tensordot(factors, x, 1), updates))


def _gaussian_in_optax(updates: PyTree, weights: jax.Array) -> PyTree:
    return _noised(optax.per_example_global_norm_clip(updates, _CLIP)[0])


def _in_drjax(body: Callable[[ModuleType, PyTree, PyTree], PyTree]) -> Peer | None:
    """A DrJAX program; weights arrive as it wants them, once for every leaf."""
    module = drjax
    if module is None:
        return None

    def run(updates: PyTree, weights: jax.Array) -> PyTree:
        program = module.program(clients=len(weights))(
            lambda updates, weights: body(module, updates, weights)
        )
        return program(updates, jax.tree.map(lambda _: weights, updates))

    return run


def _clipped_mean_in_optax(updates: PyTree, weights: jax.Array) -> PyTree:
    total, _ = optax.per_example_global_norm_clip(updates, _CLIP)
    return jax.tree.map(lambda x: x / len(weights), total)


def _clipped_mean_in_jax_privacy(microbatch_size: int | None) -> Peer | None:
    module = jax_privacy_clipping
    if module is None:
        return None

    def run(updates: PyTree, weights: jax.Array) -> PyTree:
        return module.clipped_fun(
            lambda update: update,
            keep_batch_dim=False,
            l2_clip_norm=_CLIP,
            normalize_by=float(len(weights)),
            microbatch_size=microbatch_size,
            nan_safe=False,
        )(updates)

    return run


# Per aggregator, who else does the same work. None: not installed.
ALTERNATIVES: dict[str, dict[str, Peer | None]] = {
    "sum": {
        "by hand": _sum_by_hand,
        "DrJAX": _in_drjax(lambda m, x, w: m.reduce_sum(x)),
    },
    "mean": {
        "by hand": _mean_by_hand,
        "DrJAX": _in_drjax(lambda m, x, w: m.reduce_weighted_mean(x, w)),
    },
    "clipped mean": {
        "by hand": _clipped_mean_by_hand,
        "by hand, folded": _clipped_mean_folded,
        "Optax": _clipped_mean_in_optax,
        "JAX-Privacy": _clipped_mean_in_jax_privacy(None),
        "JAX-Privacy (8)": _clipped_mean_in_jax_privacy(8),
        "DrJAX": _in_drjax(lambda m, x, w: m.reduce_mean(m.map_fn(_clip, x))),
    },
    "adaptive clipped mean": {"by hand": _weighted_clipped_mean_by_hand},
    "robust": {
        "by hand": _robust_mean_by_hand,
        "DrJAX": _in_drjax(
            lambda m, x, w: m.reduce_weighted_mean(m.map_fn(_zero_and_clip, x), w)
        ),
    },
    "Gaussian noise": {
        "by hand, folded": _gaussian_folded,
        "Optax": _gaussian_in_optax,
    },
    "median": {
        "by hand": lambda x, w: jax.tree.map(lambda x: jnp.median(x, axis=0), x),
    },
}
