"""Noise that clients add themselves, as integers, so that no sum is without it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedagg._bounding.bounds import QuantileNote, as_bound, quantile_bound
from fedagg._client_noise.conditional_rounding import round_within
from fedagg._client_noise.grid import Grid, grid, setting
from fedagg._client_noise.integer_noise import Law, draw, table_of
from fedagg._compression.rotation import rotated_length, rotation
from fedagg._messages.marks import NoisedModulo
from fedagg._privacy.accounting import RenyiCurve
from fedagg._privacy.private import check_positive, metrics_of
from fedagg._trees import checks, pytree
from fedagg._trees.template import PublicRound, Template
from fedagg._trees.weights import is_present
from fedagg._types import Output, PyTree, Stage, Traits, Update


class DistributedState(NamedTuple):
    """State of a stage whose clients add noise."""

    rotation: PublicRound
    clip: PyTree  # of its bound


class Integers(NamedTuple):
    """What a client sends, noised."""

    vector: jax.Array  # [length] int32
    count: PyTree  # [] int32, above zero if its norm was below the clip; () if fixed


def distributed_noise(
    law: Law,
    noise_multiplier: float,
    clip: float,
    clients_per_round: float,
    *,
    target_quantile: float | None,
    learning_rate: float,
    kind: str,
    seed: int,
    name: str,
    **sizes: Any,
) -> Stage:
    """The stage that clips, rotates, rounds, noises and wraps, with noise of a law.

    The deviation of a client's noise is constant in steps of the grid. What moves with
    the clip is the length of a step, so that tables of the law are made once. What
    `setting` takes besides is passed on to it.
    """
    made = setting(
        noise_multiplier, clients_per_round, target_quantile=target_quantile, **sizes
    )
    check_positive(clip=clip)
    turned = rotation(kind, seed=seed, name=name)
    bound = as_bound(clip)
    if target_quantile is not None:  # whose noise is in the count already
        bound = quantile_bound(
            clip, target_quantile, learning_rate, expected_num_clients=clients_per_round
        )

    def init(template: PyTree) -> DistributedState:
        state = DistributedState(turned.init(template), bound.init())
        _grid_of(rotated_length(kind, state.rotation.template.size))
        return state

    def broadcast(state: DistributedState) -> DistributedState:
        rotation_of = turned.broadcast(state.rotation)
        return DistributedState(rotation_of, bound.broadcast(state.clip))

    def client(shared: DistributedState, update: Update, key: jax.Array | None):
        rounding, values, count = jax.random.split(
            checks.check_key(key, name, "noise"), 3
        )
        vector = turned.client(shared.rotation, update, None)[0].value
        on = _grid_of(vector.size)
        limit, norm = bound.value(shared.clip), pytree.norm(vector)
        scaled = vector * (on.steps / jnp.maximum(norm, limit))
        whole = round_within(pytree.keep(norm < jnp.inf, scaled), on.bound, rounding)
        whole += _noise(law, on.stddev, values, whole.size)
        below = ()
        if made.count_stddev is not None:
            below = jnp.where(norm <= limit, on.count_steps, -on.count_steps)
            below += _noise(law, on.count_stddev, count, 1)[0]
        weight = jnp.where(is_present(update.weight), jnp.float32(1.0), 0.0)
        value = NoisedModulo.of(Integers(whole, below), made.bits)
        return Update(value, weight), jnp.float32(1.0)

    def server(
        state: DistributedState,
        total: NoisedModulo,
        note: jax.Array,
        key: jax.Array | None,
    ):
        del key
        vector, count = total.wrapped()
        on = _grid_of(vector.size)
        limit = bound.value(bound.broadcast(state.clip))
        is_released = (note >= made.smallest) & (note <= made.largest)
        step = limit / (on.steps * clients_per_round)
        output = turned.server(
            state.rotation, vector.astype(jnp.float32) * step, note, None
        )
        value = pytree.keep(is_released, output.value)
        learnt = ()
        if made.count_stddev is not None:
            learnt = QuantileNote(
                count.astype(jnp.float32) / (2 * on.count_steps), None
            )
        after = DistributedState(output.state, bound.update(state.clip, learnt, None))
        metrics = {
            **metrics_of(name, limit, jnp.sqrt(note) * (on.stddev * step), value),
            f"{name}/is_released": is_released.astype(jnp.float32),
        }
        return Output(pytree.where(is_released, after, state), value, metrics)

    def _grid_of(size: int) -> Grid:
        return grid(made, size, name)

    return Stage(init, broadcast, client, server, Traits(name, is_private=True))


def _noise(law: Law, stddev: float, key: jax.Array, size: int) -> jax.Array:
    """Draws `[size]` of the law; zeros without a deviation."""
    if stddev == 0.0:
        return jnp.zeros((size,), jnp.int32)
    return draw(table_of(law, stddev), key, size)


def noised_curve(
    divergence: Callable[[int, float, float, int, float, int], float],
    template: PyTree,
    noise_multiplier: float,
    clients_per_round: float,
    *,
    kind: str,
    name: str,
    **sizes: Any,
) -> RenyiCurve:
    """The divergences of a stage of `distributed_noise`, from those of its law.

    Args:
        divergence: of the order, the L2 and the L1 norm of what is moved, its size, the
            deviation of one client's noise, and how many clients add it.
        template: one client's value.
        noise_multiplier: as given to the stage.
        clients_per_round: likewise.
        kind: of the rotation.
        name: of the curve, for errors.
        sizes: what `setting` takes besides.
    """
    made = setting(noise_multiplier, clients_per_round, **sizes)
    size = rotated_length(kind, Template.of(template).size)
    on, clients = grid(made, size, name), made.smallest

    def curve(order: int, distance: float) -> float:
        l2, l1 = distance * on.bound, distance * on.bound_of_sizes
        values = divergence(order, l2, l1, size, on.stddev, clients)
        if not on.count_steps:
            return values
        moved = distance * on.count_steps
        return values + divergence(order, moved, moved, 1, on.count_stddev, clients)

    return curve
