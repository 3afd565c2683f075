"""Epsilon against published and exact values, and the way back."""

import builtins
import math
from typing import Any

import dp_accounting
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

import fedagg

SAMPLED: dict[str, Any] = {"neighbors": "add_or_remove", "participation": 0.01}


def exact(noise_multiplier: float, delta: float, distance: float = 1.0) -> float:
    """The epsilon of one Gaussian release, by Balle and Wang 2018, theorem 8."""
    shift = distance / noise_multiplier
    cdf = scipy.stats.norm.cdf

    def excess(epsilon: float) -> float:
        a, b = shift / 2 - epsilon / shift, -shift / 2 - epsilon / shift
        return float(cdf(a) - math.exp(epsilon) * cdf(b) - delta)

    root: Any = scipy.optimize.brentq(excess, 0.0, 100.0)
    return root


def gaussian_curve(noise_multiplier: float):
    return lambda order, distance: order * distance**2 / (2.0 * noise_multiplier**2)


@pytest.mark.parametrize("accountant, published", [("rdp", 2.1014), ("pld", 1.8282)])
def test_a_published_epsilon_is_met(accountant, published):
    got = fedagg.epsilon(1.0, 1000, 1e-5, **SAMPLED, accountant=accountant)

    assert abs(got - published) < 1e-4


@pytest.mark.parametrize(
    "neighbors, distance", [("add_or_remove", 1), ("replace_one", 2)]
)
@pytest.mark.parametrize("accountant, slack", [("pld", 1e-3), ("rdp", 0.25)])
def test_rounds_of_the_gaussian_mechanism_are_one_with_less_noise(
    neighbors, distance, accountant, slack
):
    got = fedagg.epsilon(20.0, 100, 1e-5, neighbors=neighbors, accountant=accountant)

    expected = exact(2.0, 1e-5, distance)
    assert expected <= got <= (1.0 + slack) * expected


@pytest.mark.deep
def test_replacing_a_client_is_twice_as_far_as_adding_one():
    for accountant in ("pld", "rdp"):
        options: dict[str, Any] = {"accountant": accountant}
        replaced = fedagg.epsilon(4.0, 10, 1e-5, neighbors="replace_one", **options)
        added = fedagg.epsilon(2.0, 10, 1e-5, neighbors="add_or_remove", **options)
        assert replaced == added


@pytest.mark.deep
def test_a_sampled_client_that_is_replaced_costs_more_than_one_that_is_added():
    costs = [
        fedagg.epsilon(1.0, 100, 1e-5, neighbors=x, participation=0.05)
        for x in ("add_or_remove", "replace_one")
    ]

    assert 1.3 * costs[0] < costs[1] < 3.0 * costs[0]


def test_a_fixed_size_of_cohorts_is_accounted_with_a_distance_of_two_clips():
    options: dict[str, Any] = {"neighbors": "replace_one", "accountant": "rdp"}

    sampler = fedagg.fixed_size(100, 1000)
    got = fedagg.epsilon(4.0, 10, 1e-5, participation=sampler, **options)

    inner = dp_accounting.GaussianDpEvent(2.0)
    event = dp_accounting.SampledWithoutReplacementDpEvent(1000, 100, inner)
    relation = dp_accounting.NeighboringRelation.REPLACE_ONE
    theirs = dp_accounting.rdp.RdpAccountant(neighboring_relation=relation)
    assert math.isclose(got, theirs.compose(event, 10).get_epsilon(1e-5), rel_tol=1e-9)
    assert got < fedagg.epsilon(4.0, 10, 1e-5, **options)


def test_values_and_clip_together_cost_what_the_total_multiplier_does():
    z, s = 1.0, 5.0
    both = dp_accounting.ComposedDpEvent(
        [
            dp_accounting.GaussianDpEvent((z**-2 - (2.0 * s) ** -2) ** -0.5),
            dp_accounting.GaussianDpEvent(2.0 * s),
        ]
    )
    event = dp_accounting.PoissonSampledDpEvent(0.01, both)

    theirs = dp_accounting.rdp.RdpAccountant().compose(event, 1000).get_epsilon(1e-5)

    ours = fedagg.epsilon(z, 1000, 1e-5, **SAMPLED, accountant="rdp")
    assert math.isclose(ours, theirs, rel_tol=1e-9)


def test_a_curve_of_the_gaussian_mechanism_costs_what_the_mechanism_does():
    options: dict[str, Any] = {"accountant": "rdp"}
    for neighbors in ("add_or_remove", "replace_one"):
        ours = fedagg.epsilon(gaussian_curve(3.0), 10, 1e-5, neighbors=neighbors)
        theirs = fedagg.epsilon(3.0, 10, 1e-5, neighbors=neighbors, **options)
        assert theirs <= ours * (1 + 1e-9) and ours <= 1.02 * theirs


def test_sampling_a_curve_is_bounded_from_above_and_saves_much():
    sampled = fedagg.epsilon(gaussian_curve(1.0), 1000, 1e-5, **SAMPLED)
    whole = fedagg.epsilon(gaussian_curve(1.0), 1000, 1e-5, neighbors="add_or_remove")

    tight = fedagg.epsilon(1.0, 1000, 1e-5, **SAMPLED, accountant="rdp")
    assert tight <= sampled <= 1.5 * tight
    assert sampled < 0.01 * whole


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize("target", [0.5, 8.0])
@pytest.mark.deep
def test_the_way_back_is_on_the_private_side_and_near(accountant, target):
    options: dict[str, Any] = {"neighbors": "replace_one", "accountant": accountant}

    z = fedagg.noise_multiplier_for(target, 50, 1e-6, **options)

    assert fedagg.epsilon(z, 50, 1e-6, **options) <= target
    assert fedagg.epsilon(z / 1.002, 50, 1e-6, **options) > target


