"""What one client adds to a sum before noise at the server: integers, and no more than
a clip of them, in every way to sum; and the noise that is drawn on their grid."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from fedagg._noise.sum_grid import (
    SumGrid,
    accounted,
    discrete_gaussian_draws,
    parted,
)
from fedagg._trees.measures import norm_error
from tests.helpers import first_now, mesh_of

CLIP = 0.7

WAYS = {
    "default": lambda: None,
    "at_once": fedagg.at_once,
    "one_by_one": lambda: fedagg.in_chunks(1),
    "in_chunks": lambda: fedagg.in_chunks(100),
    "across": lambda: fedagg.across(mesh_of(), inner=fedagg.in_chunks(64)),
}


def contribution(value, clip=CLIP, **options):
    """What a client adds to the sum, exactly, in units of the clip."""
    stage = fedagg.gaussian_noise(1.0, clip, 100.0, **options)
    shared = stage.broadcast(stage.init(value))
    sent = jax.jit(stage.client)(shared, fedagg.Update(value, jnp.float32(1.0)), None)
    steps = SumGrid.of(1.0, 100.0).steps
    leaves = jax.tree.leaves(sent[0].value)
    return [np.asarray(x).astype(np.float64).ravel() / steps for x in leaves]


def exact_norm(parts):
    return math.sqrt(math.fsum(float(x @ x) for x in parts))


@first_now("way", WAYS)
@first_now("clients", [2049, 8193, 32769])
def test_a_client_moves_the_sum_of_colluding_ones_by_a_clip_at_most(way, clients):
    # One coordinate of the others absorbs what a float32 sum would add to it last.
    values = np.full((clients, 2), 1.0, np.float32)
    values[-1] = [0.3, -0.9]
    absent = np.ones(clients, np.float32)
    absent[-1] = 0.0
    stage = fedagg.gaussian_noise(1.0, CLIP, float(clients))

    def integers(state, total, note, key):
        # In a dict, which is not cast to the template's floats.
        return fedagg.Output(state, {"sum": total.value}, {})

    aggregator = fedagg.aggregator(
        stage._replace(server=integers), sum_over=WAYS[way]()
    )
    run, state = jax.jit(aggregator.next), aggregator.init(values[0])

    sums = [
        run(state, values, weights).value["sum"]
        for weights in (np.ones(clients, np.float32), absent)
    ]

    assert sums[0].dtype == jnp.int32
    whole, without = (np.asarray(x).astype(np.float64) for x in sums)
    steps = SumGrid.of(1.0, clients).steps
    assert 0.999 < np.linalg.norm(whole - without) / steps <= 1.0
    # The others as often as they are, without rounding.
    share = without / (clients - 1)
    assert np.array_equal(share, np.round(share))


@first_now("way", WAYS)
def test_every_way_to_sum_releases_the_same_bits(way):
    values = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    stage = fedagg.adaptive_gaussian_noise(0.5, 300.0, initial_clip=1.0)
    rounds = [fedagg.aggregator(stage, sum_over=WAYS[x]()) for x in (way, "at_once")]

    got, expected = (
        jax.jit(x.next)(x.init(values[0]), values, None, jax.random.key(3))
        for x in rounds
    )

    for a, b in zip(*map(jax.tree.leaves, (got[:2], expected[:2])), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.thorough
def test_ten_million_entries_contribute_a_clip_at_most():
    value = jnp.full(10**7, 0.1, jnp.float32)

    norm = exact_norm(contribution(value))

    assert 0.99 < norm <= 1.0


@first_now("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@first_now("size", [1, 3, 511, 513, 100_003])
def test_the_exact_norm_of_a_contribution_is_within_the_clip(size, dtype):
    draw = np.random.default_rng(size)
    for scale in (1.0, 100.0 / size, CLIP / math.sqrt(size)):
        value = {
            "half": jnp.asarray(draw.normal(size=size) * scale, dtype),
            "whole": jnp.full(7, scale, jnp.float32),
            "number": jnp.float32(scale),
        }

        assert exact_norm(contribution(value)) <= 1.0


@first_now("clip", [1e-10, 1e-6, 1e6, 1e18])
def test_clips_of_any_size_hold(clip):
    for entry in (1e-30, 1e-22, 1e-19, 0.9 * clip, 1e3 * clip, 1e18):
        parts = contribution(jnp.full(1000, entry, jnp.float32), clip)

        assert exact_norm(parts) <= 1.0


def test_a_value_of_twice_the_clip_is_scaled_to_it_and_not_to_less():
    (part,) = contribution(jnp.array([1.2, 1.6]) * CLIP)

    np.testing.assert_allclose(part, [0.6, 0.8], rtol=3e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda clip: fedagg.gaussian_noise(1.0, clip, 10.0),
        lambda clip: fedagg.tree_noise(1.0, clip, 10.0, restart_every=4),
        lambda clip: fedagg.local_gaussian_noise(1.0, clip),
    ],
    ids=["gaussian_noise", "tree_noise", "local_gaussian_noise"],
)
def test_a_clip_whose_squares_underflow_is_refused(make):
    with pytest.raises(ValueError, match="1e-10 or more"):
        make(1e-20)


def test_a_learnt_clip_stays_above_what_squares_can_hold():
    stage = fedagg.adaptive_gaussian_noise(0.0, 10.0, initial_clip=1e-25)
    value = jnp.full(3, 1e-21, jnp.float32)  # whose squares are zero in float32

    sent, _ = stage.client(
        stage.broadcast(stage.init(value)), fedagg.Update(value, jnp.float32(1.0)), None
    )

    assert not np.any(sent.value.value)


def test_local_values_are_within_the_clip_exactly():
    stage = fedagg.local_gaussian_noise(0.0, CLIP)
    value = jnp.full(2_000_001, 0.1, jnp.float32)

    shared = stage.broadcast(stage.init(value))
    sent, _ = stage.client(
        shared, fedagg.Update(value, jnp.float32(1.0)), jax.random.key(0)
    )

    assert 0.999 * CLIP < exact_norm([np.asarray(sent.value, np.float64)]) <= CLIP


@pytest.mark.thorough
@pytest.mark.parametrize("size", [1, 512, 513, 300_000, 4_000_037])
def test_a_norm_is_as_exact_as_stated(size):
    x = np.random.default_rng(1).uniform(0.9, 1.1, size).astype(np.float32)
    exact = exact_norm([x.astype(np.float64)])

    squares = jax.jit(lambda x: fedagg._trees.measures.measure([x]).squares)(x)

    error = abs(math.sqrt(float(squares)) / exact - 1.0)
    assert error <= norm_error([size]) < 1e-4


@pytest.mark.parametrize("multiplier", [0.3, 1.0, 20.0])
@pytest.mark.deep
def test_released_sums_are_on_the_grid(multiplier):
    clip, expected = 0.5, 8.0  # powers of two, so that steps are exact in float32
    stage = fedagg.gaussian_noise(multiplier, clip, expected)
    values = np.random.default_rng(0).normal(size=(8, 4000)).astype(np.float32)
    aggregator = fedagg.aggregator(stage)

    value = jax.jit(aggregator.next)(
        aggregator.init(values[0]), values, None, jax.random.key(0)
    ).value

    grid = SumGrid.of(multiplier, expected)
    steps = np.asarray(value, np.float64) * expected * grid.steps / clip
    assert np.array_equal(steps, np.round(steps))
    assert len(np.unique(steps)) > 3000


@first_now("deviation", [0.8, 40.0, 2500.0, 1.0e6, 3.0e7])
def test_draws_have_the_moments_and_the_tails_of_the_law(deviation):
    n = 200_000
    draws = np.asarray(
        jax.jit(lambda key: discrete_gaussian_draws(deviation, key, n))(
            jax.random.key(7)
        ),
        np.float64,
    )

    # Five standard errors of the mean, the variance and the fourth moment.
    scaled = draws / deviation
    variance = variance_of(deviation) / deviation**2
    assert abs(scaled.mean()) < 5.0 / math.sqrt(n)
    assert abs(scaled.var() - variance) < 5.0 * math.sqrt(2.0 / n)
    if deviation > 10.0:
        assert abs((scaled**4).mean() - 3.0) < 5.0 * math.sqrt(96.0 / n)
        for at in (0.5, 1.0, 2.0, 3.0):
            share = math.erfc(at / math.sqrt(2.0))
            slack = 5.0 * math.sqrt(share / n) + 1.0 / deviation
            assert abs((abs(scaled) > at).mean() - share) < slack


def variance_of(deviation):
    k = np.arange(-200, 201)
    if deviation > 10.0:
        return deviation**2
    chances = np.exp(-(k**2) / (2.0 * deviation**2))
    return float((k**2 * chances).sum() / chances.sum())


@first_now("deviation", [1800.1, 2500.0, 1e5, 1.8e6, 5e7])
def test_wide_draws_are_of_the_law_to_what_is_stated(deviation):
    factor, wide, narrow = parted(deviation)

    # The largest deviation of a sum of normal densities on the integers, by Poisson.
    t = wide * narrow / deviation
    assert narrow <= 1800.0
    np.testing.assert_allclose(math.hypot(factor * wide, narrow), deviation, rtol=1e-12)
    assert 4.0 * math.exp(-2.0 * math.pi**2 * t**2) < 2.0**-85


def test_a_convolution_of_two_draws_is_the_law():
    # As `parted` makes it, in small: K = 4, a = b = 8.
    factor, a, b = 4, 8.0, 8.0
    s = math.hypot(factor * a, b)
    k = np.arange(-600, 601)
    inner, outer = (np.exp(-(k**2) / (2.0 * x**2)) for x in (b, a))
    law = np.zeros(2401)
    for i, chance in zip(k, outer / outer.sum(), strict=True):
        at = 1200 + factor * i - 600
        if 0 <= at and at + 1201 <= 2401:
            law[at : at + 1201] += chance * inner / inner.sum()
    x = np.arange(-1200, 1201)
    expected = np.exp(-(x**2) / (2.0 * s**2))

    t = a * b / s
    slack = 4.0 * math.exp(-2.0 * math.pi**2 * t**2) + 1e-9
    centre = slice(1100, 1301)
    ratio = law[centre] / (expected / expected.sum())[centre]
    assert np.max(np.abs(ratio - 1.0)) < slack


@pytest.mark.deep
def test_sums_wrap_around_alike_with_noise_or_without():
    # As many clients as no grid has room for: sums wrap, and no client moves them more.
    stage = fedagg.gaussian_noise(1.0, 1.0, 1.0)
    values = np.ones((5000, 1), np.float32)
    aggregator = fedagg.aggregator(stage)

    value = jax.jit(aggregator.next)(
        aggregator.init(values[0]), values, None, jax.random.key(0)
    ).value

    assert np.all(np.abs(value) <= 2.0**31 / SumGrid.of(1.0, 1.0).steps)


def test_too_few_steps_for_the_entries_are_refused():
    stage = fedagg.gaussian_noise(1.0, 1.0, 1e9)

    with pytest.raises(ValueError, match="too few for 1000000 entries"):
        jax.eval_shape(
            lambda x: stage.client((), fedagg.Update(x, jnp.float32(1.0)), None),
            jnp.zeros(10**6),
        )


@pytest.mark.deep
def test_a_secure_sum_of_32_bits_adds_the_integers_of_a_central_mechanism():
    values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    stage = fedagg.adaptive_gaussian_noise(0.5, 6.0, initial_clip=1.0)
    hidden = fedagg.secure_modular_sum(stage, bits=32, largest_cohort=100)
    plain, secret = fedagg.aggregator(stage), fedagg.aggregator(hidden)
    seed = jax.random.key(0)

    released = plain.next(plain.init(values[0]), values, None, seed).value
    hidden_sum = secret.next(secret.init(values[0]), values, None, seed).value

    # Keys of the server are split once more, so that noise differs, and nothing else.
    assert np.all(np.abs(released - hidden_sum) < 8.0 * 0.5 * 1.5 / 6.0)
    # Nothing is left out for what a client holds: the notes are integers as they are.
    row = {"x": values[0]}
    seen = str(fedagg.server_view(secret, row, row=row)).splitlines()
    assert any("below" in x and "modulo 2**32" in x and "yes" in x for x in seen)
    options = {"neighbors": "zero_out"}
    of_secret, of_plain = (
        fedagg.guarantee(x, row, 3, 1e-5, **options) for x in (secret, plain)
    )
    assert of_secret.epsilon == of_plain.epsilon < 100.0


def test_a_noised_count_goes_through_a_secure_sum_as_it_is():
    stage = fedagg.adaptive_gaussian_noise(0.5, 6.0, initial_clip=1.0)
    hidden = fedagg.secure_modular_sum(
        fedagg.chain(fedagg.without_guarantee(fedagg.chain()), stage),
        bits=32,
        largest_cohort=100,
    )
    note = hidden.client(
        hidden.broadcast(hidden.init(jnp.zeros(3))),
        fedagg.Update(jnp.full(3, 9.0), jnp.float32(1.0)),
        None,
    )[1]

    assert note.left_out.unsigned() == 0
    below = note.stage[1].value.below
    assert int(below.signed()) == -SumGrid.of(2.0 * 0.05 * 6.0, 6.0).steps


@pytest.mark.parametrize("s", [1.5, 3.0])
def test_a_rounded_gaussian_has_the_law_that_is_accounted(s):
    # As `accounted` rounds: a normal draw, then an integer near it, in float64.
    r = 2.0
    z = np.arange(-60, 61)
    x = np.linspace(-30.0, 30.0, 60_001)
    near = np.exp(-((z[:, None] - x) ** 2) / (2.0 * r**2))
    chances = (near / near.sum(axis=0)) @ np.exp(-(x**2) / (2.0 * s**2))
    law = np.exp(-(z**2) / (2.0 * (s**2 + r**2)))

    np.testing.assert_allclose(chances / chances.sum(), law / law.sum(), atol=1e-12)


def test_what_is_accounted_is_less_by_two_steps():
    grids = SumGrid(8.0, 20.0), SumGrid(4.0, 5.0)

    # By hand: 400 - 4 over 64 and 25 - 4 over 16, whose inverses add up.
    expected = (64.0 / 396.0 + 16.0 / 21.0) ** -0.5
    assert accounted(grids[:1]) == pytest.approx(math.sqrt(396.0) / 8.0, rel=1e-14)
    assert accounted(grids) == pytest.approx(expected, rel=1e-14)
    assert accounted((SumGrid(8.0, 2.0),)) == 0.0


def test_a_stage_declares_what_is_accounted():
    stage = fedagg.adaptive_gaussian_noise(0.7, 200.0)
    (mechanism,) = stage.traits.mechanisms

    # Of 2**20 steps, that is a part in 2**37 or so, never more than there is.
    assert 0.7 * (1.0 - 1e-9) < mechanism.noise_multiplier < 0.7
