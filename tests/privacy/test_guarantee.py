"""The guarantee of what runs, against dp-accounting and jax-privacy."""

import math
from collections.abc import Callable
from typing import Any

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from tests.helpers import first_round_compiled

accounting = pytest.importorskip("jax_privacy.accounting")
toeplitz = pytest.importorskip("jax_privacy.matrix_factorization.toeplitz")

TEMPLATE, DELTA = {"x": jnp.zeros(30)}, 1e-5
SAMPLED: dict[str, Any] = {"neighbors": "add_or_remove", "participation": 0.01}


def of(*stages: fedagg.Stage, rounds: int = 100, **options: Any) -> fedagg.Guarantee:
    return fedagg.guarantee(
        fedagg.aggregator(*stages), TEMPLATE, rounds, DELTA, **options
    )


def spent(event: Any, count: int, accountant: str = "pld", **options: Any) -> float:
    """By dp-accounting itself."""
    made: Any = {
        "pld": dp_accounting.pld.PLDAccountant,
        "rdp": dp_accounting.rdp.RdpAccountant,
    }[accountant]
    return made(**options).compose(event, count).get_epsilon(DELTA)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize(
    "stage",
    [
        fedagg.gaussian_noise(1.5, 0.3, 100.0),
        fedagg.gaussian_noise(1.5, 0.3, 100.0, largest_weight=4.0),
        fedagg.adaptive_gaussian_noise(1.5, 100.0),
    ],
    ids=["fixed", "weighted", "learnt"],
)
def test_what_stages_declare_costs_what_dp_accounting_says(stage, accountant):
    got = of(stage, **SAMPLED, accountant=accountant)

    event = dp_accounting.PoissonSampledDpEvent(
        0.01, dp_accounting.GaussianDpEvent(1.5)
    )
    assert math.isclose(got.epsilon, spent(event, 100, accountant), rel_tol=1e-6)
    assert got[2:4] == ("add_or_remove", 100)
    assert DELTA <= got.delta < DELTA * (1.0 + 1e-6)


@pytest.mark.deep
def test_the_split_of_a_learnt_clip_s_noise_is_that_of_what_runs():
    stage = fedagg.adaptive_gaussian_noise(1.5, 100.0, count_stddev=4.0)
    rounds = {"x": jnp.zeros((1, 30))}

    metrics = first_round_compiled(
        fedagg.aggregator(stage), rounds, None, jax.random.key(0)
    ).metrics

    # Of what ran: noise on a mean with a clip of 0.1, and on a count moved by a half.
    of_values = float(metrics["gaussian_noise/stddev"]) * 100.0 / 0.1
    both: list[Any] = [dp_accounting.GaussianDpEvent(x) for x in (of_values, 4.0 / 0.5)]
    event = dp_accounting.ComposedDpEvent(both)
    expected = spent(event, 100, "rdp")
    got = of(stage, neighbors="add_or_remove", accountant="rdp")
    assert math.isclose(got.epsilon, expected, rel_tol=1e-5)


def test_all_noise_of_a_round_is_composed():
    both = (fedagg.gaussian_noise(2.0, 1.0, 10.0),)
    extra = fedagg.Stage.stateless(
        lambda update, key: (update, ()),
        traits=fedagg.Traits(
            "extra", only_reads=True, mechanisms=(fedagg.Mechanism.gaussian(3.0),)
        ),
    )

    got = of(*both, extra, **SAMPLED, accountant="rdp")

    inner: list[Any] = [dp_accounting.GaussianDpEvent(x) for x in (2.0, 3.0)]
    event = dp_accounting.PoissonSampledDpEvent(
        0.01, dp_accounting.ComposedDpEvent(inner)
    )
    assert math.isclose(got.epsilon, spent(event, 100, "rdp"), rel_tol=1e-9)


@pytest.mark.deep
def test_noise_and_sampling_of_a_cycle_cost_what_jax_privacy_says():
    stage = fedagg.banded_noise(0.8, 1.0, 10.0, bands=4, rounds=40)
    sampler = fedagg.cyclic(5, 0.1)

    got = of(stage, rounds=42, neighbors="add_or_remove", participation=sampler)

    theirs = accounting.DpsgdTrainingAccountant(
        accounting.PldAccountantConfig()
    ).compute_epsilon(
        42,
        accounting.DpParams(
            noise_multipliers=0.8,
            num_samples=500,
            delta=DELTA,
            batch_size=10,
            cycle_length=5,
        ),
    )
    assert math.isclose(got.epsilon, theirs, rel_tol=1e-6)


