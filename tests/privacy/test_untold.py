"""Nothing is told without noise beside a private stage."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from fedagg._messages.reveals import revealed
from tests.helpers import assert_close, first_now
from tests.test_laws import STAGES

TEMPLATE = {"b": jnp.zeros(()), "w": jnp.zeros((3, 2))}
NOISE = fedagg.gaussian_noise(1.0, 1.0, 10.0)
LEARNT = fedagg.quantile_bound(10.0, 0.98, 2.3)
NOISED = fedagg.quantile_bound(
    10.0, 0.98, 2.3, below_estimate_stddev=2.0, expected_num_clients=10
)
TELLING = {
    "a learnt zeroing": fedagg.zeroing(LEARNT, counted=False),
    "a count": fedagg.zeroing(3.0),
    "a count of a noised zeroing": fedagg.zeroing(NOISED),
    "a learnt clipping": fedagg.clipping(LEARNT, counted=False),
    "a count of clips": fedagg.clipping(3.0),
    "a distortion": fedagg.with_distortion(fedagg.rotation("dft")),
    "in a chain": fedagg.chain(fedagg.chain(fedagg.zeroing(3.0))),
}
UNTOLD = {
    "a fixed zeroing": fedagg.zeroing(3.0, counted=False),
    "a noised zeroing": fedagg.zeroing(NOISED, counted=False),
    "a noised clipping": fedagg.clipping(NOISED, counted=False),
    "a rotation": fedagg.rotation("dft"),
}


@pytest.mark.parametrize("name", TELLING)
def test_what_tells_is_refused_beside_a_private_stage(name):
    for make in (fedagg.chain, fedagg.aggregator, fedagg.skellam(1, 1.0, 9).secure_sum):
        private = () if inspect.ismethod(make) else (NOISE,)
        with pytest.raises(ValueError, match="no finite epsilon.*without_guarantee"):
            make(TELLING[name], *private)
    meant = fedagg.without_guarantee(TELLING[name])
    fedagg.aggregator(fedagg.chain(meant, NOISE)).init(TEMPLATE)
    with pytest.raises(ValueError, match="so that there is none"):
        fedagg.guarantee(
            fedagg.chain(meant, NOISE), TEMPLATE, 1, 1e-5, neighbors="zero_out"
        )


@pytest.mark.parametrize("name", UNTOLD)
def test_what_does_not_tell_is_taken_and_has_a_guarantee(name):
    made = fedagg.aggregator(UNTOLD[name], NOISE)

    made.init(TEMPLATE)

    assert fedagg.guarantee(made, TEMPLATE, 1, 1e-5, neighbors="zero_out").epsilon < 20


def test_what_tells_after_a_private_stage_and_around_it_is_refused():
    with pytest.raises(ValueError, match="elias_gamma tells"):
        fedagg.aggregator(fedagg.skellam_noise(1.0, 1.0, 9), fedagg.elias_gamma())
    around = fedagg.secure_sum(NOISE, 1.0, largest_cohort=9)
    with pytest.raises(ValueError, match="secure_sum tells"):
        fedagg.aggregator(around)
    with pytest.raises(ValueError, match="does not go with it"):
        fedagg.with_error_feedback(fedagg.skellam_noise(1.0, 1.0, 9), 9)


@first_now("name", STAGES, quick=6)
def test_a_stage_declares_that_it_tells_if_its_program_does(name):
    for stage in STAGES[name]:
        if stage.traits.is_secret or "elias" in stage.traits.name:
            continue
        told = [
            x.part
            for x in revealed(stage, TEMPLATE)
            if x.by_value and x.part.startswith("note")
        ]
        assert bool(told) == stage.traits.tells


def test_without_guarantee_takes_a_stage_and_changes_nothing_else():
    stage = fedagg.without_guarantee(fedagg.zeroing(2.0))

    assert repr(stage) == "without_guarantee(zeroing(2.0))"
    assert stage[:4] == fedagg.without_guarantee(stage)[:4]
    unmade: Any = fedagg.zeroing
    with pytest.raises(TypeError, match="expected a Stage"):
        fedagg.without_guarantee(unmade)


def values(x: float, others: int = 9) -> dict[str, jax.Array]:
    rows = jnp.full((1 + others, 1), 0.01).at[0].set(x)
    return {"x": rows}


@pytest.mark.deep
def test_a_client_s_value_in_one_round_does_not_move_who_counts_in_the_next():
    # With the bound of TFF's recipe, 1 or 1,000 moved the next value by the noise's
    # hundredfold: bounds of 0.98 quantiles part by what one client holds.
    made = fedagg.dp_aggregator(0.9, 10.0)
    keys = [jax.random.key(i) for i in (0, 1)]
    second = []
    for held in (1.0, 1000.0):
        state = made.init({"x": jnp.zeros(1)})
        state = made.next(state, values(held), None, keys[0]).state
        second.append(made.next(state, values(12.0), None, keys[1]))

    assert_close(second[0].value, jax.tree.map(np.asarray, second[1].value))
    assert_close(second[0].metrics, jax.tree.map(np.asarray, second[1].metrics))


@pytest.mark.deep
def test_a_bound_that_learns_with_noise_draws_afresh_from_the_same_key():
    made = fedagg.aggregator(fedagg.zeroing(NOISED, counted=False), NOISE)
    nobody, key = jnp.zeros(10), jax.random.key(3)
    state, bounds = made.init({"x": jnp.zeros(1)}), []

    for _ in range(4):
        output = made.next(state, values(1.0), nobody, key)
        bounds.append(float(output.metrics["zeroing/bound"]))
        state = output.state

    steps = np.diff(np.log(bounds))
    assert len({round(x, 5) for x in steps}) == 3
    with pytest.raises(ValueError, match="quantile_bound draws noise and needs a key"):
        alone = fedagg.aggregator(fedagg.zeroing(NOISED))
        alone.next(alone.init({"x": jnp.zeros(1)}), values(1.0))


@pytest.mark.parametrize("make", [fedagg.skellam, fedagg.discrete_gaussian])
@pytest.mark.deep
def test_metrics_of_client_noise_do_not_tell_how_many_are_there(make):
    noise = make(2.0, 1.0, 8, bits=20, smallest_cohort=4, largest_cohort=12)
    made = fedagg.aggregator(noise.secure_sum())
    state = made.init({"x": jnp.zeros(1)})
    next_round = jax.jit(made.next)
    of_cohorts = []
    for present in (4, 7, 10):
        weights = (jnp.arange(10) < present).astype(jnp.float32)
        output = next_round(state, values(0.0), weights, jax.random.key(present))
        of_cohorts.append(float(output.metrics[f"{noise.name}/stddev"]))

    # Two clips on the sum, over eight.
    np.testing.assert_allclose(of_cohorts, 2.0 / 8.0, rtol=1e-3)


def reading(traits: fedagg.Traits, learns: bool = False) -> fedagg.Stage:
    """A user's own stage that looks at the sum that comes to it."""

    def server(state: Any, total: Any, note: Any, key: Any) -> fedagg.Output:
        sizes = [jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(total)]
        size = jnp.sum(jnp.stack(sizes))
        metrics: dict[str, jax.Array] = {} if learns else {"own/sum": size}
        return fedagg.Output(size if learns else state, total, metrics)

    return fedagg.Stage(
        lambda template: jnp.float32(0.0),
        lambda state: state,
        lambda shared, update, key: (update, ()),
        server,
        traits,
    )


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("kind", ["after", "in a chain", "in a group", "secure"])
def test_a_sum_is_not_read_before_its_noise(learns, kind):
    reader = reading(fedagg.Traits("reader", only_reads=True), learns)
    made = {
        "after": fedagg.chain(NOISE, reader),
        "in a chain": fedagg.chain(NOISE, fedagg.chain(reader)),
        "in a group": fedagg.grouped({"*": fedagg.chain(NOISE, reader)}),
        "secure": fedagg.secure_modular_sum(
            fedagg.chain(NOISE, reader), bits=32, largest_cohort=9
        ),
    }[kind]
    rows = jax.tree.map(lambda x: jnp.zeros((2, *x.shape)), TEMPLATE)

    with pytest.raises(ValueError, match="reader.*before its noise"):
        fedagg.guarantee(made, TEMPLATE, 1, 1e-5, neighbors="zero_out")
    aggregator = fedagg.aggregator(made)
    with pytest.raises(ValueError, match="reader.*before its noise"):
        aggregator.next(aggregator.init(TEMPLATE), rows, None, jax.random.key(0))


