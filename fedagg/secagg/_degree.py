"""How many neighbours a client needs, and how many of them to open its secrets."""

import math
from typing import Literal, NamedTuple, get_args

import numpy as np

Mode = Literal["semi-honest", "semi-malicious", "signed"]
_LARGEST_DEGREE = 4096  # tried; more is no longer a sparse graph


class Bounds(NamedTuple):
    """How much a cohort bears."""

    dropout: float  # the largest fraction of clients that drop out
    adversary: float  # and that collude with the server
    security: float  # bits
    failure: float  # a probability
    mode: Mode


def check_adversary(adversary: float, security: float, mode: str) -> None:
    """Raises a ValueError for bounds that would not bound anything."""
    if mode not in get_args(Mode):
        raise ValueError(f"Expected one of {get_args(Mode)}, got {mode=}.")
    if not (0 <= adversary < 1 and 0 <= security <= 1000):
        raise ValueError(
            "Expected 0 <= adversary < 1 and 0 <= security <= 1000, "
            f"got {adversary=}, {security=}."
        )


def pick(clients: int, bounds: Bounds) -> tuple[int, int, int]:
    """The least degree that meets all bounds, with its threshold and its quorum.

    Raises:
        ValueError: if there is none, or an argument is out of range.
    """
    dropout, adversary, security, failure, mode = bounds
    check_adversary(adversary, security, mode)
    if not (0 <= dropout < 1 and 0 < failure < 1):
        raise ValueError(
            f"Expected 0 <= dropout < 1 and 0 < failure < 1, got {dropout=}, "
            f"{failure=}."
        )
    corrupt, dropped = (at_most(x, clients) for x in (adversary, dropout))
    picked = pick_degree(
        clients,
        corrupt,
        dropped,
        security=security,
        failure=failure,
        semi_malicious=mode != "semi-honest",
    )
    quorum = max(2, clients - dropped)
    if picked is None or (mode == "signed" and 2 * quorum - clients <= corrupt):
        raise ValueError(
            f"Expected a cohort that bears {corrupt} corrupt and {dropped} dropped "
            f"clients in {mode!r} mode, got {clients=}: take more clients, lower "
            "the fractions, or pick a threshold yourself in Plan.complete."
        )
    return *picked, quorum


def pick_degree(
    clients: int,
    corrupt: int,
    dropped: int,
    *,
    security: float,
    failure: float,
    semi_malicious: bool,
) -> tuple[int, int] | None:
    """The least degree with a threshold that meets all bounds, and that threshold.

    None if there is none. With C the `corrupt` and D the `dropped` clients, N(i) the
    neighbours of client i, k the degree, t the threshold:

    - Privacy. |N(i) & C| < t for all i, or against those who also tell clients
      different stories |N(i) & C| < 2 t - k, so that no two groups of t clients have
      but corrupt ones in common. And what remains of the graph without C and D is
      connected. Each fails with a probability of at most 2 ** -(security + 1).
    - Correctness. |N(i) - D| >= t for all i, but for a probability of `failure`.

    Degrees are even, or that of the complete graph, and thresholds at least two. Each
    bound is a union bound over the clients of a hypergeometric tail.

    Reference: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
        Overhead", 2020, section 3.
    """
    log_factorial = _log_factorial(clients)
    sparse = range(2, min(clients - 1, _LARGEST_DEGREE + 1), 2)
    for k in [*sparse, clients - 1]:
        if not is_connected(clients, k, corrupt + dropped, security):
            continue
        gone = _tail(log_factorial, clients - 1, min(dropped, clients - 1), k)
        most = _corrupt_neighbours(log_factorial, clients, k, corrupt, security)
        t = max(2, (k + most + 1) // 2 if semi_malicious else most)
        if t <= k and gone[k - t + 1] * clients < failure:
            return k, t
    return None


def corrupt_neighbours(clients: int, degree: int, corrupt: int, security: float) -> int:
    """One more than the corrupt neighbours that any client has, almost surely.

    That is but for a probability of 2 ** -(security + 1). At least one.
    """
    tails = _log_factorial(clients)
    return _corrupt_neighbours(tails, clients, degree, corrupt, security)


def is_connected(clients: int, degree: int, removed: int, security: float) -> bool:
    """Whether the graph hangs together but for a probability of 2 ** -(security + 1).

    On the ring, only two gaps of degree / 2 neighbours each cut it. There are fewer
    than clients ** 2 / 2 pairs of them, and all of a pair's clients must be removed.
    """
    if degree == clients - 1 or degree > removed:
        return True
    ratios = [(removed - i) / (clients - i) for i in range(degree)]
    return clients**2 / 2 * math.prod(ratios) <= 2.0 ** -(security + 1)


def at_most(fraction: float, clients: int) -> int:
    """Up to how many clients a fraction is; 0.1 of 30 are 3, in spite of rounding."""
    return math.ceil(fraction * clients - 1e-9)


def _corrupt_neighbours(
    log_factorial: np.ndarray, clients: int, degree: int, corrupt: int, security: float
) -> int:
    each = 2.0 ** -(security + 1) / clients
    # [degree + 1], the probability that at least 0, 1, ... of the neighbours are such.
    bad = _tail(log_factorial, clients - 1, min(corrupt, clients - 1), degree)
    return int(np.argmax(np.append(bad, 0.0) < each))


def _log_factorial(clients: int) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, clients)))])


def _tail(log_factorial: np.ndarray, total: int, marked: int, draws: int) -> np.ndarray:
    """P(X >= x) for x from 0 to `draws`, X the marked ones among draws of `total`."""

    def log_choose(n: int, k: np.ndarray) -> np.ndarray:
        return log_factorial[n] - log_factorial[k] - log_factorial[n - k]

    x = np.arange(max(0, draws - (total - marked)), min(draws, marked) + 1)
    log_mass = log_choose(marked, x) + log_choose(total - marked, draws - x)
    mass = np.zeros(draws + 1)
    mass[x] = np.exp(log_mass - log_choose(total, np.array(draws)))
    return np.cumsum(mass[::-1])[::-1]