@pytest.mark.deep
def test_a_band_without_sampling_costs_what_jax_privacy_says():
    stage = fedagg.banded_noise(3.0, 1.0, 10.0, bands=4, rounds=40)
    sampler = fedagg.separated(4, size=3)

    got = of(stage, rounds=40, neighbors="zero_out", participation=sampler)

    theirs = accounting.SingleReleaseTrainingAccountant(
        accounting.PldAccountantConfig()
    ).compute_epsilon(
        40,
        accounting.DpParams(
            # Ten rounds at right angles, each of one clip.
            noise_multipliers=3.0 / math.sqrt(10.0),
            num_samples=1,
            delta=DELTA,
            batch_size=1,
        ),
    )
    assert math.isclose(got.epsilon, theirs, rel_tol=2e-4)


@pytest.mark.deep
def test_a_band_s_noise_is_what_is_accounted_and_cancels_over_rounds():
    stage = fedagg.banded_noise(2.0, 1.0, 1.0, bands=3, rounds=8)
    aggregator, size = fedagg.aggregator(stage), 20_000
    nothing = {"x": jnp.zeros((1, size))}

    def body(state, key):
        output = aggregator.next(state, nothing, None, key)
        return output.state, output.value["x"]

    keys = jax.random.split(jax.random.key(3), 8)
    start = aggregator.init({"x": jnp.zeros(size)})
    noise = np.asarray(jax.jit(lambda x: jax.lax.scan(body, x, keys)[1])(start))

    (mechanism,) = stage.traits.mechanisms
    assert mechanism.bands == 3
    assert math.isclose(mechanism.noise_multiplier, 2.0, rel_tol=1e-9)
    assert math.isclose(mechanism.sensitivity(9, 3, 3), math.sqrt(3), rel_tol=1e-9)
    # C is read off the noise, whose covariance is 4 * inverse(C.T @ C).
    covariance = np.cov(noise.astype(np.float64))
    strategy = np.linalg.inv(np.linalg.cholesky(covariance)) * 2.0
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        column = toeplitz.optimize_banded_toeplitz(n=8, bands=3)
        expected = toeplitz.materialize_lower_triangular(column, 8)
    np.testing.assert_allclose(strategy, expected, atol=0.03)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=0)[:6], 1.0, rtol=1e-5)
    alone = 8 * 2.0**2  # of independent noise
    assert noise.sum(axis=0).var() < 0.8 * alone


def test_bands_longer_than_a_period_are_refused_where_clients_are_sampled():
    stage = fedagg.banded_noise(3.0, 1.0, 10.0, bands=4, rounds=40)

    with pytest.raises(ValueError, match="correlated over 4 rounds.*cyclic\\(4, rate"):
        of(stage, neighbors="zero_out", participation=fedagg.cyclic(3, 0.5))
    with pytest.raises(ValueError, match="correlated over 4 rounds"):
        of(stage, **SAMPLED)


def test_a_tree_is_accounted_as_a_tree_and_never_as_independent_noise():
    stage = fedagg.tree_noise(5.0, 1.0, 10.0, restart_every=128)
    adaptive = fedagg.adaptive_tree_noise(
        5.0, 200.0, restart_every=128, restart_warmup=9
    )

    for noise in (stage, adaptive):
        with pytest.raises(ValueError, match="nothing is proven of both together"):
            of(noise, **SAMPLED)
        rested = fedagg.separated(128, size=10)
        got = of(noise, rounds=384, neighbors="zero_out", participation=rested)
        expected = spent(dp_accounting.GaussianDpEvent(5.0 / math.sqrt(8 * 3)), 1)
        assert math.isclose(got.epsilon, expected, rel_tol=1e-9)


@pytest.mark.deep
def test_a_privatizer_that_does_not_say_what_it_was_made_with_is_refused():
    privatizer = optax.GradientTransformation(
        lambda params: (), lambda updates, state, params=None: (updates, state)
    )
    bare = fedagg.matrix_factorization_noise(privatizer, 1.0, 10.0)
    said = fedagg.matrix_factorization_noise(
        privatizer, 1.0, 10.0, mechanism=fedagg.Mechanism.matrix(2.0, np.eye(100))
    )

    with pytest.raises(ValueError, match="no stage declares the noise"):
        of(bare, neighbors="zero_out")
    expected = spent(dp_accounting.GaussianDpEvent(2.0), 100)
    assert math.isclose(of(said, neighbors="zero_out").epsilon, expected, rel_tol=1e-6)