def test_a_sum_is_read_after_its_noise_or_where_it_is_meant():
    reader = reading(fedagg.Traits("reader", only_reads=True))
    before = fedagg.chain(reader, NOISE)
    meant = fedagg.aggregator(NOISE, fedagg.without_guarantee(reader))
    rows = jax.tree.map(lambda x: jnp.zeros((2, *x.shape)), TEMPLATE)

    got = fedagg.guarantee(before, TEMPLATE, 1, 1e-5, neighbors="zero_out")
    output = meant.next(meant.init(TEMPLATE), rows, None, jax.random.key(0))

    assert got.epsilon < 20 and output.metrics["own/sum"] == 0.0


def noting(note: Any) -> fedagg.Stage:
    """A user's own stage that notes something of a client's weight."""
    return fedagg.Stage.stateless(
        lambda update, key: (update, note(update.weight)),
        traits=fedagg.Traits("noting", only_reads=True),
    )


@pytest.mark.parametrize("neighbors", ["zero_out", "replace_one"])
def test_the_size_of_a_weight_is_not_told(neighbors):
    def out(stage: fedagg.Stage) -> Any:
        made = fedagg.chain(stage, NOISE)
        return fedagg.guarantee(made, TEMPLATE, 1, 1e-5, neighbors=neighbors)

    told = (
        lambda w: w,
        lambda w: (w > 5.0).astype(jnp.float32),
        lambda w: (w - 5.0 > 0.0).astype(jnp.float32),
        lambda w: jnp.where(w > 0.0, w, 0.0),
    )
    for note in told:
        with pytest.raises(ValueError, match="or its weight, and is not noised"):
            out(noting(note))
        with pytest.raises(ValueError, match="no finite epsilon"):
            fedagg.aggregator(noting(note), NOISE).init(TEMPLATE)
    assert out(noting(lambda w: (w > 0.0).astype(jnp.float32))).epsilon < 50
