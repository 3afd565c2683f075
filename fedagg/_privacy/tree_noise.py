"""Noise that cancels over rounds, for clients who are not sampled: DP-FTRL's.

With a fixed clip, `tree_noise(1.0, 0.5, 100, restart_every=256)`, this is the tree
aggregation of Kairouz et al. 2021; with a learnt one, `adaptive_tree_noise(1.0, 100)`,
that of TensorFlow Federated.
"""

from fedagg._privacy.binary_tree import binary_tree_noise
from fedagg._privacy.private import check_clip, learnt_clip
from fedagg._privacy.private_mean import private_mean
from fedagg._privacy.restarts import Restarts, held
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks
from fedagg._types import Stage


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
    of all rounds up to `t`: of as many nodes of a binary tree as `t` has ones in
    binary, so that it grows with the logarithm of the rounds. A node's deviation is
    `clip * noise_multiplier`, per entry. With `efficient` a node's noise is averaged
    with that of its children, which takes a third or so off the variance.

    After `restart_every` rounds the tree is full and another begins. A client who is in
    one round of a tree is in at most `restart_every.bit_length()` of its nodes; which
    `Mechanism.tree` accounts for, with the rounds in which clients may be.

    | guarantee | |
    | --- | --- |
    | protected | a client, with all that it holds, over all rounds together |
    | relation | "zero_out", "replace_one"; "add_or_remove" but for a fixed size |
    | against | all who see what comes out; not the server, with its sums and state |
    | sampling | none, `cyclic` of a rate of one, `separated`; no other is proven |
    | outside | a key that is known; a client in two rows, or behind two clients |

    Sums are integers, as in `gaussian_noise`, and so is the noise of every node: what
    is released is made of noised sums of nodes, and of nothing else. With `efficient` a
    node and its children are averaged in whole steps, and there is a draw for each
    node, two a round on average.

    Noise stays at the server. The state holds one value like the template a level in
    int32, and must be kept as secret as the sums; so must the key, as in
    `gaussian_noise`. Clients count once, whatever their weight; who is protected from
    whom, NaN, absent clients, the denominator, what does not go with this, and the
    metrics are as in `gaussian_noise`. `{name}/stddev` is that of the round's own
    noise.

    The clip is a number: noise in units of a clip cancels only while the clip stays.
    `adaptive_tree_noise` learns one and holds it from one tree to the next.

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
    _check_rounds(restart_every=restart_every)
    check_clip(clip=clip)
    restarts = Restarts(restart_every, restart_every)
    source = binary_tree_noise(restarts, efficient=efficient)
    return private_mean(
        noise_multiplier,
        clip,
        clients_per_round,
        source,
        name=name,
    )


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

    | guarantee | |
    | --- | --- |
    | protected | a client, with all that it holds, over all rounds together |
    | relation | "zero_out", "replace_one"; "add_or_remove" but for a fixed size |
    | against | all who see what comes out; not the server, with its sums and state |
    | sampling | none, `cyclic` of a rate of one, `separated`; no other is proven |
    | outside | a key that is known; a client in two rows, or behind two clients |

    Args:
        noise_multiplier: total noise of a node of both trees, in units of sensitivity.
        clients_per_round: both denominators, a number that is known beforehand.
        initial_clip: the first clip and estimate. Positive.
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
    _check_rounds(restart_every=restart_every)
    if not 0 < restart_warmup < restart_every:
        raise ValueError(
            "restart_warmup must be positive and below restart_every, got "
            f"{restart_warmup=} and {restart_every=}."
        )
    if count_stddev is None:
        count_stddev = 0.05 * clients_per_round
    clip = learnt_clip(
        noise_multiplier,
        clients_per_round,
        initial_clip,
        target_quantile,
        learning_rate,
        count_stddev,
    )
    restarts = Restarts(restart_warmup, restart_every)
    return private_mean(
        noise_multiplier,
        held(clip, restarts),
        clients_per_round,
        binary_tree_noise(restarts),
        name=name,
    )


def _check_rounds(**rounds: int) -> None:
    checks.check_whole(1, 2**31 - 1, **rounds)
