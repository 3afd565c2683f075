"""Orders of stages that are refused when they are put together."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import pytest

import fedagg

UNDECLARED = fedagg.Traits()


def times_100(traits: fedagg.Traits = UNDECLARED) -> fedagg.Stage:
    """A user's own stage that changes values, and may declare something."""

    def client(update: fedagg.Update, key: Any):
        value = jax.tree.map(lambda x: 100.0 * x, update.value)
        return update._replace(value=value), jnp.float32(1.0)

    def server(total: Any, note: jax.Array, key: Any):
        return total, {"mean/weight": note, "own/noised_norm": note}

    return fedagg.Stage.stateless(client, server, traits)


def looking() -> fedagg.Stage:
    """A user's own stage that declares that it only reads."""
    return fedagg.Stage.stateless(
        lambda update, key: (update, jnp.float32(1.0)),
        traits=fedagg.Traits("looking", only_reads=True),
    )


PRIVATE = {
    "gaussian": fedagg.gaussian_noise(1.0, 1.0, 3),
    "adaptive": fedagg.adaptive_gaussian_noise(0.1, 3),
    "tree": fedagg.tree_noise(1.0, 1.0, 3, restart_every=4),
    "adaptive tree": fedagg.adaptive_tree_noise(0.1, 3),
    "skellam": fedagg.skellam_noise(1.0, 1.0, 3),
    "discrete gaussian": fedagg.discrete_gaussian_noise(1.0, 1.0, 3),
    "own": times_100(fedagg.Traits("own noise", is_private=True)),
}
CODING = {
    "quantization": fedagg.quantization(),  # which leaves small tensors as they are
    "qsgd": fedagg.qsgd(3),
    "terngrad": fedagg.terngrad(),
    "sign": fedagg.sign(),
    "top_k": fedagg.top_k(0.1),
    "eden": fedagg.eden(2),
    "drive": fedagg.drive(),
    "with_distortion": fedagg.with_distortion(fedagg.qsgd(3)),
    "chain": fedagg.chain(fedagg.clipping(1.0), fedagg.qsgd(3)),
}
SECRET = {
    "secure_sum": fedagg.secure_sum(fedagg.clipping(1.0), 1.0, largest_cohort=9),
    "secure_modular_sum": fedagg.secure_modular_sum(
        fedagg.discretization(0.1, stochastic=False), bits=20, largest_cohort=9
    ),
}
CHANGING = {
    "undeclared": times_100(),
    "clipping": fedagg.clipping(1.0),
    "rotation": fedagg.rotation("dft"),
    "qsgd": fedagg.qsgd(3),
    "chain": fedagg.chain(looking(), fedagg.chain(times_100())),
}


@pytest.mark.parametrize("after", CHANGING)
@pytest.mark.parametrize(
    "before", [*PRIVATE.items(), *CODING.items(), *SECRET.items()], ids=lambda x: x[0]
)
def test_what_changes_values_does_not_come_after_what_fixes_them(before, after):
    stage = before[1]
    with pytest.raises(ValueError, match=f"after {stage.traits.name.split('(')[0]}"):
        fedagg.chain(stage, CHANGING[after])
    is_coded = stage.traits.is_private and after == "qsgd"
    why = "in either order" if is_coded else "does not declare that it only reads"
    with pytest.raises(ValueError, match=why):
        fedagg.aggregator(looking(), fedagg.chain(stage), CHANGING[after])
    fedagg.chain(stage, looking(), fedagg.without_guarantee(fedagg.elias_gamma()))


@pytest.mark.parametrize("private", PRIVATE)
@pytest.mark.parametrize("coding", CODING)
def test_noise_and_codes_are_refused_in_both_orders(private, coding):
    one, other = PRIVATE[private], CODING[coding]

    for stages in [(one, other), (other, one)]:
        with pytest.raises(ValueError, match="do not go together, in either order"):
            fedagg.chain(*stages)


@pytest.mark.parametrize("private", PRIVATE)
@pytest.mark.parametrize("weighted", [True, False])
def test_noise_and_a_mean_are_refused_in_both_orders(private, weighted):
    mean = fedagg.mean(weighted=weighted)

    for stages in [(mean, PRIVATE[private]), (fedagg.chain(mean), PRIVATE[private])]:
        with pytest.raises(ValueError, match="which no noise hides"):
            fedagg.chain(*stages)
    with pytest.raises(ValueError):
        fedagg.chain(PRIVATE[private], mean)


