"""The audit sees what is wrong with noise, and nothing wrong with what ships."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import fedagg
from fedagg._privacy import attack, tradeoff
from tests.test_laws import STAGES

TEMPLATE = {"b": jnp.zeros(3), "w": jnp.zeros((4, 3))}
ROUNDS, DELTA, CLIP, NOISE = 4, 1e-5, 0.5, 3.0
OTHERS = jax.tree.map(lambda x: jnp.zeros((3, *x.shape)), TEMPLATE)


def audited(aggregator: fedagg.Aggregator, **options: Any) -> fedagg.Audit:
    given: dict[str, Any] = {"neighbors": "add_or_remove", "key": jax.random.key(0)}
    return fedagg.audit(aggregator, TEMPLATE, ROUNDS, DELTA, **(given | options))


def claimed(audit: fedagg.Audit) -> float:
    assert audit.claimed is not None
    return audit.claimed


def by_hand(noise: Any, clip: float = CLIP) -> fedagg.Aggregator:
    """The pair that a user might write: a sum of clipped values, and noise.

    The noise of a round is `noise(key, state, total)`, in float32; the state is the key
    of the first round.
    """

    def next(state: Any, updates: Any, weights: Any = None, key: Any = None):
        own, key = jax.random.split(key)
        first = jnp.where(state[1] > 0, state[0], jax.random.key_data(own))
        state = first, state[1] + 1

        def summed(x):
            factor = jnp.minimum(1.0, clip / norms) * weights
            return jnp.tensordot(factor, x, 1)

        squares = jax.tree.map(lambda x: jnp.sum(x**2, range(1, x.ndim)), updates)
        norms = jnp.sqrt(jax.tree.reduce(jnp.add, squares))
        total = jax.tree.map(summed, updates)
        value = jax.tree.map(jnp.add, total, noise(key, state, total))
        return fedagg.Output(state, value, {})

    def init(template):
        return jax.random.key_data(jax.random.key(0)), jnp.int32(0)

    return fedagg.Aggregator(init, next)


def draws(key, state, total, scale=NOISE * CLIP):
    keys = jax.random.split(key, 2)
    return {
        name: scale * jax.random.normal(k, total[name].shape)
        for name, k in zip(("b", "w"), keys, strict=True)
    }


def missing_on_half(key, state, total, scale=NOISE * CLIP):
    drawn = draws(key, state, total, scale)
    return drawn | {"w": drawn["w"].at[:, ::2].set(0.0)}


def of_the_first_key(key, state, total):
    return draws(jax.random.wrap_key_data(state[0]), state, total)


def one_draw_for_all_entries(key, state, total):
    drawn = NOISE * CLIP * jax.random.normal(key)
    return jax.tree.map(lambda x: jnp.broadcast_to(drawn, x.shape), total)


@pytest.mark.deep
def test_noise_as_claimed_is_not_contradicted_and_nearly_all_of_epsilon_shown():
    got = audited(by_hand(draws), claim=NOISE)

    assert not got.is_contradicted
    assert 0.7 * claimed(got) < got.epsilon < claimed(got)
    assert got.epsilon_of_any < got.epsilon


@pytest.mark.deep
def test_a_fifth_of_the_noise_missing_is_seen():
    fifth = by_hand(lambda *given: draws(*given, scale=0.8 * NOISE * CLIP))

    got = audited(fifth, claim=NOISE)

    promised = fedagg.epsilon(0.8 * NOISE, ROUNDS, DELTA, neighbors="add_or_remove")
    assert got.is_contradicted
    assert claimed(got) < got.epsilon < promised
    assert "CONTRADICTED" in str(got)


WRONG = {
    "noise missing on half of the entries": by_hand(missing_on_half),
    "the key of the first round in all": by_hand(of_the_first_key),
    "one draw for all entries": by_hand(one_draw_for_all_entries),
    "no clip": by_hand(draws, clip=np.inf),
    "twice the sensitivity": by_hand(draws, clip=2.0 * CLIP),
    "no noise": by_hand(lambda key, state, total: jax.tree.map(jnp.zeros_like, total)),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.deep
def test_other_faults_are_seen_with_fewer_trials(name):
    got = audited(WRONG[name], claim=NOISE, trials=1024)

    assert got.is_contradicted and got.epsilon > claimed(got)


@pytest.mark.deep
def test_an_unnoised_metric_is_seen():
    stage = fedagg.gaussian_noise(NOISE, CLIP, 10.0)
    counted = fedagg.aggregator(fedagg.without_guarantee(fedagg.zeroing(1e4)), stage)

    got = audited(counted, claim=NOISE, trials=256, norm=1e5)

    assert got.is_contradicted


SHIPPED: dict[str, tuple[fedagg.Stage, dict[str, Any]]] = {
    "gaussian_noise": (fedagg.gaussian_noise(NOISE, CLIP, 10.0), {}),
    "adaptive_gaussian_noise": (fedagg.adaptive_gaussian_noise(NOISE, 80.0), {}),
    "tree_noise": (fedagg.tree_noise(NOISE, CLIP, 10.0, restart_every=3), {}),
    "adaptive_tree_noise": (
        fedagg.adaptive_tree_noise(NOISE, 80.0, restart_every=4, restart_warmup=2),
        {},
    ),
    "toeplitz_noise": (fedagg.toeplitz_noise(NOISE, CLIP, 10.0, [1.0, 0.4, 0.2]), {}),
    "banded_noise": (
        fedagg.banded_noise(NOISE, CLIP, 10.0, bands=2, rounds=ROUNDS),
        {},
    ),
    "skellam_noise": (
        fedagg.skellam_noise(NOISE, CLIP, 4),
        {"neighbors": "zero_out", "others": OTHERS},
    ),
    "discrete_gaussian_noise": (
        fedagg.discrete_gaussian_noise(NOISE, CLIP, 4),
        {"neighbors": "zero_out", "others": OTHERS},
    ),
}


def taking_back(missing: float = 0.0, entries: slice = slice(0, 0)) -> Any:
    """A privatizer that takes half of each round's noise back in the next."""

    def update(updates: Any, state: Any, params: Any = None):
        key, before = state
        noise = draws(key, None, updates, scale=(1.0 - missing) * NOISE)
        noise["w"] = noise["w"].at[:, entries].set(0.0)
        noise = jax.tree.map(lambda x, y: x - 0.5 * y, noise, before)
        return jax.tree.map(jnp.add, updates, noise), (key, noise)

    def init(params: Any):
        return jax.random.key(0), jax.tree.map(jnp.zeros_like, params)

    return optax.GradientTransformation(init, update)