@pytest.mark.deep
def test_the_way_back_goes_through_any_mechanism():
    tree = fedagg.noise_multiplier_for(
        2.0, 1, 1e-5, neighbors="add_or_remove", mechanism=lambda z: z / 3.0
    )
    plain = fedagg.noise_multiplier_for(2.0, 1, 1e-5, neighbors="add_or_remove")

    np.testing.assert_allclose(tree, 3.0 * plain, rtol=2e-3)


def test_no_noise_hides_nothing():
    assert fedagg.epsilon(0.0, 1, 1e-5, neighbors="add_or_remove") == math.inf


@pytest.mark.parametrize(
    "change, match",
    [
        ({"mechanism": -1.0}, "mechanism must be"),
        ({"mechanism": math.nan}, "mechanism must be"),
        ({"rounds": 0}, "rounds must be"),
        ({"rounds": 1.5}, "rounds must be"),
        ({"delta": 0.0}, "delta must be"),
        ({"delta": 1.0}, "delta must be"),
        ({"neighbors": "add"}, "must be one of add_or_remove, zero_out, replace_one"),
        ({"participation": 0.0}, "participation must be"),
        ({"participation": 1.1}, "participation must be"),
        ({"accountant": "zcdp"}, "accountant must be one of pld, rdp"),
    ],
)
def test_arguments_out_of_range_are_refused(change, match):
    arguments: dict[str, Any] = {"mechanism": 1.0, "rounds": 1, "delta": 1e-5}
    arguments |= {"neighbors": "add_or_remove"}

    with pytest.raises(ValueError, match=match):
        fedagg.epsilon(**(arguments | change))


def test_a_bool_is_no_noise_multiplier():
    with pytest.raises(TypeError, match="mechanism must be a number, got .*=True"):
        fedagg.epsilon(True, 1, 1e-5, neighbors="add_or_remove")


@pytest.mark.parametrize(
    "sampler, neighbors, accountant, match",
    [
        (fedagg.fixed_size(1, 10), "add_or_remove", "rdp", "Take neighbors='zero_out'"),
        (fedagg.fixed_size(1, 10), "zero_out", "pld", "does not know fixed_size"),
        (fedagg.fixed_size(1, 10), "replace_one", "pld", "does not know fixed_size"),
        (fedagg.poisson(0.1), "replace_one", "rdp", "does not know poisson"),
        (fedagg.separated(2, size=3), "add_or_remove", "pld", "depends on whether"),
    ],
)
def test_what_no_accountant_knows_is_refused(sampler, neighbors, accountant, match):
    options: dict[str, Any] = {"neighbors": neighbors, "accountant": accountant}

    with pytest.raises(ValueError, match=match):
        fedagg.epsilon(1.0, 1, 1e-5, participation=sampler, **options)


@pytest.mark.parametrize("sampler", [fedagg.fixed_size(1, 10), fedagg.poisson(0.1)])
def test_a_curve_of_a_sampled_round_goes_with_no_other_client_in_its_place(sampler):
    options: dict[str, Any] = {"neighbors": "replace_one", "participation": sampler}

    with pytest.raises(ValueError, match="a curve of a sampled round"):
        fedagg.epsilon(gaussian_curve(1.0), 1, 1e-5, **options)


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_infinite_noise_costs_nothing(rate):
    for neighbors in ("add_or_remove", "zero_out", "replace_one"):
        options: dict[str, Any] = {"neighbors": neighbors, "participation": rate}
        assert fedagg.epsilon(math.inf, 100, 1e-5, **options) == 0.0


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_a_target_that_is_no_epsilon_is_refused(target):
    with pytest.raises(ValueError, match="target_epsilon must be positive"):
        fedagg.noise_multiplier_for(target, 1, 1e-5, neighbors="add_or_remove")


def test_a_target_out_of_reach_is_refused():
    options: dict[str, Any] = {"neighbors": "add_or_remove", "accountant": "rdp"}

    with pytest.raises(ValueError, match="no noise multiplier comes below"):
        fedagg.noise_multiplier_for(1.0, 1, 1e-5, **options, mechanism=lambda z: 0.1)


def test_what_is_missing_is_named(monkeypatch):
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("dp_accounting"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)

    with pytest.raises(ImportError, match=r"pip install 'fedagg\[privacy\]'"):
        fedagg.epsilon(1.0, 1, 1e-5, neighbors="add_or_remove")


@pytest.mark.parametrize("participation", [1.0, 0.1])
def test_an_epsilon_of_thousands_is_above_the_exact_one_and_found_at_once(
    participation,
):
    rounds, delta, z = 10, 1e-6, 0.01
    distance = math.sqrt(rounds) / z

    got = fedagg.epsilon(
        z, rounds, delta, neighbors="zero_out", participation=participation
    )

    # Balle and Wang 2018, theorem 8: with delta left out of it by the second term, the
    # exact epsilon has a tail of about delta beyond it.
    tail = scipy.stats.norm.isf(delta)
    exact = distance**2 / 2.0 + distance * tail
    assert exact < got < 1.02 * exact
    for least in (1e-200, 5e-324):
        assert fedagg.epsilon(least, 1, delta, neighbors="zero_out") == math.inf