def test_a_metric_makes_no_mean_and_no_noise():
    # It reports "mean/weight" and "own/noised_norm", and is neither.
    fedagg.chain(times_100(), fedagg.gaussian_noise(1.0, 1.0, 3))
    fedagg.combining(fedagg.median(), times_100())
    fedagg.chain(fedagg.mean(), times_100())


@pytest.mark.parametrize(
    "kind", [*PRIVATE.items(), *SECRET.items()], ids=lambda x: x[0]
)
def test_what_is_made_for_a_sum_does_not_go_with_a_rule(kind):
    with pytest.raises(ValueError, match="rule"):
        fedagg.combining(fedagg.median(), kind[1])


@pytest.mark.parametrize("coding", CODING)
def test_what_is_decoded_client_by_client_does_not_go_under_a_secure_sum(coding):
    stage = CODING[coding]

    for inside in (stage, fedagg.chain(fedagg.rotation("dft"), stage)):
        with pytest.raises(ValueError, match="cannot be added"):
            fedagg.secure_sum(inside, 1.0, largest_cohort=9, largest_weight=9.0)
        with pytest.raises(ValueError, match="cannot be added"):
            fedagg.secure_modular_sum(inside, bits=20, largest_cohort=9)


@pytest.mark.parametrize("secret", SECRET)
def test_a_sum_is_made_secret_once(secret):
    with pytest.raises(ValueError, match="is a secure one already"):
        fedagg.secure_sum(SECRET[secret], 1.0, largest_cohort=9)


def test_a_secure_sum_of_what_weighs_needs_the_largest_weight():
    with pytest.raises(ValueError, match="give largest_weight"):
        fedagg.secure_sum(fedagg.mean(), 1.0, largest_cohort=9)
    fedagg.secure_sum(fedagg.mean(weighted=False), 1.0, largest_cohort=9)


def test_a_payload_that_is_not_declared_is_refused():
    @flax.struct.dataclass
    class Half(fedagg.Payload):
        def decode(self):
            return jnp.zeros(2)

    stage = fedagg.Stage.stateless(
        lambda update, key: (update._replace(value=Half()), ())
    )
    aggregator = fedagg.aggregator(stage)

    with pytest.raises(TypeError, match="declare it, Stage.*codes=True"):
        aggregator.next(aggregator.init(jnp.zeros(2)), jnp.zeros((3, 2)))


@pytest.mark.parametrize(
    "client, message",
    [
        (lambda update, key: update, r"expected a pair \(Update.*got Update"),
        (lambda update, key: (update.value, ()), "expected a pair"),
        (lambda update, key: (update, (), ()), "expected a pair"),
        (lambda update, key: None, "got NoneType"),
    ],
)
def test_a_client_that_returns_something_else_is_told(client, message):
    aggregator = fedagg.aggregator(fedagg.Stage.stateless(client))

    with pytest.raises(TypeError, match=message):
        aggregator.next(aggregator.init(jnp.zeros(2)), jnp.zeros((3, 2)))


@pytest.mark.deep
def test_a_server_that_returns_something_else_is_told():
    def broken(*arguments: Any) -> Any:
        return jnp.zeros(2)

    aggregator = fedagg.aggregator(fedagg.clipping(1.0)._replace(server=broken))

    with pytest.raises(TypeError, match=r"the server of clipping\(1.0\): expected"):
        aggregator.next(aggregator.init(jnp.zeros(2)), jnp.zeros((3, 2)))


def test_stages_and_rounds_print_as_the_call_that_made_them():
    bound = fedagg.quantile_bound(1.0, 0.5, 0.2, multiplier=2.0, increment=0.0)
    stages = fedagg.zeroing(bound, name="first"), fedagg.mean(weighted=False)

    aggregator = fedagg.aggregator(*stages, sum_over=fedagg.in_chunks(3))

    assert repr(aggregator) == (
        "aggregator(zeroing(quantile_bound(1.0, 0.5, 0.2, multiplier=2.0), "
        "name='first'), mean(weighted=False), sum_over=in_chunks(3))"
    )
    assert repr(fedagg.combining(fedagg.median())) == "combining(median())"
    assert eval(repr(stages[0]), vars(fedagg)) is not None
    assert repr(fedagg.dp_aggregator(0.5, 20)) == "dp_aggregator(0.5, 20)"
