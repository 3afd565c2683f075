"""What noise is worth: from mechanisms and rounds to epsilon, and back.

`epsilon(1.0, 500, 1e-6, neighbors="add_or_remove")` is that of 500 rounds of
`gaussian_noise(1.0, ...)`; `noise_multiplier_for` is its inverse.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fedagg._trees import checks

# (order, distance) -> Rényi divergence between sums so many clips apart.
RenyiCurve = Callable[[int, float], float]
Mechanism = float | RenyiCurve

# How far, in clips, one client can move a sum.
_DISTANCES = {"add_or_remove": 1.0, "replace_one": 2.0}
_ACCOUNTANTS, _SAMPLINGS = ("pld", "rdp"), ("poisson", "fixed_size")
_ORDERS = [*range(2, 65), *range(72, 257, 8), 320, 384, 448, 512]


def epsilon(
    mechanism: Mechanism,
    rounds: int,
    delta: float,
    *,
    neighbors: str,
    participation: float = 1.0,
    sampling: str = "poisson",
    accountant: str = "pld",
) -> float:
    """The epsilon of (epsilon, delta)-differential privacy after so many rounds.

    What is protected is a client, and all that it sends, from anybody who sees every
    round's value, metrics and learnt clip. Kept secret must be the noise itself, the
    sums before it, and what stages without noise and the clients' own work report.

    | `neighbors` | tells apart cohorts in which | a sum moves by |
    | --- | --- | --- |
    | "add_or_remove" | a client takes part or does not | one clip |
    | "replace_one" | another client takes its place | two clips |

    `participation` is a client's chance to be in a round. One holds however clients are
    chosen. Less holds only for a cohort drawn anew in every round, in secret:

    | `sampling` | draws | goes with |
    | --- | --- | --- |
    | "poisson" | each client by itself | "add_or_remove", or "pld" |
    | "fixed_size" | a subset of a fixed size | "replace_one" and "rdp" |

    Args:
        mechanism: the `noise_multiplier` of `gaussian_noise`,
            `adaptive_gaussian_noise` or `dp_aggregator`, what `tree_noise_multiplier`
            returns (with one round), or a Rényi curve: a function from an order and a
            distance in clips to the Rényi divergence of one round.
        rounds: how many rounds are released.
        delta: the delta of the guarantee, in (0, 1): well below one over the number of
            clients.
        neighbors: "add_or_remove" or "replace_one".
        participation: the chance above, in (0, 1].
        sampling: "poisson" or "fixed_size".
        accountant: "pld", by privacy loss distributions, near the exact epsilon and
            never below; or "rdp", by Rényi divergences, which is quicker and larger. A
            curve is always composed as Rényi divergences.

    Raises:
        ValueError: if an argument is out of range, or the accountant does not know such
            a sampling with these neighbors.
        ImportError: if `dp-accounting` is not there.

    Reference: Mironov, "Rényi Differential Privacy", 2017, section 3; Koskela et al.,
        "Computing Tight Differential Privacy Guarantees Using FFT", 2020; for sampled
        curves Zhu and Wang, "Poisson Subsampled Rényi Differential Privacy", 2019,
        theorem 6.
    """
    checks.check_choice(tuple(_DISTANCES), neighbors=neighbors)
    checks.check_choice(_SAMPLINGS, sampling=sampling)
    checks.check_choice(_ACCOUNTANTS, accountant=accountant)
    checks.check_whole(1, rounds=_whole(rounds))
    checks.check_within("(0, 1)", delta=delta)
    checks.check_within("(0, 1]", participation=participation)
    library = _library()
    if callable(mechanism):
        if participation < 1.0 and (neighbors, sampling) != (
            "add_or_remove",
            "poisson",
        ):
            raise ValueError(
                "participation below one goes with neighbors='add_or_remove' and "
                f"sampling='poisson' for a curve, got {neighbors=} and {sampling=}."
            )
        losses = [
            rounds * _sampled(mechanism, order, _DISTANCES[neighbors], participation)
            for order in _ORDERS
        ]
        found, _ = library.rdp.compute_epsilon(np.array(_ORDERS), losses, delta)
        return float(found)
    checks.check_within("[0, inf]", mechanism=mechanism)
    if mechanism == 0.0:
        return math.inf
    made, event = _composed(
        library, mechanism, neighbors, participation, sampling, accountant
    )
    if not made.supports(event):
        raise ValueError(
            f"accountant={accountant!r} does not know {sampling=} with {neighbors=}."
        )
    return float(made.compose(event, int(rounds)).get_epsilon(delta))


def noise_multiplier_for(
    target_epsilon: float,
    rounds: int,
    delta: float,
    *,
    neighbors: str,
    participation: float = 1.0,
    sampling: str = "poisson",
    accountant: str = "pld",
    mechanism: Callable[[float], Mechanism] | None = None,
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
        sampling: as in `epsilon`.
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
            sampling=sampling,
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


def _composed(
    library: Any,
    multiplier: float,
    neighbors: str,
    participation: float,
    sampling: str,
    accountant: str,
) -> tuple[Any, Any]:
    """An accountant and one round's event.

    dp-accounting's events have noise in units of the clip. Where its accountants do not
    double the distance for `replace_one` themselves, noise is halved here.
    """
    relations = library.NeighboringRelation
    relation = relations.ADD_OR_REMOVE_ONE
    event = library.GaussianDpEvent(multiplier / _DISTANCES[neighbors])
    if participation < 1.0 and sampling == "poisson":
        if neighbors == "replace_one":
            relation = relations.REPLACE_ONE
            event = library.GaussianDpEvent(multiplier)
        event = library.PoissonSampledDpEvent(participation, event)
    elif participation < 1.0:
        if neighbors == "replace_one":
            relation = relations.REPLACE_ONE
        # The accountant reads the quotient of the two sizes only.
        event = library.SampledWithoutReplacementDpEvent(1, participation, event)
    made = (
        library.pld.PLDAccountant if accountant == "pld" else library.rdp.RdpAccountant
    )
    return made(neighboring_relation=relation), event


def _sampled(curve: RenyiCurve, order: int, distance: float, rate: float) -> float:
    """The curve's divergence where each client is in a round by chance."""
    if rate == 1.0:
        return curve(order, distance)
    terms = [
        (order - 1) * math.log1p(-rate) + math.log1p((order - 1) * rate),
        *(
            math.log(1.0 if k == 2 else 3.0)
            + math.log(math.comb(order, k))
            + (order - k) * math.log1p(-rate)
            + k * math.log(rate)
            + (k - 1) * curve(k, distance)
            for k in range(2, order + 1)
        ),
    ]
    return max(0.0, float(np.logaddexp.reduce(terms))) / (order - 1)


def _whole(rounds: float) -> float:
    """Rounds that a quotient of floats counts, as an int."""
    is_whole = isinstance(rounds, float) and rounds.is_integer()
    return int(rounds) if is_whole else rounds


def _library() -> Any:
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise ImportError(
            "epsilon needs dp-accounting: pip install 'fedagg[privacy]'."
        ) from error
    return dp_accounting
