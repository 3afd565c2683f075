"""Noise that clients add themselves, as integers, so that no sum is without it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg import _tree
from fedagg._bounds import QuantileNote, as_bound, quantile_bound
from fedagg._chain import is_present
from fedagg._conditional_rounding import round_within
from fedagg._grid import Grid, Setting, grid
from fedagg._integer_noise import Law, draw, table_of
from fedagg._private import check_key, check_positive, metrics_of
from fedagg._residues import Wrapping
from fedagg._rotation import rotated_length, rotation
from fedagg._template import PublicRound
from fedagg._types import Bound, Output, PyTree, Stage, Update


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
    made: Setting,
    clip: Bound | float,
    clients_per_round: float,
    *,
    kind: str,
    seed: int,
    name: str,
) -> Stage:
    """The stage that clips, rotates, rounds, noises and wraps, with noise of a law.

    The deviation of a client's noise is constant in steps of the grid. What moves with
    the clip is the length of a step, so that tables of the law are made once.
    """
    turned = rotation(kind, seed=seed, name=name)
    bound = as_bound(clip)

    def init(template: PyTree) -> DistributedState:
        state = DistributedState(turned.init(template), bound.init())
        _grid_of(rotated_length(kind, state.rotation.template.size))
        return state

    def broadcast(state: DistributedState) -> DistributedState:
        rotation_of = turned.broadcast(state.rotation)
        return DistributedState(rotation_of, bound.broadcast(state.clip))

    def client(shared: DistributedState, update: Update, key: jax.Array | None):
        rounding, values, count = jax.random.split(check_key(key, name), 3)
        vector = turned.client(shared.rotation, update, None)[0].value
        on = _grid_of(vector.size)
        limit, norm = bound.value(shared.clip), _tree.norm(vector)
        scaled = vector * (on.steps / jnp.maximum(norm, limit))
        whole = round_within(_tree.keep(norm < jnp.inf, scaled), on.bound, rounding)
        whole += _noise(law, on.stddev, values, whole.size)
        below = ()
        if made.count_stddev is not None:
            below = jnp.where(norm <= limit, on.count_steps, -on.count_steps)
            below += _noise(law, on.count_stddev, count, 1)[0]
        weight = jnp.where(is_present(update.weight), jnp.float32(1.0), 0.0)
        value = Wrapping.of(Integers(whole, below), made.bits)
        return Update(value, weight), jnp.float32(1.0)

    def server(
        state: DistributedState, total: Wrapping, note: jax.Array, key: jax.Array | None
    ):
        del key
        vector, count = total.again()
        on = _grid_of(vector.size)
        limit = bound.value(bound.broadcast(state.clip))
        is_released = (note >= made.smallest) & (note <= made.largest)
        step = limit / (on.steps * clients_per_round)
        output = turned.server(
            state.rotation, vector.astype(jnp.float32) * step, note, None
        )
        value = _tree.keep(is_released, output.value)
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
        return Output(_tree.where(is_released, after, state), value, metrics)

    def _grid_of(size: int) -> Grid:
        return grid(made, size, name)

    return Stage(init, broadcast, client, server)


def _noise(law: Law, stddev: float, key: jax.Array, size: int) -> jax.Array:
    """Draws `[size]` of the law; zeros without a deviation."""
    if stddev == 0.0:
        return jnp.zeros((size,), jnp.int32)
    return draw(table_of(law, stddev), key, size)


def clip_of(
    clip: float,
    clients_per_round: float,
    target_quantile: float | None,
    learning_rate: float,
    count_stddev: float | None,
) -> Bound | float:
    """A clip that stays, or follows a quantile, whose noise is in the count already.

    Raises:
        ValueError: if an argument is out of range, or has no use.
        TypeError: if the clip is a `Bound`.
    """
    check_positive(clip=clip, clients_per_round=clients_per_round)
    if target_quantile is None:
        if count_stddev is not None:
            raise ValueError(
                "count_stddev goes with a target_quantile, for which clients are "
                f"counted; got {count_stddev=} alone."
            )
        return clip
    return quantile_bound(
        clip, target_quantile, learning_rate, expected_num_clients=clients_per_round
    )
