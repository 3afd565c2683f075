"""The stage of a distributed mechanism: clients clip, round and noise integers.

With differences of Poisson draws this is the Skellam mechanism, with draws in
proportion to a normal density the distributed discrete Gaussian.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._bounding.bounds import QuantileNote
from fedagg._client_noise.conditional_rounding import round_within
from fedagg._client_noise.grid import Calibration, Grid, grid_for
from fedagg._compression.rotation import rotated_length, rotation
from fedagg._mechanism import Mechanism
from fedagg._messages.marks import NoisedModulo
from fedagg._noise.integer_noise import SharesOf, draw, table_of
from fedagg._privacy.private import metrics_of
from fedagg._trees import checks, pytree
from fedagg._trees.keys import key_of_round
from fedagg._trees.template import PublicRound
from fedagg._trees.weights import is_present
from fedagg._types import Bound, Output, PyTree, Stage, Traits, Update


class DistributedState(NamedTuple):
    """State of a stage whose clients add noise."""

    rotation: PublicRound
    clip: PyTree  # of its bound
    rounds: jax.Array  # [] uint32, so far, those without a release too


class Integers(NamedTuple):
    """What a client sends, noised."""

    vector: jax.Array  # [length] int32
    count: PyTree  # [] int32, above zero if its norm was below the clip; () if fixed


def distributed_noise(
    shares: SharesOf,
    clip: Bound,
    clients_per_round: float,
    calibration: Calibration,
    mechanism: Mechanism,
    *,
    kind: str,
    seed: int,
    name: str,
) -> Stage:
    """The stage that clips, rotates, rounds, noises and wraps.

    The deviation of a client's noise is constant in steps of the grid. What moves with
    the clip is the length of a step, so that tables of the law are made once.

    Args:
        shares: the law of the noise.
        clip: fixed, or learnt from a count of clients, which is noised.
        clients_per_round: the denominator.
        calibration: what the grid follows from.
        mechanism: what the noise is to an accountant.
        kind: of the rotation.
        seed: of the rotation.
        name: what the metrics are filed under.
    """
    # Of those present, it would tell how many they are.
    planned = math.sqrt(calibration.smallest_cohort)
    rotating = rotation(kind, seed=seed, name=name)
    report = report_of(clip)

    def init(template: PyTree) -> DistributedState:
        state = DistributedState(rotating.init(template), clip.init(), jnp.uint32(0))
        grid_of(rotated_length(kind, state.rotation.template.size))
        return state

    def broadcast(state: DistributedState) -> DistributedState:
        return DistributedState(
            rotating.broadcast(state.rotation),
            clip.broadcast(state.clip),
            state.rounds,
        )

    def client(shared: DistributedState, update: Update, key: jax.Array | None):
        key = key_of_round(checks.check_key(key, name, "noise"), shared.rounds)
        rounding_key, vector_key, count_key = jax.random.split(key, 3)
        vector = rotating.client(shared.rotation, update, None)[0].value
        grid = grid_of(vector.size)
        limit, norm = clip.value(shared.clip), pytree.norm(vector)
        scaled = vector * (grid.steps / jnp.maximum(norm, limit))
        scaled = pytree.keep(norm < jnp.inf, scaled)
        whole = round_within(scaled, grid.bound, rounding_key)
        whole += _noise(shares, grid.stddev, vector_key, whole.size)
        count = ()
        if report is not None:
            below = clip.note(shared.clip, norm).below > 0.0
            count = jnp.where(below, grid.count_steps, -grid.count_steps)
            count += _noise(shares, grid.count_stddev, count_key, 1)[0]
        weight = jnp.where(is_present(update.weight), jnp.float32(1.0), 0.0)
        value = NoisedModulo.of(Integers(whole, count), calibration.bits)
        return Update(value, weight), jnp.float32(1.0)

    def server(
        state: DistributedState,
        total: NoisedModulo,
        note: jax.Array,
        key: jax.Array | None,
    ):
        vector, count = total.wrapped()
        grid, n = grid_of(vector.size), note
        is_released = (calibration.smallest_cohort <= n) & (
            n <= calibration.largest_cohort
        )
        limit = clip.value(clip.broadcast(state.clip))
        step = limit / (grid.steps * clients_per_round)
        vector = vector.astype(jnp.float32) * step
        output = rotating.server(state.rotation, vector, n, None)
        value = pytree.keep(is_released, output.value)
        learnt = ()
        if report is not None:
            below = count.astype(jnp.float32) / (2 * grid.count_steps)
            expected = None if report.count is None else jnp.float32(clients_per_round)
            learnt = QuantileNote(below, expected)
        rounds = state.rounds + 1
        learnt = clip.update(state.clip, learnt, key)
        after = DistributedState(output.state, learnt, rounds)
        state = pytree.where(is_released, after, state._replace(rounds=rounds))
        metrics = {
            **metrics_of(name, limit, planned * (grid.stddev * step), value),
            f"{name}/is_released": is_released.astype(jnp.float32),
        }
        return Output(state, value, metrics)

    def grid_of(size: int) -> Grid:
        return grid_for(calibration, size, name)

    traits = Traits(
        name,
        is_private=True,
        mechanisms=(mechanism,),
        smallest_cohort=calibration.smallest_cohort,
        largest_cohort=calibration.largest_cohort,
    )
    return Stage(init, broadcast, client, server, traits)


def report_of(clip: Bound) -> QuantileNote | None:
    """What a client reports for a learnt clip, as shapes; None if the clip is fixed.

    Raises:
        ValueError: if it is more than one bit, for which there is no noise.
    """

    def report(norm: jax.Array) -> PyTree:
        return clip.note(clip.broadcast(clip.init()), norm)

    note = jax.eval_shape(report, jax.ShapeDtypeStruct((), jnp.float32))
    if isinstance(note, QuantileNote):
        return note
    if pytree.flatten(note)[0]:
        raise ValueError(
            "clip must be a number or a quantile_bound, for which clients report one "
            f"bit each, that is noised; got {clip!r}."
        )
    return None


def _noise(shares: SharesOf, stddev: float, key: jax.Array, size: int) -> jax.Array:
    """Draws `[size]` of the law; zeros without a deviation."""
    if stddev == 0.0:
        return jnp.zeros((size,), jnp.int32)
    return draw(table_of(shares, stddev), key, size)
