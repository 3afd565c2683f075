"""Rounds in which trees of noise begin anew, and a clip that moves in these alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._types import Bound, PyTree


class Restarts(NamedTuple):
    """After round `first`, and every `period` rounds from there."""

    first: int  # at most `period`
    period: int

    def after(self, rounds: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rounds `[]` with one more, modulo the period; whether a restart is due."""
        rounds = (rounds + 1) % self.period
        return rounds, rounds == self.first % self.period


class HeldState(NamedTuple):
    """A clip in use, and the estimate that it takes on at the next restart."""

    clip: jax.Array  # []
    estimate: PyTree  # of the bound that is held
    rounds: jax.Array  # [] uint32, modulo the period of restarts


def held(bound: Bound, restarts: Restarts) -> Bound:
    """The bound with a value that stays from one restart to the next.

    It learns in every round. Noise in units of a clip cancels over rounds only while
    the clip stays.
    """

    def value_of(state: PyTree) -> jax.Array:
        return bound.value(bound.broadcast(state))

    def moved(state: HeldState, estimate: PyTree) -> HeldState:
        rounds, is_due = restarts.after(state.rounds)
        clip = jnp.where(is_due, value_of(estimate), state.clip)
        return HeldState(clip, estimate, rounds)

    def init() -> HeldState:
        state = bound.init()
        return HeldState(value_of(state), state, jnp.uint32(0))

    def update(state: HeldState, note: PyTree, key: jax.Array | None) -> HeldState:
        return moved(state, bound.update(state.estimate, note, key))

    def update_noised(state: HeldState, note: PyTree) -> HeldState:
        return moved(state, bound.update_noised(state.estimate, note))

    return Bound(
        init=init,
        broadcast=lambda state: (state.clip, bound.broadcast(state.estimate)),
        value=lambda shared: shared[0],
        note=lambda shared, x: bound.note(shared[1], x),
        update=update,
        sentence=f"held({bound})",
        sensitivity=bound.sensitivity,
        stddev=bound.stddev,
        update_noised=update_noised,
    )
