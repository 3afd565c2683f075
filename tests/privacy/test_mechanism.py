"""How far a client moves what is noised, against enumeration and jax-privacy."""

import itertools
import math
from typing import Any

import dp_accounting
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

import fedagg
from tests.helpers import first_now

sensitivity = pytest.importorskip("jax_privacy.matrix_factorization.sensitivity")

ROUNDS, DELTA = 16, 1e-5
# The square root of the matrix of prefix sums, by Fichtenberger et al. 2023.
ROOT = np.cumprod([1.0, *((2 * k - 1) / (2 * k) for k in range(1, ROUNDS))])


def exact(noise_multiplier: float, delta: float) -> float:
    """The epsilon of one Gaussian release, by Balle and Wang 2018, theorem 8."""
    shift, cdf = 1.0 / noise_multiplier, scipy.stats.norm.cdf

    def excess(epsilon: float) -> float:
        a, b = shift / 2 - epsilon / shift, -shift / 2 - epsilon / shift
        return float(cdf(a) - math.exp(epsilon) * cdf(b) - delta)

    root: Any = scipy.optimize.brentq(excess, 0.0, 60.0)
    return root


def toeplitz(column: np.ndarray, rounds: int) -> np.ndarray:
    matrix = np.zeros((rounds, rounds))
    for i, j in itertools.product(range(rounds), repeat=2):
        if 0 <= i - j < len(column):
            matrix[i, j] = column[i - j]
    return matrix


def nodes(rounds: int, restart_every: int) -> np.ndarray:
    """The nodes of binary trees that are ever full, and the rounds below them."""
    rows = []
    for start in range(0, rounds, restart_every):
        end, size = min(start + restart_every, rounds), 1
        while size <= end - start:
            for first in range(start, end - size + 1, size):
                rows.append([first <= t < first + size for t in range(rounds)])
            size *= 2
    return np.array(rows, np.float64)


def patterns(rounds: int, separation: int, most: int):
    for count in range(1, most + 1):
        for chosen in itertools.combinations(range(rounds), count):
            if all(
                b - a >= separation for a, b in zip(chosen, chosen[1:], strict=False)
            ):
                yield list(chosen)


def enumerated(matrix: np.ndarray, separation: int, most: int) -> float:
    """The exact sensitivity of a matrix without negative products of columns."""
    return max(
        float(np.linalg.norm(matrix[:, chosen].sum(axis=1)))
        for chosen in patterns(matrix.shape[1], separation, most)
    )


