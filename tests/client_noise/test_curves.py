"""Rényi curves of integer noise against divergences summed term by term."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import fedagg
from fedagg._client_noise.discrete_gaussian import discrete_gaussian_divergence
from fedagg._client_noise.grid import grid_for
from fedagg._client_noise.skellam import skellam_divergence

TEMPLATE = {"w": jax.ShapeDtypeStruct((1000,), jnp.float32)}
CURVES = {
    "skellam": fedagg.skellam_curve,
    "discrete_gaussian": fedagg.discrete_gaussian_curve,
}
MECHANISMS = {
    "skellam": fedagg.skellam,
    "discrete_gaussian": fedagg.discrete_gaussian,
}
every_curve = pytest.mark.parametrize("name", CURVES)
ORDERS = [2, 3, 5, 8, 16, 32, 64, 128, 256]


def skellam_logs(variance: float, most: int) -> np.ndarray:
    """Logarithms of the chances of 0, 1, ..., most, by ratios of Bessel functions."""
    ratios = np.zeros(most + 300)
    for i in range(len(ratios) - 1, 0, -1):
        ratios[i - 1] = 1.0 / (2.0 * i / variance + ratios[i])
    first = math.log(scipy.special.ive(0, variance))
    return first + np.concatenate([[0.0], np.cumsum(np.log(ratios[:most]))])


def sum_logs(stddev: float, clients: int, most: int) -> np.ndarray:
    """The same of a sum of discrete Gaussians, by convolution of logarithms."""
    k = np.arange(-most, most + 1.0)
    one = -(k**2) / (2.0 * stddev**2)
    one -= np.logaddexp.reduce(one)
    total = one
    for _ in range(clients - 1):
        # total[i + j - most] gets the sum over i and j within reach.
        padded = np.concatenate([np.full(most, -np.inf), one, np.full(most, -np.inf)])
        total = np.array(
            [
                np.logaddexp.reduce(total + padded[i : i + 2 * most + 1][::-1])
                for i in range(2 * most + 1)
            ]
        )
    return total[most:]


def divergence(order: int, logs: np.ndarray, shift: int) -> float:
    """Of a law with these logarithms, moved, from the law itself."""
    most = len(logs) - 1 - shift
    k = np.arange(-most, most + 1)
    moved, still = logs[np.abs(k - shift)], logs[np.abs(k)]
    return float(np.logaddexp.reduce(order * moved + (1 - order) * still)) / (order - 1)


@pytest.mark.parametrize("variance", [0.3, 1.0, 5.0, 40.0, 1000.0])
def test_the_skellam_divergence_is_not_below_the_exact_one_and_near(variance):
    logs = skellam_logs(variance, 60 + 300 * math.ceil(math.sqrt(variance)))

    for shift in (1, 2, 5, 10):
        for order in ORDERS:
            if order * shift > 100 * math.sqrt(variance):
                continue  # its mass is beyond the logarithms above
            exact = divergence(order, logs, shift)
            bound = skellam_divergence(order, shift, shift, variance)
            assert exact <= bound
            if variance == 1000.0 and order * shift < 32:  # a deviation
                assert bound <= 1.006 * exact


@pytest.mark.parametrize("stddev, clients", [(0.7, 2), (1.0, 2), (1.0, 5), (3.0, 4)])
def test_the_discrete_gaussian_divergence_is_not_below_the_exact_one(stddev, clients):
    logs = sum_logs(stddev, clients, 80)

    for shift in (1, 2, 4):
        for order in ORDERS:
            if order * shift > 40:
                continue
            exact = divergence(order, logs, shift)
            bound = discrete_gaussian_divergence(
                order, shift, shift, 1, stddev, clients
            )
            assert exact <= bound * (1 + 1e-12)
            if stddev == 3.0:
                assert bound <= 1.001 * exact


def test_the_terms_of_the_divergences_are_those_of_the_papers():
    # By hand: 2 * 9 / 8 + min((3 * 9 + 6 * 5) / 64, 15 / 8).
    assert skellam_divergence(2, 3.0, 5.0, 4.0) == 2.25 + 57.0 / 64.0
    assert skellam_divergence(100, 3.0, 5.0, 4.0) == 112.5 + 15.0 / 8.0
    # One client is alone in the sum, so that nothing comes on top.
    assert discrete_gaussian_divergence(3, 4.0, 4.0, 99, 2.0, 1) == 6.0
    apart = 10.0 * (math.exp(-(math.pi**2)) + math.exp(-4.0 * math.pi**2 / 3.0))
    for d, l1, expected in (
        (1, 9.0, 4.0 * 4.0 / 6.0 + apart),
        (10**6, 2.0, 4.0 * (4.0 / 3.0 + 4.0 / 3**0.5 * apart + apart**2 * 1e6) / 2),
        (100, 1e9, 4.0 * (2.0 / 3**0.5 + 10.0 * apart) ** 2 / 2.0),
    ):
        got = discrete_gaussian_divergence(4, 2.0, l1, d, 1.0, 3)
        assert math.isclose(got, expected, rel_tol=1e-9)


@every_curve
@pytest.mark.parametrize("learns", [False, True])
def test_a_curve_comes_down_to_that_of_the_gaussian_as_bits_grow(name, learns):
    z, n = 1.2, 100
    options: dict[str, Any] = {"target_quantile": 0.5} if learns else {}

    def excess(bits: int) -> float:
        curve = CURVES[name](TEMPLATE, z, n, bits=bits, **options)
        return max(curve(a, 1.0) / (a / (2.0 * z**2)) for a in (2, 8, 32)) - 1.0

    # The margin of the rounding's bound is a part in 4000 of the square.
    falling = [excess(bits) for bits in (12, 14, 16, 20)]
    assert falling == sorted(falling, reverse=True)
    assert 2e-4 < falling[-1] < 1e-3
    assert falling[0] > 0.01


@every_curve
def test_a_curve_is_made_of_what_clients_send(name):
    z, n, small = 0.8, 60, 40
    options: dict[str, Any] = {"bits": 14, "smallest_cohort": small}
    options["largest_cohort"] = 90
    curve = CURVES[name](
        TEMPLATE, z, n, **options, target_quantile=0.5, count_stddev=2.0, rotation="dft"
    )

    learnt = fedagg.quantile_bound(0.1, 0.5, 0.2)
    noise = MECHANISMS[name](z, learnt, n, **options, count_stddev=2.0, rotation="dft")
    multiplier = noise.calibration.multiplier
    grid = grid_for(noise.calibration, 1000, "test")
    assert noise.curve(TEMPLATE)(7, 2.0) == curve(7, 2.0)
    assert math.isclose(grid.stddev * math.sqrt(small) / grid.steps, multiplier)
    for order, distance in ((2, 1.0), (7, 2.0)):
        gaussian = order * distance**2 / 2.0
        values = gaussian * grid.bound**2 / (small * grid.stddev**2)
        count = gaussian * grid.count_steps**2 / (small * grid.count_stddev**2)
        got = curve(order, distance)
        assert values + count <= got <= 1.02 * (values + count)
        assert math.isclose(count, gaussian / (2.0 * 2.0) ** 2)


@every_curve
def test_epsilon_takes_a_curve_and_the_way_back_does(name):
    options: dict[str, Any] = {"neighbors": "add_or_remove", "accountant": "rdp"}

    ours = fedagg.epsilon(CURVES[name](TEMPLATE, 4.0, 100), 20, 1e-5, **options)
    theirs = fedagg.epsilon(4.0, 20, 1e-5, **options)
    silent = fedagg.epsilon(CURVES[name](TEMPLATE, 0.0, 100), 20, 1e-5, **options)
    z = fedagg.noise_multiplier_for(
        2.0,
        20,
        1e-5,
        **options,
        mechanism=lambda z: CURVES[name](TEMPLATE, z, 200, target_quantile=0.5),
    )

    assert theirs <= ours <= 1.01 * theirs
    assert silent == math.inf
    central = fedagg.noise_multiplier_for(2.0, 20, 1e-5, **options)
    assert central <= z <= 1.01 * central


@every_curve
def test_fewer_clients_than_expected_cost_noise_and_no_privacy(name):
    whole = CURVES[name](TEMPLATE, 1.0, 100, smallest_cohort=100)
    part = CURVES[name](TEMPLATE, 1.0, 100, smallest_cohort=60)

    np.testing.assert_allclose(part(8, 1.0), whole(8, 1.0), rtol=1e-3)
