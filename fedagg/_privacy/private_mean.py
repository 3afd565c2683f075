"""A clip times a source of noise: the stage that all noise at the server is made by.

With a fixed clip and independent noise it is DP-FedAvg, with a learnt clip that of
Andrew et al. 2021; with the noise of a binary tree it is DP-FTRL.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._bounding.bounds import as_bound
from fedagg._messages.marks import NoisedModulo
from fedagg._noise.sum_grid import LEAST_CLIP, SumGrid
from fedagg._privacy.noise_source import NoiseSource
from fedagg._privacy.private import (
    check_clip,
    check_largest_weight,
    check_multiplier,
    check_positive,
    clipped,
    metrics_of,
    multiplier_left,
)
from fedagg._trees import checks, pytree
from fedagg._trees.keys import key_of_round
from fedagg._types import Bound, Output, PyTree, Stage, Traits, Update


class PrivateState(NamedTuple):
    """What a round leaves to the next: a clip, and noise that must be kept secret."""

    clip: PyTree  # of the bound
    values: PyTree  # of the source, for the sum of values
    notes: PyTree  # likewise, for what the clip is learnt from
    rounds: jax.Array  # [] uint32, so far


def private_mean(
    noise_multiplier: float,
    clip: Bound | float,
    clients_per_round: float,
    source: NoiseSource,
    *,
    largest_weight: float | None = None,
    name: str,
) -> Stage:
    """Clips each client, adds noise to the sum, and divides by a public number.

    A learnt clip's notes are summed and noised by a source of the same kind. Their
    deviation is the bound's, and values get what it leaves of `noise_multiplier`.

    Args:
        noise_multiplier: that of values and notes together, in units of sensitivity.
        clip: the largest norm, or a `Bound` on it whose learning is noised.
        clients_per_round: the denominator.
        source: where noise comes from.
        largest_weight: a public bound on weights, or None to leave weights out.
        name: what errors call the stage, and metrics are filed under.
    """
    check_multiplier(noise_multiplier)
    check_positive(clients_per_round=clients_per_round)
    check_largest_weight(largest_weight)
    bound = private_clip(clip, noise_multiplier)
    learns = bound.sensitivity > 0.0
    multiplier = multiplier_left(noise_multiplier, bound.stddev, bound.sensitivity)
    grid = SumGrid.of(multiplier, clients_per_round)
    note_grid = grid
    if learns:
        share = bound.stddev / bound.sensitivity
        note_grid = SumGrid.of(share, clients_per_round)
    per_step = bound.sensitivity / note_grid.steps  # of notes

    def limit_of(shared: PyTree) -> jax.Array:
        return jnp.maximum(bound.value(shared), LEAST_CLIP)

    def note_of_nobody() -> PyTree:
        shared = bound.broadcast(bound.init())
        return jax.eval_shape(lambda x: bound.note(shared, x), jnp.float32(0.0))

    grids = (grid, note_grid) if learns else (grid,)
    mechanism = source.mechanism(noise_multiplier, grids)
    if mechanism is not None and source.draw_error is not None:
        draw_error = partial(_draw_error, source.draw_error, grids, note_of_nobody)
        mechanism = mechanism._replace(draw_error=draw_error)
    declared = () if mechanism is None else (mechanism,)

    def init(template: PyTree) -> PrivateState:
        state = bound.init()
        notes = source.init(note_of_nobody()) if learns else ()
        return PrivateState(state, source.init(template), notes, jnp.uint32(0))

    def client(shared: PyTree, update: Update, key: jax.Array | None):
        del key
        spare = source.shift(pytree.count(update.value))
        update, norm = clipped(
            update, limit_of(shared), grid, largest_weight, name, spare
        )
        if not learns:
            return update, ()
        note = bound.note(shared, norm)
        return update, note_grid.integers(note, jnp.float32(1.0 / per_step))

    def server(
        state: PrivateState, total: NoisedModulo, note: PyTree, key: jax.Array | None
    ):
        key = key_of_round(checks.check_key(key, name, "noise"), state.rounds)
        value_key, note_key = jax.random.split(key) if learns else (key, key)
        limit = limit_of(bound.broadcast(state.clip))
        values, value, stddev = source.add(state.values, total, grid, value_key)
        # A step and the denominator apart: their quotient may leave the range.
        value = pytree.scale(limit / grid.steps, value)
        value = pytree.divide(value, jnp.float32(clients_per_round))
        if stddev is not None:
            stddev = stddev * (limit * float(multiplier) / clients_per_round)
        notes, noised = state.notes, note
        if learns:
            notes, noised, _ = source.add(state.notes, note, note_grid, note_key)
            noised = pytree.scale(jnp.float32(per_step), noised)
        clip = bound.update_noised(state.clip, noised)
        state = PrivateState(clip, values, notes, state.rounds + 1)
        return Output(state, value, metrics_of(name, limit, stddev, value))

    return Stage(
        init,
        lambda state: bound.broadcast(state.clip),
        client,
        server,
        Traits(name, is_private=True, mechanisms=declared),
    )


def _draw_error(
    of_entry: Callable[[SumGrid], float],
    grids: tuple[SumGrid, ...],
    note: Callable[[], PyTree],
    template: PyTree,
) -> float:
    """Of all entries of a value, and of a note where there is a grid for it."""
    noised = template, note()
    sizes = [pytree.count(x) for x in noised[: len(grids)]]
    return sum(n * of_entry(x) for n, x in zip(sizes, grids, strict=True))


def private_clip(clip: Bound | float, noise_multiplier: float) -> Bound:
    """The clip as a bound that says how it is to be noised, if it learns.

    Raises:
        TypeError: if it learns from clients without noise.
        ValueError: if it is a number out of range.
    """
    if not isinstance(clip, Bound):
        check_clip(clip=clip)
    bound = as_bound(clip)
    # A multiplier of zero hides nothing, and asks for no noise.
    is_bare = bound.sensitivity > 0.0 and bound.stddev == 0.0 < noise_multiplier
    if is_bare or not 0.0 <= bound.sensitivity < math.inf:
        raise TypeError(
            "clip must be a number: a Bound learns from the clients, and takes its "
            f"part of the noise, of which {clip} has none. quantile_bound has it with "
            "expected_num_clients=clients_per_round and below_estimate_stddev=..., "
            "and adaptive_gaussian_noise chooses both."
        )
    return bound
