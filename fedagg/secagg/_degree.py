"""How many neighbours a client needs, and how many of them to open its secrets."""

import math

import numpy as np

_LARGEST_DEGREE = 4096  # tried; more is no longer a sparse graph


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

    Degrees are even, or that of the complete graph. Each bound is a union bound over
    the clients of a hypergeometric tail.

    Reference: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
        Overhead", 2020, section 3.
    """
    each = 2.0 ** -(security + 1) / clients
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, clients)))])
    sparse = range(2, min(clients - 1, _LARGEST_DEGREE + 1), 2)
    for k in [*sparse, clients - 1]:
        if _disconnected(clients, k, corrupt + dropped) > 2.0 ** -(security + 1):
            continue
        # [k + 1], the probability that at least 0, 1, ... of the neighbours are such.
        bad = _tail(log_factorial, clients - 1, min(corrupt, clients - 1), k)
        gone = _tail(log_factorial, clients - 1, min(dropped, clients - 1), k)
        most = int(np.argmax(np.append(bad, 0.0) < each))  # one more than ever are bad
        t = (k + most + 1) // 2 if semi_malicious else most
        if 1 <= t <= k and gone[k - t + 1] * clients < failure:
            return k, t
    return None


def _tail(log_factorial: np.ndarray, total: int, marked: int, draws: int) -> np.ndarray:
    """P(X >= x) for x from 0 to `draws`, X the marked ones among draws of `total`."""

    def log_choose(n: int, k: np.ndarray) -> np.ndarray:
        return log_factorial[n] - log_factorial[k] - log_factorial[n - k]

    x = np.arange(max(0, draws - (total - marked)), min(draws, marked) + 1)
    log_mass = log_choose(marked, x) + log_choose(total - marked, draws - x)
    mass = np.zeros(draws + 1)
    mass[x] = np.exp(log_mass - log_choose(total, np.array(draws)))
    return np.cumsum(mass[::-1])[::-1]


def _disconnected(clients: int, degree: int, removed: int) -> float:
    """A bound on the probability that the graph falls apart.

    On the ring, only two gaps of degree / 2 neighbours each do that. There are fewer
    than clients ** 2 / 2 pairs of them, and all of a pair's clients must be removed.
    """
    if degree == clients - 1:
        return 0.0
    if degree > removed:
        return 0.0
    ratios = [(removed - i) / (clients - i) for i in range(degree)]
    return clients**2 / 2 * math.prod(ratios)