def correlated(**wrong: Any) -> fedagg.Stage:
    # noise = draws - noise before / 2, which is the inverse of this times draws.
    strategy = np.eye(ROUNDS) + 0.5 * np.eye(ROUNDS, k=-1)
    mechanism = fedagg.Mechanism.matrix(NOISE, strategy)
    return fedagg.matrix_factorization_noise(
        taking_back(**wrong), CLIP, 10.0, mechanism=mechanism
    )


SHIPPED["matrix_factorization_noise"] = correlated(), {}


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.deep
def test_what_ships_stays_below_its_claim(name):
    stage, options = SHIPPED[name]

    got = audited(fedagg.aggregator(stage), trials=1024, **options)

    assert not got.is_contradicted
    assert 0.2 * claimed(got) < got.epsilon < claimed(got)


def test_all_private_stages_are_audited():
    private = {
        made.traits.name
        for stages in STAGES.values()
        for made in stages
        if made.traits.is_private and not made.traits.is_secret
        # Groups are made of such stages, each with its own noise.
        if not made.traits.name.startswith("grouped")
    }

    assert private == {stage.traits.name for stage, _ in SHIPPED.values()}


@pytest.mark.parametrize(
    "wrong", [{"missing": 0.2}, {"entries": slice(0, None, 2)}], ids=["fifth", "half"]
)
@pytest.mark.deep
def test_noise_that_misses_in_a_privatizer_is_seen(wrong):
    got = audited(fedagg.aggregator(correlated(**wrong)))

    assert got.is_contradicted


@pytest.mark.parametrize("neighbors", ["zero_out", "replace_one"])
@pytest.mark.deep
def test_a_recipe_and_other_neighbors_stay_below_their_claim(neighbors):
    recipe = fedagg.dp_aggregator(NOISE, 80.0, zeroing=False)

    got = audited(recipe, trials=1024, neighbors=neighbors, others=OTHERS)

    assert not got.is_contradicted
    assert 0.2 * claimed(got) < got.epsilon < claimed(got)


