"""From mechanisms and rounds to epsilon, and back.

`epsilon(1.0, 500, 1e-6, neighbors="add_or_remove")` is that of 500 rounds of
`gaussian_noise(1.0, ...)`; `noise_multiplier_for` is its inverse.
"""

import math
from collections.abc import Callable

from fedagg._aggregator import Aggregator
from fedagg._mechanism import Mechanism, RenyiCurve
from fedagg._privacy.composition import (
    ACCOUNTANTS,
    NEIGHBORS,
    Run,
    library,
    sampler_of,
    spent,
)
from fedagg._privacy.samplers import Sampler
from fedagg._trees import checks
from fedagg._trees.kinds import check_function, described
from fedagg._types import Stage


def epsilon(
    mechanism: float | RenyiCurve | Mechanism,
    rounds: int,
    delta: float,
    *,
    neighbors: str,
    participation: float | Sampler = 1.0,
    accountant: str = "pld",
) -> float:
    """The epsilon of (epsilon, delta)-differential privacy after so many rounds.

    What is protected is a client, and all that it sends, from anybody who sees every
    round's value, metrics and learnt clip. Kept secret must be the noise itself, the
    key that it is drawn from, the sums before it, and what stages without noise and the
    clients' own work report. `guarantee` asks an aggregator for its mechanisms, and
    refuses what is not noised.

    | `neighbors` | tells apart cohorts in which | a sum moves by |
    | --- | --- | --- |
    | "add_or_remove" | a client takes part or does not | one clip |
    | "zero_out" | a client adds its own or nothing, to sums and counts | one clip |
    | "replace_one" | another client takes its place | two clips |

    `participation` says in which rounds a client is. One is in all, or in any that
    anybody knows of. A number below is a `poisson` chance, drawn anew in every round
    and in secret; other ways to draw are samplers, and what is not proven of a pair is
    refused:

    | | `gaussian_noise` | `banded_noise` | `tree_noise` |
    | --- | --- | --- | --- |
    | in all rounds | composed | composed | composed |
    | `poisson` | amplified | refused | refused |
    | `fixed_size`, by "rdp" | amplified | refused | refused |
    | `cyclic`, of a rate of one | composed | composed | composed |
    | `cyclic`, of a rate below | amplified | amplified | refused |
    | `separated` | composed | composed | composed |

    A sampled `banded_noise` has at most as many bands as the period has rounds. Where
    cohorts are `separated` or of a fixed size, who else is there depends on each
    client, so that "add_or_remove" is refused.

    Args:
        mechanism: the `noise_multiplier` of `gaussian_noise`,
            `adaptive_gaussian_noise` or `dp_aggregator`, or any `Mechanism`, that of a
            tree as `Mechanism.tree`; or a Rényi curve: a function from an order and a
            distance in clips to the Rényi divergence of one round.
        rounds: how many rounds are released.
        delta: the delta of the guarantee, in (0, 1): well below one over the number of
            clients.
        neighbors: "add_or_remove", "zero_out" or "replace_one".
        participation: a chance in (0, 1], or a sampler.
        accountant: "pld", by privacy loss distributions, near the exact epsilon and
            never below; or "rdp", by Rényi divergences, which is quicker and larger. A
            curve is always composed as Rényi divergences, and an epsilon of a thousand
            and more is that of noise without sampling, by concentrated privacy.

    Raises:
        ValueError: if an argument is out of range, or nothing is proven of such a
            mechanism with such a sampler and these neighbors.
        TypeError: if an argument is of another type.
        ImportError: if `dp-accounting` is not there.

    Reference: Mironov, "Rényi Differential Privacy", 2017, section 3; Koskela et al.,
        "Computing Tight Differential Privacy Guarantees Using FFT", 2020; for sampled
        curves Zhu and Wang, "Poisson Subsampled Rényi Differential Privacy", 2019,
        theorem 6; Bun and Steinke, "Concentrated Differential Privacy: Simplifications,
        Extensions, and Lower Bounds", 2016, proposition 1.3; Choquette-Choo et al.,
        "(Amplified) Banded Matrix Factorization", 2023, theorem 4.
    """
    checks.check_choice(NEIGHBORS, neighbors=neighbors)
    checks.check_choice(ACCOUNTANTS, accountant=accountant)
    checks.check_whole(1, rounds=_whole(rounds))
    checks.check_within("(0, 1)", delta=delta)
    sampler = sampler_of(participation)
    library()
    if isinstance(mechanism, Mechanism):
        if mechanism.curve is not None:
            raise ValueError(
                f"mechanism: the curve of {mechanism} depends on the template. Give "
                "its curve(template), or ask guarantee(aggregator, template, ...)."
            )
        return spent(
            Run((mechanism,), (), int(rounds), neighbors, sampler), delta, accountant
        )
    if isinstance(mechanism, Stage | Aggregator):
        raise TypeError(
            "mechanism: expected a noise multiplier, a Mechanism or a Rényi curve, got "
            f"{described(mechanism)}. Of an aggregator or a stage: guarantee("
            "aggregator, template, rounds, delta, ...)."
        )
    if callable(mechanism):
        check_function("(order, distance)", mechanism=mechanism)
        return spent(
            Run((), (mechanism,), int(rounds), neighbors, sampler), delta, accountant
        )
    checks.check_within("[0, inf]", mechanism=mechanism)
    gaussian = Mechanism.gaussian(float(mechanism))
    return spent(
        Run((gaussian,), (), int(rounds), neighbors, sampler), delta, accountant
    )


def noise_multiplier_for(
    target_epsilon: float,
    rounds: int,
    delta: float,
    *,
    neighbors: str,
    participation: float | Sampler = 1.0,
    accountant: str = "pld",
    mechanism: Callable[[float], float | RenyiCurve | Mechanism] | None = None,
) -> float:
    """The least noise multiplier whose `epsilon` is at most a target.

    To a thousandth of itself, and on the private side: with it, `epsilon` of the same
    arguments is not above the target.

    Args:
        target_epsilon: the most that `epsilon` may be. Positive.
        rounds: as in `epsilon`.
        delta: as in `epsilon`.
        neighbors: as in `epsilon`.
        participation: as in `epsilon`.
        accountant: as in `epsilon`.
        mechanism: from a noise multiplier to the mechanism that is made with it, as
            `epsilon` takes it. None stands for that of Gaussian noise in each round.

    Raises:
        ValueError: if `target_epsilon` is not positive, or no noise comes below it; and
            as `epsilon` does.
        ImportError: if `dp-accounting` is not there.

    Reference: Mironov, "Rényi Differential Privacy", 2017, section 3.
    """
    checks.check_positive(target_epsilon=target_epsilon)

    def spent(noise_multiplier: float) -> float:
        made = noise_multiplier if mechanism is None else mechanism(noise_multiplier)
        return epsilon(
            made,
            rounds,
            delta,
            neighbors=neighbors,
            participation=participation,
            accountant=accountant,
        )

    high = 1.0
    while spent(high) > target_epsilon:
        high *= 2.0
        if high > 2.0**24:
            raise ValueError(
                f"target_epsilon: no noise multiplier comes below {target_epsilon}."
            )
    low = 0.5 * high
    # An accountant is slow where there is little noise: the search begins with much.
    while spent(low) <= target_epsilon:
        low, high = 0.5 * low, low
    while high > 1.001 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= target_epsilon else (middle, high)
    return high


def _whole(rounds: float) -> float:
    """Rounds that a quotient of floats counts, as an int."""
    is_whole = isinstance(rounds, float) and rounds.is_integer()
    return int(rounds) if is_whole else rounds
