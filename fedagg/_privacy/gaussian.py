"""The Gaussian mechanism at the server, with a fixed and with a learnt clip."""

import jax
import jax.numpy as jnp

from fedagg._bounding.bounds import quantile_bound
from fedagg._messages.marks import Noised
from fedagg._privacy.private import (
    check_largest_weight,
    check_multiplier,
    check_positive,
    clipped,
    draws_for,
    metrics_of,
    noised,
    split_noise,
)
from fedagg._sentence import prints_as_its_call
from fedagg._trees import pytree
from fedagg._trees.keys import split_key
from fedagg._types import Output, PyTree, Stage, Traits, Update


@prints_as_its_call
def gaussian_noise(
    noise_multiplier: float,
    clip: float,
    clients_per_round: float,
    *,
    largest_weight: float | None = None,
    name: str = "gaussian_noise",
) -> Stage:
    """A mean with noise that hides whether any one client took part.

    Each client's value is scaled down to an L2 norm of at most `clip`, and the server
    releases `(sum + N(0, (clip * noise_multiplier) ** 2)) / clients_per_round`, entry
    by entry. A client who comes or goes moves the sum by `clip` at most, to rounding in
    float32, and one who is replaced by another by twice that: `epsilon` makes a
    guarantee of it. The denominator is public. It does not follow the clients present,
    whose number stays hidden.

    Every client present counts once, whatever its weight. With `largest_weight` it
    counts by its share of that, `min(weight, largest_weight) / largest_weight`. A value
    with a NaN or an infinite norm counts as zero. With nobody present the value is
    noise.

    Noise is drawn in float32 or wider and cast with the mean. Its draws end near 5.4
    standard deviations and lie on a grid, which the guarantee leaves out of account;
    `skellam_noise` does not have this.

    Stages behind this that change values are refused, `mean` and rules as well. Not
    noised is what stages before it report or learn, the count of a `zeroing`, say, nor
    what clients' `work` reports, their loss: `server_view` lists the former.

    Reports `{name}/clip` `[]`, `{name}/stddev` `[]`, the noise's in an entry of the
    mean, `{name}/noised_norm` `[]`, the L2 norm of the noised mean, and
    `{name}/signal_to_noise` `[]`, an estimate of the norm of the mean over that of its
    noise. All follow from what is released, so that they cost no privacy.

    Args:
        noise_multiplier: standard deviation of the noise on the sum, in units of
            `clip`. Zero adds none and hides nothing.
        clip: the largest norm, over all leaves of a value together. Positive.
        clients_per_round: the denominator, a number that is known beforehand.
        largest_weight: a public bound on weights, or None to leave weights out.
        name: what the metrics are filed under.

    Raises:
        ValueError: if an argument is out of range; in `server`, without a key.
        TypeError: if `clip` is a `Bound`; in `client`, for a leaf that is not of a
            float dtype.

    Reference: McMahan et al., "Learning Differentially Private Recurrent Language
        Models", 2018, section 3.
    """
    check_multiplier(noise_multiplier)
    check_positive(clip=clip, clients_per_round=clients_per_round)
    check_largest_weight(largest_weight)
    stddev = clip * noise_multiplier

    def client(update: Update, key: jax.Array | None):
        del key
        update, _ = clipped(update, jnp.float32(clip), largest_weight, name)
        return update, ()

    def server(total: Noised, note: PyTree, key: jax.Array | None):
        del note
        value = noised(total.value, stddev, draws_for(total.value, key, name))
        value = pytree.divide(value, jnp.float32(clients_per_round))
        metrics = metrics_of(name, clip, stddev / clients_per_round, value)
        return value, metrics

    return Stage.stateless(client, server, Traits(name, is_private=True))


@prints_as_its_call
def adaptive_gaussian_noise(
    noise_multiplier: float,
    clients_per_round: float,
    *,
    initial_clip: float = 0.1,
    target_quantile: float = 0.5,
    learning_rate: float = 0.2,
    count_stddev: float | None = None,
    largest_weight: float | None = None,
    name: str = "gaussian_noise",
) -> Stage:
    """As `gaussian_noise`, with a clip that follows a quantile of the clients' norms.

    Each round's values are clipped, summed and noised with the same clip `C`. Then `C`
    moves to `C * exp(-learning_rate * (p - target_quantile))`, where `p` is the
    fraction of clients with a norm of at most `C`: their number, which is noised too,
    over the public `clients_per_round`, and within [0, 1].

    `noise_multiplier` is that of both together. Of it the count takes a deviation of
    `count_stddev`, with a sensitivity of one half, and values get what is left, a
    multiplier of `(noise_multiplier ** -2 - (2 * count_stddev) ** -2) ** -0.5`. The
    guarantee is that of one `gaussian_noise(noise_multiplier, ...)`.

    Nothing here is learnt or reported without noise. Values, weights, absent clients
    and metrics are as in `gaussian_noise`; `{name}/clip` is this round's. A client
    whose norm is NaN or infinite counts as above the clip. A round without clients
    reads as `p = 1/2`.

    Args:
        noise_multiplier: total noise of values and count, in units of sensitivity.
        clients_per_round: both denominators, a number that is known beforehand.
        initial_clip: the first clip. Positive.
        target_quantile: fraction of clients to leave as they are, in [0, 1].
        learning_rate: the rate above. Positive.
        count_stddev: standard deviation of the noise on the count of clients, more
            than half of `noise_multiplier`. None stands for a twentieth of
            `clients_per_round`, or for zero without noise.
        largest_weight: a public bound on weights, or None to leave weights out.
        name: what the metrics are filed under.

    Raises:
        ValueError: if an argument is out of range, or `count_stddev` leaves too little
            noise; in `server`, without a key.
        TypeError: in `client`, for a leaf that is not of a float dtype.

    Reference: Andrew et al., "Differentially Private Learning with Adaptive Clipping",
        2021, algorithm 1 and theorem 1.
    """
    check_positive(initial_clip=initial_clip, clients_per_round=clients_per_round)
    check_largest_weight(largest_weight)
    multiplier, count_stddev = split_noise(
        noise_multiplier, clients_per_round, count_stddev
    )
    bound = quantile_bound(
        initial_clip,
        target_quantile,
        learning_rate,
        below_estimate_stddev=count_stddev,
        expected_num_clients=clients_per_round,
    )

    def client(shared: PyTree, update: Update, key: jax.Array | None):
        del key
        update, norm = clipped(update, bound.value(shared), largest_weight, name)
        return update, Noised(bound.note(shared, norm))

    def server(state: PyTree, total: Noised, note: Noised, key: jax.Array | None):
        value_key, count_key = split_key(key, 2)
        clip = bound.value(bound.broadcast(state))
        draws = draws_for(total.value, value_key, name)
        value = noised(total.value, clip * multiplier, draws)
        value = pytree.divide(value, jnp.float32(clients_per_round))
        stddev = clip * (multiplier / clients_per_round)
        return Output(
            bound.update(state, note.value, count_key),
            value,
            metrics_of(name, clip, stddev, value),
        )

    return Stage(
        lambda template: bound.init(),
        bound.broadcast,
        client,
        server,
        Traits(name, is_private=True),
    )