@pytest.mark.parametrize("separation, most", [(1, 1), (1, 3), (3, 2), (4, 4), (16, 1)])
def test_a_tree_is_moved_by_no_more_than_is_said(separation, most):
    for rounds, restart_every in ((16, 16), (13, 16), (16, 4), (11, 3)):
        mechanism = fedagg.Mechanism.tree(1.0, restart_every)
        times = min(most, -(-rounds // separation))

        got = mechanism.sensitivity(rounds, separation, times)

        expected = enumerated(nodes(rounds, restart_every), separation, times)
        assert expected * (1.0 - 1e-12) <= got <= 1.6 * expected
        if separation >= restart_every or times == 1:
            np.testing.assert_allclose(got, expected, rtol=1e-12)


@first_now("separation, most", [(1, 1), (2, 3), (4, 4), (5, 2)], quick=3)
@first_now("bands", [1, 4, 16])
def test_a_matrix_is_moved_by_no_more_than_is_said(separation, most, bands):
    column = ROOT[:bands] / np.linalg.norm(ROOT[:bands])
    mechanism = fedagg.Mechanism.matrix(1.0, column)

    got = mechanism.sensitivity(12, separation, most)

    matrix = toeplitz(column, 12)
    expected = enumerated(matrix, separation, min(most, -(-12 // separation)))
    assert expected * (1.0 - 1e-12) <= got <= 1.1 * expected
    if bands <= separation or most == 1:
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    theirs = sensitivity.get_min_sep_sensitivity_upper_bound(matrix, separation, most)
    np.testing.assert_allclose(got, theirs, rtol=1e-5)
    assert fedagg.Mechanism.matrix(1.0, matrix).bands == min(bands, 12)
    whole = fedagg.Mechanism.matrix(1.0, matrix).sensitivity(12, separation, most)
    np.testing.assert_allclose(whole, got, rtol=1e-12)


@first_now(
    "sampler, expected",
    [(fedagg.separated(16, size=1), 2.90), (fedagg.separated(4, size=1), 9.13)],
    ids=["once", "four_times"],
)
def test_the_sensitivity_of_a_matrix_is_its_own_and_not_left_to_users(
    sampler, expected
):
    mechanism = fedagg.Mechanism.matrix(2.0, ROOT)

    got = fedagg.epsilon(
        mechanism, ROUNDS, DELTA, neighbors="zero_out", participation=sampler
    )

    assert abs(got - expected) < 0.005
    bare = fedagg.epsilon(2.0, 1, DELTA, neighbors="zero_out")
    assert abs(bare - 1.99) < 0.005
    moved = sensitivity.get_min_sep_sensitivity_upper_bound(
        toeplitz(ROOT, ROUNDS), sampler.separation
    )
    np.testing.assert_allclose(got, exact(2.0 / moved, DELTA), rtol=1e-3)


@pytest.mark.parametrize("restart_every", [1, 8, 100])
def test_a_tree_costs_what_dp_accounting_says(restart_every):
    mechanism = fedagg.Mechanism.tree(4.0, restart_every)
    sampler = fedagg.separated(restart_every, size=1)

    got = fedagg.epsilon(
        mechanism,
        3 * restart_every,
        DELTA,
        neighbors="zero_out",
        participation=sampler,
        accountant="rdp",
    )

    relation = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    accountant = dp_accounting.rdp.RdpAccountant(neighboring_relation=relation)
    tree = dp_accounting.SingleEpochTreeAggregationDpEvent(4.0, restart_every)
    theirs = accountant.compose(tree, 3).get_epsilon(DELTA)
    assert math.isclose(got, theirs, rel_tol=1e-6)


def test_a_tree_is_not_amplified_by_sampling():
    mechanism = fedagg.Mechanism.tree(5.0, 128)

    for sampler in (0.01, fedagg.poisson(0.01), fedagg.cyclic(128, 0.5)):
        with pytest.raises(ValueError, match="nothing is proven of both together"):
            fedagg.epsilon(
                mechanism, 1000, DELTA, neighbors="zero_out", participation=sampler
            )


def test_a_matrix_says_nothing_of_rounds_it_does_not_have():
    mechanism = fedagg.Mechanism.matrix(1.0, np.eye(4))

    with pytest.raises(ValueError, match="a matrix of 4 rounds, which says nothing"):
        mechanism.sensitivity(5, 1, 1)


@pytest.mark.parametrize("strategy", [np.ones((2, 2)), np.ones((2, 2, 2)), 1.0])
def test_a_matrix_is_lower_triangular(strategy):
    with pytest.raises(ValueError, match="strategy must be lower triangular"):
        fedagg.Mechanism.matrix(1.0, strategy)


MAKE = {
    "gaussian": fedagg.Mechanism.gaussian,
    "tree": lambda z: fedagg.Mechanism.tree(z, 8),
    "matrix": lambda z: fedagg.Mechanism.matrix(z, [1.0]),
}


@pytest.mark.parametrize("name", MAKE)
def test_a_noise_multiplier_is_a_number_and_not_negative(name):
    with pytest.raises(TypeError, match="noise_multiplier must be a number"):
        MAKE[name](True)
    for z in (-1.0, math.nan):
        with pytest.raises(ValueError, match="noise_multiplier must not be negative"):
            MAKE[name](z)
    free = MAKE[name](math.inf)
    assert fedagg.epsilon(free, 10, DELTA, neighbors="zero_out") == 0.0


@pytest.mark.parametrize("restart_every", [0, -1, True])
def test_a_tree_has_rounds(restart_every):
    with pytest.raises(ValueError, match="restart_every must be one round or more"):
        fedagg.Mechanism.tree(1.0, restart_every)


def test_the_way_back_goes_through_a_typed_mechanism():
    options: dict[str, Any] = {"neighbors": "zero_out", "accountant": "rdp"}
    options |= {"participation": fedagg.separated(8, size=1)}

    z = fedagg.noise_multiplier_for(
        2.0, 24, DELTA, **options, mechanism=lambda z: fedagg.Mechanism.tree(z, 8)
    )

    plain = fedagg.noise_multiplier_for(
        2.0, 1, DELTA, neighbors="zero_out", accountant="rdp"
    )
    np.testing.assert_allclose(z, math.sqrt(3 * 4) * plain, rtol=2e-3)
