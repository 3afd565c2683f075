"""Noise that cancels over rounds: sums over dyadic intervals, noised in a tree."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._bounding.bounds import quantile_bound
from fedagg._messages.marks import Noised
from fedagg._privacy.binary_tree import NoiseTree, grown, planted, restarted
from fedagg._privacy.private import (
    check_multiplier,
    check_positive,
    clipped,
    metrics_of,
    noised,
    split_noise,
)
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree
from fedagg._types import Output, PyTree, Stage, Traits, Update


class AdaptiveTreeState(NamedTuple):
    """A clip in use, and the estimate that it takes on when the trees restart."""

    clip: jax.Array  # []
    estimate: jax.Array  # []
    rounds: jax.Array  # [] uint32, since the last restart was due
    values: NoiseTree
    count: NoiseTree


@prints_as_its_call
def tree_noise(
    noise_multiplier: float,
    clip: float,
    clients_per_round: float,
    *,
    restart_every: int,
    efficient: bool = True,
    name: str = "tree_noise",
) -> Stage:
    """A mean whose noise cancels from round to round, for clients who are not sampled.

    The server releases `(sum + T[t] - T[t - 1]) / clients_per_round` in round `t`,
    where values are clipped as in `gaussian_noise`, and `T[t]` is the noise of the sum
    of all rounds up to `t`: of as many nodes of a binary tree as `t` has ones, so that
    it grows with the logarithm of the rounds. A node's deviation is
    `clip * noise_multiplier`, per entry. With `efficient` a node's noise is averaged
    with that of its children, which takes a third or so off the variance.

    After `restart_every` rounds the tree is full and another begins. A client who is in
    one round of a tree is in at most `restart_every.bit_length()` of its nodes:
    `tree_noise_multiplier` has the noise multiplier to account.

    Noise stays at the server. The state holds one value like the template a level in
    float32, and must be kept as secret as the sums. Clients count once, whatever their
    weight; NaN, absent clients, the denominator, what may not stand behind, and the
    metrics are as in `gaussian_noise`. `{name}/stddev` is that of the round's own
    noise.

    Args:
        noise_multiplier: standard deviation of a node's noise, in units of `clip`.
        clip: the largest norm, over all leaves of a value together. Positive.
        clients_per_round: the denominator, a number that is known beforehand.
        restart_every: rounds in a tree. All of them, for one tree only.
        efficient: whether children improve their parents.
        name: what the metrics are filed under.

    Raises:
        ValueError: if an argument is out of range; in `server`, without a key.
        TypeError: if `clip` is a `Bound`; in `client`, for a leaf that is not of a
            float dtype.

    Reference: Kairouz et al., "Practical and Private (Deep) Learning without Sampling
        or Shuffling", 2021, section 3 and appendix B; Honaker, "Efficient Use of
        Differentially Private Binary Trees", 2015, section 3.
    """
    check_multiplier(noise_multiplier)
    check_positive(clip=clip, clients_per_round=clients_per_round)
    _check_restart(restart_every)

    def init(template: PyTree) -> NoiseTree:
        return planted(template, restart_every)

    def client(shared: PyTree, update: Update, key: jax.Array | None):
        del shared, key
        return clipped(update, jnp.float32(clip), None, name)[0], ()

    def server(state: NoiseTree, total: Noised, note: PyTree, key: jax.Array | None):
        del note
        scale = jnp.float32(clip * noise_multiplier)
        state, noise, size = grown(
            state, checks.check_key(key, name, "noise"), restart_every, efficient
        )
        value = noised(total.value, scale, noise)
        value = pytree.divide(value, jnp.float32(clients_per_round))
        metrics = metrics_of(name, clip, scale * size / clients_per_round, value)
        return Output(restarted(state, state.leaves >= restart_every), value, metrics)

    return Stage(init, lambda state: (), client, server, Traits(name, is_private=True))


@prints_as_its_call
def adaptive_tree_noise(
    noise_multiplier: float,
    clients_per_round: float,
    *,
    initial_clip: float = 0.1,
    restart_warmup: int = 128,
    restart_every: int = 1024,
    target_quantile: float = 0.5,
    learning_rate: float = 0.2,
    count_stddev: float | None = None,
    name: str = "tree_noise",
) -> Stage:
    """As `tree_noise`, with a clip that follows a quantile of the clients' norms.

    An estimate of the quantile moves in every round, as the clip of
    `adaptive_gaussian_noise` does, from a count with a noise tree of its own. The clip
    in use takes the estimate on when the trees restart: after round `restart_warmup`
    and every `restart_every` rounds from there.

    `noise_multiplier` is that of values and count together, split as in
    `adaptive_gaussian_noise`, so that a tree costs what one of `tree_noise` does with
    `restart_every` rounds. Nothing is learnt or reported without noise.

    Args:
        noise_multiplier: total noise of a node of both trees, in units of sensitivity.
        clients_per_round: both denominators, a number that is known beforehand.
        initial_clip: the first clip. Positive.
        restart_warmup: rounds before the first restart, fewer than `restart_every`.
        restart_every: rounds between restarts.
        target_quantile: fraction of clients to leave as they are, in [0, 1].
        learning_rate: how fast the estimate moves. Positive.
        count_stddev: standard deviation of a node's noise on the count of clients. None
            stands for a twentieth of `clients_per_round`.
        name: what the metrics are filed under.

    Raises:
        ValueError: if an argument is out of range, or `count_stddev` leaves too little
            noise; in `server`, without a key.
        TypeError: in `client`, for a leaf that is not of a float dtype.

    Reference: Kairouz et al., "Practical and Private (Deep) Learning without Sampling
        or Shuffling", 2021, section 3; TensorFlow Federated,
        `tff.aggregators.DifferentiallyPrivateFactory.tree_adaptive`.
    """
    check_positive(initial_clip=initial_clip, clients_per_round=clients_per_round)
    _check_restart(restart_every)
    if not 0 < restart_warmup < restart_every:
        raise ValueError(
            "restart_warmup must be positive and below restart_every, got "
            f"{restart_warmup=} and {restart_every=}."
        )
    if count_stddev is None:
        count_stddev = 0.05 * clients_per_round
    multiplier, count_stddev = split_noise(
        noise_multiplier, clients_per_round, count_stddev
    )
    bound = quantile_bound(
        initial_clip,
        target_quantile,
        learning_rate,
        expected_num_clients=clients_per_round,
    )

    def init(template: PyTree) -> AdaptiveTreeState:
        return AdaptiveTreeState(
            jnp.float32(initial_clip),
            bound.init(),
            jnp.uint32(0),
            planted(template, restart_every),
            planted(jax.ShapeDtypeStruct((), jnp.float32), restart_every),
        )

    def client(shared: PyTree, update: Update, key: jax.Array | None):
        del key
        clip, estimate = shared
        update, norm = clipped(update, clip, None, name)
        return update, Noised(bound.note(estimate, norm))

    def server(
        state: AdaptiveTreeState,
        total: Noised,
        note: Noised,
        key: jax.Array | None,
    ):
        value_key, count_key = jax.random.split(checks.check_key(key, name, "noise"))
        values, noise, size = grown(state.values, value_key, restart_every, True)
        count, below, _ = grown(state.count, count_key, restart_every, True)
        scale = state.clip * jnp.float32(multiplier)
        value = noised(total.value, scale, noise)
        value = pytree.divide(value, jnp.float32(clients_per_round))
        metrics = metrics_of(name, state.clip, scale * size / clients_per_round, value)
        below = note.value.below + jnp.float32(count_stddev) * below
        estimate = bound.update(state.estimate, note.value._replace(below=below), None)
        due = (state.rounds + 1) % restart_every == restart_warmup
        state = AdaptiveTreeState(
            jnp.where(due, estimate, state.clip),
            estimate,
            (state.rounds + 1) % restart_every,
            restarted(values, due),
            restarted(count, due),
        )
        return Output(state, value, metrics)

    return Stage(
        init,
        lambda state: (state.clip, state.estimate),
        client,
        server,
        Traits(name, is_private=True),
    )


def tree_noise_multiplier(
    noise_multiplier: float, restart_every: int, *, participations: int
) -> float:
    """The noise multiplier of the one Gaussian release that a noise tree amounts to.

    A client who is in one round of a tree moves one node on each of its levels, by one
    clip: as far, all nodes together, as the square root of their number. What is read
    off the nodes costs nothing more. So `epsilon` of this, for one round and all of
    `participations`, is the guarantee for clients who are in no tree twice.

    Args:
        noise_multiplier: that of `tree_noise` or `adaptive_tree_noise`.
        restart_every: rounds in a tree.
        participations: the most rounds that a client is in, each in another tree.

    Raises:
        ValueError: if an argument is out of range.

    Reference: Kairouz et al., "Practical and Private (Deep) Learning without Sampling
        or Shuffling", 2021, theorem 4.1 and appendix D.
    """
    check_multiplier(noise_multiplier)
    _check_restart(restart_every)
    if not participations >= 1:
        raise ValueError(f"participations must be positive, got {participations=}.")
    return noise_multiplier / math.sqrt(restart_every.bit_length() * participations)


def _check_restart(restart_every: int) -> None:
    if not (isinstance(restart_every, int) and 1 <= restart_every < 2**31):
        raise ValueError(
            f"restart_every must be a whole number of rounds, got {restart_every=}."
        )