@pytest.mark.parametrize("mechanism", ["skellam", "discrete_gaussian"])
@pytest.mark.deep
def test_the_distributed_recipe_stays_below_its_claim(mechanism):
    recipe = fedagg.distributed_dp_aggregator(
        1.5, 16, mechanism=mechanism, smallest_cohort=4
    )

    got = audited(recipe, trials=1024, neighbors="replace_one", others=OTHERS)

    assert not got.is_contradicted
    assert 0.1 * claimed(got) < got.epsilon < claimed(got)


@pytest.mark.deep
def test_noise_of_clients_that_misses_a_fifth_is_seen():
    claim = fedagg.skellam(NOISE, CLIP, 4).curve(TEMPLATE)

    whole, fifth, half = (
        audited(
            fedagg.aggregator(fedagg.skellam(z * NOISE, CLIP, 4).secure_sum()),
            neighbors="zero_out",
            others=OTHERS,
            claim=claim,
        )
        for z in (1.0, 0.8, 0.5)
    )

    # A curve is no noise of a known law, so that what contradicts it takes more: what
    # is missing shows in the epsilon of noise that is nearly normal, as Skellam's is.
    assert whole.epsilon < claimed(whole) < fifth.epsilon < half.epsilon
    assert half.is_contradicted and not whole.is_contradicted


SAMPLED: dict[str, tuple[fedagg.Stage, dict[str, Any]]] = {
    "poisson": (fedagg.gaussian_noise(1.0, CLIP, 10.0), {"participation": 0.5}),
    "poisson, replaced": (
        fedagg.gaussian_noise(1.5, CLIP, 10.0),
        {"participation": 0.5, "neighbors": "replace_one"},
    ),
    "poisson, a learnt clip": (
        fedagg.adaptive_gaussian_noise(1.0, 80.0),
        {"participation": fedagg.poisson(0.5)},
    ),
    "fixed size": (
        fedagg.gaussian_noise(2.0, CLIP, 10.0),
        {"participation": fedagg.fixed_size(2, 4), "neighbors": "replace_one"},
    ),
    "cyclic": (
        fedagg.banded_noise(0.7, CLIP, 10.0, bands=2, rounds=ROUNDS),
        {"participation": fedagg.cyclic(2, 0.6)},
    ),
    "separated": (
        fedagg.tree_noise(NOISE, CLIP, 10.0, restart_every=4),
        {"participation": fedagg.separated(2, size=2), "neighbors": "zero_out"},
    ),
}


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.deep
def test_what_is_amplified_by_sampling_stays_below_its_claim(name):
    stage, options = SAMPLED[name]

    got = audited(fedagg.aggregator(stage), **options)
    alone = audited(fedagg.aggregator(stage), **(options | {"participation": 1.0}))

    assert not got.is_contradicted
    assert 0.1 < got.epsilon_of_any < claimed(got) <= claimed(alone)


SAMPLED_WRONG = {
    "a fifth of the noise missing": by_hand(
        lambda *given: draws(*given, scale=0.8 * CLIP)
    ),
    "noise missing on half of the entries": by_hand(
        lambda *given: missing_on_half(*given, scale=CLIP)
    ),
}


@pytest.mark.parametrize("name", SAMPLED_WRONG)
@pytest.mark.deep
def test_faults_are_seen_where_clients_are_sampled(name):
    got = audited(SAMPLED_WRONG[name], claim=1.0, participation=0.5)

    assert got.is_contradicted


@pytest.mark.deep
def test_noise_as_claimed_is_not_contradicted_where_clients_are_sampled():
    right = by_hand(lambda *given: draws(*given, scale=CLIP))

    assert not audited(right, claim=1.0, participation=0.5).is_contradicted
    # And it is the sampling that hides: in each round, the same noise is worth less.
    assert audited(right, claim=1.0).epsilon > 1.1 * claimed(
        audited(right, claim=1.0, participation=0.5, trials=256)
    )


