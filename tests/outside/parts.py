"""A stage, a compressor and a rule of a user's own, by the page on the design."""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from typing_extensions import override

import fedagg

PyTree = Any


class ShrinkingNote(NamedTuple):
    kept: jax.Array  # [] entries of a client that are not zero
    present: jax.Array  # [] one


def shrinking(start: float, *, most: float) -> fedagg.Stage:
    """Moves entries towards zero by a threshold that follows how many are left.

    It grows by a tenth in a round whose clients keep more than `most` entries on
    average, and else shrinks by as much. Reports `shrinking/kept`, the average.
    """

    def init(template: PyTree) -> jax.Array:
        return jnp.asarray(start, jnp.float32)

    def broadcast(state: jax.Array) -> jax.Array:
        return state

    def client(
        shared: jax.Array, update: fedagg.Update, key: jax.Array | None
    ) -> tuple[fedagg.Update, ShrinkingNote]:
        def shrunk(x: jax.Array) -> jax.Array:
            size = jnp.maximum(jnp.abs(x) - shared.astype(x.dtype), 0)
            return jnp.sign(x) * size

        def count(x: jax.Array) -> jax.Array:
            return jnp.sum(x != 0, dtype=jnp.float32)

        value = jax.tree.map(shrunk, update.value)
        kept = jax.tree.map(count, value)
        note = ShrinkingNote(jax.tree.reduce(jnp.add, kept), jnp.float32(1.0))
        return update._replace(value=value), note

    def server(
        state: jax.Array, total: PyTree, note: ShrinkingNote, key: jax.Array | None
    ) -> fedagg.Output:
        average = note.kept / jnp.maximum(note.present, 1.0)
        moved = state * jnp.where(average > most, 1.1, 1.0 / 1.1)
        after = jnp.where(note.present > 0.0, moved, state)
        return fedagg.Output(after, total, {"shrinking/kept": average})

    return fedagg.Stage(
        init, broadcast, client, server, fedagg.Traits("shrinking", tells=True)
    )


@flax.struct.dataclass
class Half(fedagg.Payload):
    """An array with half of its bits on the wire."""

    short: jax.Array  # bfloat16

    @override
    def decode(self) -> jax.Array:
        return self.short.astype(jnp.float32)


def halving() -> fedagg.Stage:
    """Sends two bytes an entry."""

    def encode(x: jax.Array) -> Half:
        return Half(x.astype(jnp.bfloat16))

    def client(
        update: fedagg.Update, key: jax.Array | None
    ) -> tuple[fedagg.Update, tuple[()]]:
        return update._replace(value=jax.tree.map(encode, update.value)), ()

    return fedagg.Stage.stateless(client, traits=fedagg.Traits("halving", codes=True))


def nearest() -> fedagg.Rule:
    """The value of the client whose squared distances from the others are the least.

    Values are finite: put `zeroing` before this. Reports `nearest/distance`, their sum.
    """

    def combine(
        state: PyTree, updates: fedagg.Update, key: jax.Array | None
    ) -> fedagg.Output:
        present = updates.weight > 0.0

        def distances(x: jax.Array) -> jax.Array:
            x = jnp.where(present[:, None], x.reshape(len(x), -1), 0)
            apart = x[:, None, :] - x[None, :, :]
            both = present[:, None] & present[None, :]
            return jnp.where(both, jnp.sum(apart**2, axis=2), 0.0).sum(axis=1)

        far = jax.tree.reduce(jnp.add, jax.tree.map(distances, updates.value))
        chosen = jnp.argmin(jnp.where(present, far, jnp.inf))

        def row(x: jax.Array) -> jax.Array:  # zero for nobody
            return jnp.where(present[chosen], x[chosen], 0)

        value = jax.tree.map(row, updates.value)
        distance = jnp.where(present[chosen], far[chosen], 0.0)
        return fedagg.Output(state, value, {"nearest/distance": distance})

    def init(template: PyTree) -> tuple[()]:
        return ()

    return fedagg.Rule(init, combine)
