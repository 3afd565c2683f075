"""Rounding within a bound, and the grid: against TFF's numbers, and by search."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from fedagg._client_noise.conditional_rounding import bound_of, round_within, squares
from fedagg._client_noise.grid import Calibration, grid_for
from fedagg._compression.rotation import rotated_length
from fedagg._noise.integer_noise import LARGEST_STDDEV
from tests.helpers import first_now, recorded_cases

CASES = recorded_cases("tff_privacy.json")
BETA = math.exp(-0.5)
MARGIN = math.sqrt(1.0 + 2.0**-12)  # for sums of squares in float32


def rounded(x: np.ndarray, bound: float, draws: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), draws)
    made = jax.jit(jax.vmap(lambda key: round_within(jnp.asarray(x), bound, key)))
    return np.asarray(made(keys)).astype(np.int64)


@pytest.mark.parametrize("row", CASES["inflated_l2_norm_bound"]["rows"], ids=str)
def test_the_bound_is_the_recorded_one(row):
    got = row["gamma"] * bound_of(row["l2"] / row["gamma"], row["beta"], row["dim"])

    np.testing.assert_allclose(got, MARGIN * row["bound"], rtol=1e-6)


@first_now("fraction", [0.5, 0.1, 0.01])
def test_rounded_vectors_are_within_the_bound_and_their_mean_is_the_vector(fraction):
    d = 4000
    x = np.full(d, 2.0 + fraction, np.float32)
    norm = float(np.linalg.norm(x.astype(np.float64)))
    bound = bound_of(norm, BETA, d)

    whole = rounded(x, bound, 200)

    assert np.linalg.norm(whole, axis=1).max() <= bound
    assert set(np.unique(whole)) == {2, 3}
    # Of all entries of all draws together; conditioning takes off a part in a thousand.
    assert abs(whole.mean() - (2.0 + fraction)) < 0.003


@pytest.mark.deep
def test_the_bound_is_not_far_from_what_is_met():
    d = 4000
    x = np.full(d, 0.5, np.float32)  # halves are the worst case
    norm = float(np.linalg.norm(x.astype(np.float64)))

    lengths = np.linalg.norm(rounded(x, 1e6, 2000), axis=1)

    inside = np.mean(lengths <= bound_of(norm, BETA, d))
    assert inside >= 1.0 - BETA
    assert np.mean(lengths <= bound_of(0.9 * norm, BETA, d)) < 0.02
    assert lengths.max() <= bound_of(norm, 0.0, d)


@pytest.mark.deep
def test_what_stays_too_long_is_rounded_towards_zero_or_dropped():
    x = np.full(100, -1.5, np.float32)  # 15.8 long, rounded

    shorter, dropped = rounded(x, 10.5, 3), rounded(x, 9.5, 3)

    assert np.all(shorter == -1)
    assert np.all(dropped == 0)
    assert np.all(rounded(np.full(5, np.nan, np.float32), 9.0, 2) == 0)


@pytest.mark.parametrize("d", [1, 7, 256, 257, 70_000, 200_001])
def test_squares_are_summed_to_a_part_in_sixteen_thousand(d):
    x = np.random.default_rng(d).integers(-(2**23), 2**23, d)

    got = float(jax.jit(squares)(jnp.asarray(x, jnp.int32)))

    exact = sum(int(i) ** 2 for i in x)
    assert abs(got - exact) <= 2.0**-14 * exact


def d_is_less(row: dict) -> bool:
    """Whether the L1 norm is bound by the number of entries."""
    return math.sqrt(row["padded_dim"]) < row["inflated_l2"] * row["scale"]


@pytest.mark.parametrize("row", CASES["ddp_parameters"]["rows"], ids=str)
def test_the_grid_is_the_recorded_one_as_far_as_it_goes(row):
    z, n, clip = (
        row[k] for k in ("noise_multiplier", "expected_clients_per_round", "l2_clip")
    )
    kind = "hadamard" if row.get("rotation_type") == "hd" else "dft"
    learnt = fedagg.quantile_bound(clip, 0.5, 0.2)
    noise = fedagg.skellam(
        z,
        learnt if row.get("auto_l2_clip", False) else clip,
        n,
        bits=row["bits"],
        beta=row.get("beta", 0.0),
    )

    grid = grid_for(noise.calibration, row["padded_dim"], "test")

    assert rotated_length(kind, row["dim"]) == row["padded_dim"]
    np.testing.assert_allclose(
        noise.calibration.multiplier, row["value_noise_mult"], rtol=1e-6
    )
    # TFF has 1e6 steps to one at most, we 1800 to the noise and 2**22 to the clip.
    uncapped = row["uncapped_scale"] * clip
    share = row["local_stddev"] / clip
    most = min(2.0**22, LARGEST_STDDEV / share if share else math.inf)
    np.testing.assert_allclose(grid.steps, min(uncapped, most), rtol=1e-6)
    np.testing.assert_allclose(grid.stddev, share * grid.steps, rtol=1e-6)
    if uncapped <= most and row["scale"] == row["uncapped_scale"]:
        inflated = row["inflated_l2"] * row["scale"]
        np.testing.assert_allclose(grid.bound, MARGIN * inflated, rtol=1e-6)
        np.testing.assert_allclose(grid.stddev, row["scaled_local_stddev"], rtol=1e-6)
        # TFF adds 1e-5 to the bound where ours has the margin, and takes whole numbers.
        theirs = row["scaled_inflated_l2"] / inflated
        theirs = row["scaled_l1"] / (theirs if d_is_less(row) else theirs**2)
        ours = grid.bound_of_sizes / (MARGIN if d_is_less(row) else MARGIN**2)
        assert theirs - 1.0 <= ours <= theirs * (1.0 + 1e-6)


def test_the_noise_is_calibrated_to_the_smallest_cohort_and_the_range_to_the_largest():
    calibration = Calibration(2.0, None, 16, 50, 100, BETA, 1e-4)
    wider = grid_for(calibration._replace(largest_cohort=200), 4096, "test")
    fewer = grid_for(calibration._replace(smallest_cohort=25), 4096, "test")
    same = grid_for(calibration, 4096, "test")

    for grid, smallest in ((wider, 50), (fewer, 25), (same, 50)):
        np.testing.assert_allclose(grid.stddev * math.sqrt(smallest), 2.0 * grid.steps)
    assert wider.steps < same.steps and fewer.steps < same.steps


def test_the_count_fits_into_the_modulus_with_its_noise():
    for bits, n in ((12, 30), (16, 100), (20, 1000), (24, 10)):
        calibration = Calibration(1.0, 0.05 * n, bits, n, n, BETA, 1e-4)
        grid = grid_for(calibration, 2**16, "test")
        reach = n * grid.count_steps + 3.89 * math.sqrt(n) * grid.count_stddev
        assert reach <= 2.0 ** (bits - 1)
        # The deviation of a sum, in counts that a client moves by one half.
        counts = math.sqrt(n) * grid.count_stddev / (2 * grid.count_steps)
        np.testing.assert_allclose(counts, 0.05 * n)


@pytest.mark.parametrize(
    "bits, clients, size, match",
    [
        (8, 1000, 1024, "8 bits are too few for sums of 1000 clients in 1024 entries"),
        (4, 2000, 1024, "a clip would have 0 steps"),
        (12, 1600, 2**30, "too few to learn a clip from 1600 clients"),
    ],
)
def test_too_few_bits_are_refused_with_the_numbers(bits, clients, size, match):
    count = 80.0 if "learn" in match else None
    calibration = Calibration(
        30.0 if count else 1.0, count, bits, clients, clients, BETA, 1e-4
    )

    with pytest.raises(ValueError, match=match):
        grid_for(calibration, size, "test")