@pytest.mark.deep
def test_a_training_is_audited_through_work_that_returns_its_row():
    training = fedagg.federated_averaging(
        lambda variables, row, key: (row, {}),
        optax.sgd(0.5, momentum=0.5),
        fedagg.aggregator(fedagg.gaussian_noise(NOISE, CLIP, 10.0)),
    )

    got = audited(training, trials=1024, others=OTHERS)

    assert not got.is_contradicted
    assert 0.2 * claimed(got) < got.epsilon < claimed(got)


@pytest.mark.deep
def test_where_guarantee_refuses_nothing_is_claimed():
    got = audited(fedagg.aggregator(fedagg.mean()), trials=256)

    assert got.claimed is None and not got.is_contradicted
    assert "nothing is claimed" in str(got) and got.epsilon > 10.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 100}, "trials"),
        ({"confidence": 1.0}, "confidence"),
        ({"neighbors": "all"}, "neighbors"),
        ({"norm": 0.0}, "norm"),
        ({"key": None}, "key"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        audited(by_hand(draws), **options)


def readings(generator: np.random.Generator, distance: float, trials: int):
    """What would be read of one round of a Gaussian, and a metric that says nothing."""
    read = generator.normal(size=(2, trials, 1, 2))
    read[1, :, :, 0] += distance
    return read


def shown(generator: np.random.Generator, distance: float, trials: int, level: float):
    guesses = attack.learnt(readings(generator, distance, trials), attack.ALL)
    rates = guesses.errors(readings(generator, distance, trials), level)
    return tradeoff.gaussian_distance(*rates)


@pytest.mark.parametrize("distance", [0.5, 1.0, 3.0])
@pytest.mark.deep
def test_bounds_hold_as_often_as_they_say_on_known_gaussians(distance):
    generator, audits = np.random.default_rng(0), 400

    found = np.array([shown(generator, distance, 512, 0.25) for _ in range(audits)])

    # With a confidence of one half, so that what fails is counted soon.
    assert (
        scipy.stats.binomtest(
            int(np.sum(found <= distance)), audits, 0.5, alternative="less"
        ).pvalue
        > 1e-3
    )
    assert np.mean(found <= distance) < 0.95  # and not for want of trying
    assert np.mean(found) > 0.65 * distance


def test_no_threshold_is_chosen_for_few_errors_by_luck():
    generator = np.random.default_rng(0)

    found = [shown(generator, 0.6, 4096, 0.025) for _ in range(60)]

    # The bounds take 0.08 at the middle, and what is found varies by half of that.
    assert min(found) > 0.6 - 0.2


def test_a_rate_is_bounded_as_by_its_binomial_tail():
    for errors, tries in ((0, 50), (3, 50), (49, 50)):
        bound = float(tradeoff.largest_rate(errors, tries, 0.05))

        assert np.isclose(scipy.stats.binom.cdf(errors, tries, bound), 0.05)
    assert tradeoff.largest_rate(50, 50, 0.05) == 1.0


@pytest.mark.parametrize("distance", [0.2, 1.0, 4.0])
def test_a_distance_costs_what_its_trade_off_integrates_to(distance):
    got = tradeoff.gaussian_epsilon(distance, DELTA)

    # Delta is the mass by which one density exceeds e**epsilon times the other.
    x = np.linspace(-12.0, 16.0, 2_000_001)
    above = scipy.stats.norm.pdf(x, distance) - np.exp(got) * scipy.stats.norm.pdf(x)
    assert np.isclose(np.trapezoid(np.maximum(above, 0.0), x), DELTA, rtol=1e-4)


def test_errors_on_the_trade_off_contradict_less_noise_and_not_their_own():
    accused = float(scipy.stats.norm.sf(1.0))
    missed = float(scipy.stats.norm.cdf(1.0 - 1.5))

    def claim(distance: float):
        return lambda delta: tradeoff.gaussian_epsilon(distance, delta)

    assert not tradeoff.contradicts(claim(1.501), accused, missed, DELTA)
    assert tradeoff.contradicts(claim(1.49), accused, missed, DELTA)
    # Randomized response of epsilon one: no Gaussian's errors, and allowed by its own.
    flip = 1.0 / (1.0 + np.e)
    assert not tradeoff.contradicts(lambda delta: 1.0 + 1e-9, flip, flip, DELTA)
    assert tradeoff.contradicts(lambda delta: 0.99, flip, flip, DELTA)