@pytest.mark.parametrize("make", [fedagg.skellam, fedagg.discrete_gaussian])
def test_noise_of_clients_is_accounted_by_its_own_curve(make):
    noise = make(4.0, fedagg.quantile_bound(0.1, 0.5, 0.2), 100)
    hidden = noise.secure_sum()

    got = of(hidden, rounds=10, neighbors="zero_out")

    expected = fedagg.epsilon(
        noise.curve(TEMPLATE), 10, DELTA, neighbors="add_or_remove"
    )
    assert got.epsilon == expected
    with pytest.raises(ValueError, match="tells who is there"):
        of(hidden, rounds=10, neighbors="add_or_remove")
    with pytest.raises(ValueError, match="tells who is there"):
        of(hidden, rounds=10, neighbors="zero_out", participation=0.5)
    with pytest.raises(ValueError, match="Rényi curve"):
        got.event()
    (mechanism,) = hidden.traits.mechanisms
    with pytest.raises(ValueError, match="depends on the template"):
        fedagg.epsilon(mechanism, 10, DELTA, neighbors="zero_out")


LEAKS = {
    "zeroing": (fedagg.zeroing(3.0), "count"),
    "clipping": (fedagg.clipping(3.0), "count"),
    "learnt_zeroing": (
        fedagg.zeroing(fedagg.quantile_bound(10.0, 0.98, 2.0)),
        "below",
    ),
}


@pytest.mark.parametrize("name", LEAKS)
def test_what_stages_before_the_noise_tell_is_refused_by_name(name):
    stage, part = LEAKS[name]

    # A user's own stage, which does not say what it does.
    bare = stage._replace(traits=fedagg.Traits("own"))
    both = fedagg.chain(bare, fedagg.gaussian_noise(1.0, 1.0, 10.0))

    with pytest.raises(ValueError, match=f"{part}.* follows the client's value"):
        fedagg.guarantee(both, TEMPLATE, 1, DELTA, neighbors="zero_out")
    with pytest.raises(ValueError, match="count of .* what no noise hides"):
        fedagg.aggregator(both).init(TEMPLATE)


