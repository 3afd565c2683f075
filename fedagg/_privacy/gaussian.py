"""The Gaussian mechanism at the server.

With a fixed clip, `gaussian_noise(1.0, 0.5, 100)`, this is DP-FedAvg; with a learnt
one, `adaptive_gaussian_noise(1.0, 100)`, it is DP-FedAvg with adaptive clipping.
"""

from fedagg._privacy.noise_source import independent_noise
from fedagg._privacy.private import check_largest_weight, learnt_clip
from fedagg._privacy.private_mean import private_mean
from fedagg._sentence import prints_as_its_call
from fedagg._types import Bound, Stage


@prints_as_its_call
def gaussian_noise(
    noise_multiplier: float,
    clip: Bound | float,
    clients_per_round: float,
    *,
    largest_weight: float | None = None,
    name: str = "gaussian_noise",
) -> Stage:
    """A mean with noise that hides whether any one client took part.

    Each client's value is scaled down to an L2 norm of at most `clip`, and the server
    releases `(sum + N(0, (clip * noise_multiplier) ** 2)) / clients_per_round`, entry
    by entry. Sum and noise are integers on a grid, of which a clip has a power of two
    of steps, and the noise is the discrete Gaussian. `guarantee` of the aggregator, or
    `epsilon` of the noise multiplier, has the epsilon of it:

    | guarantee | |
    | --- | --- |
    | protected | a client, with all that it holds, over all rounds together |
    | relation | "zero_out", "replace_one"; "add_or_remove" but for a fixed size |
    | against | all who see what comes out; not the server, which sees sums |
    | sampling | none, `poisson`, `fixed_size`, `cyclic`, `separated` |
    | outside | a key that is known; a client in two rows, or behind two clients |

    | | |
    | --- | --- |
    | a client comes or goes | moves the sum by `clip` at most, exactly |
    | another stands in for it | moves the sum by twice that |
    | the denominator is public | the number of clients present stays hidden |
    | stages before this | refused if they report or learn anything without noise |
    | stages after this | refused if they change values, as a `mean` or a rule |
    | what clients' `work` reports, their loss | does not come out: `noised_metrics` |
    | low bits of the value | there are none: all is a multiple of a step |
    | the discrete Gaussian | is a rounding of Gaussian noise of 4 steps**2 less |
    | draws | of their law to 2**-79 an entry and round, in total variation |
    | the key | secret and fresh, `secret_key()`; each round draws from one of its own |

    Integers are summed modulo `2**32`, so that no way to sum rounds. With more clients
    than twice `clients_per_round` (and than 1024) entries may wrap around, which costs
    accuracy and no privacy. What the norm in float32 may be wrong by and what rounding
    `d` entries to whole steps may add is taken off the clip beforehand: 5e-5 of a clip
    at most up to a billion entries, and `sqrt(d) / 2` steps, 5e-4 of a clip for a
    million entries and a multiplier of one.

    `guarantee` accounts for the Gaussian noise that the discrete one is a rounding of,
    to `2**-110` an entry: with `2**20` steps of noise a part in `2**39` less than was
    asked for, and nothing where a deviation has two steps or fewer. The error of draws
    adds up over entries and rounds, and comes to its delta.

    `server_view` lists what clients send. Of clients:

    | a client | counts |
    | --- | --- |
    | of any weight | once |
    | with `largest_weight` | as `min(weight, largest_weight) / largest_weight` |
    | with a NaN or an infinite norm | as zero |
    | nobody present | the value is noise |

    A learnt clip is a `Bound` whose learning is noised, a `quantile_bound` with
    `expected_num_clients` and `below_estimate_stddev`. `noise_multiplier` is then that
    of both together, as `adaptive_gaussian_noise` says.

    Reports `{name}/clip` `[]`, `{name}/stddev` `[]`, the noise's in an entry of the
    mean, `{name}/noised_norm` `[]`, the L2 norm of the noised mean, and
    `{name}/signal_to_noise` `[]`, an estimate of the norm of the mean over that of its
    noise. All follow from what is released, so that they cost no privacy.

    Args:
        noise_multiplier: standard deviation of the noise on the sum, in units of
            `clip`. Zero adds none and hides nothing.
        clip: the largest norm, over all leaves of a value together: a positive number,
            or a `Bound` that learns with noise.
        clients_per_round: the denominator, a number that is known beforehand.
        largest_weight: a public bound on weights, or None to leave weights out.
        name: what the metrics are filed under.

    Raises:
        ValueError: if an argument is out of range, a clip below 1e-10 among them, or a
            `Bound` has too little noise; in `client`, if a clip has too few steps for
            the entries; in `server`, without a key.
        TypeError: if `clip` is a `Bound` that learns without noise; in `client`, for a
            leaf that is not of a float dtype.

    Reference: McMahan et al., "Learning Differentially Private Recurrent Language
        Models", 2018, section 3; Canonne, Kamath and Steinke, "The Discrete Gaussian
        for Differential Privacy", 2020, theorem 4; Casacuberta et al., "Widespread
        Underestimation of Sensitivity in Differentially Private Libraries", 2022;
        Mironov, "On Significance of the Least Significant Bits for Differential
        Privacy", 2012.
    """
    return private_mean(
        noise_multiplier,
        clip,
        clients_per_round,
        independent_noise(),
        largest_weight=largest_weight,
        name=name,
    )


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
    guarantee is that of one `gaussian_noise(noise_multiplier, ...)`:

    | guarantee | |
    | --- | --- |
    | protected | a client, with all that it holds, over all rounds together |
    | relation | "zero_out", "replace_one"; "add_or_remove" but for a fixed size |
    | against | all who see what comes out; not the server, which sees sums |
    | sampling | none, `poisson`, `fixed_size`, `cyclic`, `separated` |
    | outside | a key that is known; a client in two rows, or behind two clients |

    With `noise_multiplier=1.0` and `clients_per_round=100`, equivalent to::

        clip = quantile_bound(
            0.1, 0.5, 0.2, below_estimate_stddev=5.0, expected_num_clients=100
        )
        gaussian_noise(1.0, clip, 100)

    Nothing here is learnt or reported without noise. The clip in use is 1e-10 or more.
    The count is on a grid of its own. Values, weights, absent clients
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
    check_largest_weight(largest_weight)
    clip = learnt_clip(
        noise_multiplier,
        clients_per_round,
        initial_clip,
        target_quantile,
        learning_rate,
        count_stddev,
    )
    return gaussian_noise(
        noise_multiplier,
        clip,
        clients_per_round,
        largest_weight=largest_weight,
        name=name,
    )