RECIPES: dict[str, Callable[..., fedagg.Aggregator]] = {
    "central": fedagg.dp_aggregator,
    "distributed": fedagg.distributed_dp_aggregator,
}
OUT: dict[str, Any] = {"neighbors": "zero_out"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_a_guarantee_as_they_come(name):
    for options in ({}, {"zeroing": 3.0}):
        recipe = RECIPES[name](0.5, 20, **options)
        found = fedagg.guarantee(recipe, TEMPLATE, 1, DELTA, **OUT)
        plain = fedagg.guarantee(RECIPES[name](0.5, 20), TEMPLATE, 1, DELTA, **OUT)
        assert found.epsilon == plain.epsilon < 100.0
    event = dp_accounting.GaussianDpEvent(0.5)
    if name == "central":
        assert math.isclose(found.epsilon, spent(event, 1), rel_tol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_that_learn_without_noise_say_so_and_have_no_guarantee(name):
    with pytest.raises(ValueError, match="zeroing tells .* no finite epsilon"):
        RECIPES[name](0.5, 20, zeroing=True)
    for options in ({"zeroing": True}, {}):
        meant = RECIPES[name](0.5, 20, without_guarantee=True, **options)
        with pytest.raises(ValueError, match="without_guarantee, so that there is non"):
            fedagg.guarantee(meant, TEMPLATE, 1, DELTA, **OUT)


def test_a_bound_learnt_with_noise_says_what_it_costs():
    bound = fedagg.quantile_bound(
        10.0, 0.98, 2.0, below_estimate_stddev=1.5, expected_num_clients=100
    )
    zeroing = fedagg.zeroing(bound, counted=False)

    got = of(
        zeroing, fedagg.gaussian_noise(2.0, 1.0, 100.0), **SAMPLED, accountant="rdp"
    )

    # A client moves the count by a half.
    inner: list[Any] = [dp_accounting.GaussianDpEvent(x) for x in (3.0, 2.0)]
    event = dp_accounting.PoissonSampledDpEvent(
        0.01, dp_accounting.ComposedDpEvent(inner)
    )
    assert math.isclose(got.epsilon, spent(event, 100, "rdp"), rel_tol=1e-9)
    assert bound.mechanism is not None
    alone = fedagg.epsilon(bound.mechanism, 100, DELTA, **SAMPLED, accountant="rdp")
    event = dp_accounting.PoissonSampledDpEvent(
        0.01, dp_accounting.GaussianDpEvent(3.0)
    )
    assert math.isclose(alone, spent(event, 100, "rdp"), rel_tol=1e-9)
    bare = fedagg.quantile_bound(1.0, 0.5, 0.2)
    assert bare.mechanism is None and bare.tells and not bound.tells


@pytest.mark.deep
def test_noised_metrics_are_one_more_part_of_the_budget():
    metrics = fedagg.noised_metrics(3.0, {"training/loss": 5.0, "accuracy": 1.0}, 100)

    got = of(metrics, fedagg.gaussian_noise(2.0, 1.0, 100.0), **OUT)

    both = (3.0**-2 + 2.0**-2) ** -0.5
    expected = spent(dp_accounting.GaussianDpEvent(both), 100)
    assert math.isclose(got.epsilon, expected, rel_tol=1e-6)


@pytest.mark.deep
def test_a_count_of_who_is_there_goes_with_other_relations():
    counting = fedagg.Stage.stateless(lambda update, key: (update, jnp.float32(1.0)))
    noise = fedagg.gaussian_noise(1.0, 1.0, 10.0)

    with pytest.raises(ValueError, match="tells who is there"):
        of(counting, noise, neighbors="add_or_remove")
    assert of(counting, noise, neighbors="zero_out").epsilon > 0.0


def test_a_training_has_the_guarantee_of_its_aggregator():
    private = fedagg.dp_aggregator(1.5, 100.0, zeroing=False)
    training = fedagg.federated_averaging(
        lambda variables, row, key: (variables, {}), optax.sgd(1.0), private
    )

    got = fedagg.guarantee(training, TEMPLATE, 100, DELTA, **SAMPLED)

    assert got == fedagg.guarantee(private, TEMPLATE, 100, DELTA, **SAMPLED)._replace(
        sampler=got.sampler
    )


def test_an_aggregator_without_stages_or_noise_is_refused():
    made = fedagg.Aggregator(lambda template: (), lambda *x: None)

    with pytest.raises(TypeError, match="expected a Stage, or an Aggregator of stages"):
        fedagg.guarantee(made, TEMPLATE, 1, DELTA, neighbors="zero_out")
    with pytest.raises(ValueError, match="no stage declares the noise"):
        of(fedagg.mean(), neighbors="zero_out")
    with pytest.raises(ValueError, match="no stage declares the noise"):
        of(fedagg.local_gaussian_noise(1.0, 1.0), neighbors="replace_one")


def test_without_noise_epsilon_is_infinite():
    got = of(fedagg.gaussian_noise(0.0, 1.0, 10.0), neighbors="zero_out")

    assert got.epsilon == math.inf


def test_a_bool_is_no_noise_multiplier():
    for make in (
        lambda z: fedagg.gaussian_noise(z, 1.0, 10.0),
        lambda z: fedagg.banded_noise(z, 1.0, 10.0, bands=1, rounds=1),
        lambda z: fedagg.skellam(z, 1.0, 10),
        lambda z: fedagg.tree_noise(z, 1.0, 10.0, restart_every=2),
    ):
        with pytest.raises(TypeError, match="noise_multiplier must be a number"):
            make(True)


def test_a_guarantee_is_an_event_and_a_sentence():
    got = of(fedagg.gaussian_noise(1.5, 1.0, 10.0), **SAMPLED)

    event, relation = got.event()
    accountant = dp_accounting.pld.PLDAccountant(neighboring_relation=relation)
    assert accountant.compose(event).get_epsilon(DELTA) == got.epsilon
    assert str(got) == (
        f"epsilon {got.epsilon:.2f}, delta 1e-05, add_or_remove: 100 rounds of "
        "gaussian(1.5), poisson(0.01)"
    )
