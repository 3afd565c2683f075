"""Any aggregator under a secure sum, over the real protocol, is its round in jit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from fedagg import secagg
from tests.helpers import TEMPLATE, assert_same, make_updates
from tests.secagg.rounds import CONTEXT

CLIENTS = 7
DROP = {2: "vectors", 5: "shares", 6: "openings"}
clip = fedagg.quantile_bound(1.0, 0.8, 0.2)
NOISE = {"smallest_cohort": 5, "largest_cohort": CLIENTS}

AGGREGATORS = {
    "secure": fedagg.secure_aggregator(largest_cohort=10),
    "unweighted": fedagg.secure_aggregator(weighted=False, largest_cohort=CLIENTS),
    "skellam": fedagg.distributed_dp_aggregator(0.2, CLIENTS, **NOISE),
    "discrete_gaussian": fedagg.distributed_dp_aggregator(
        0.2, CLIENTS, 18, mechanism="discrete_gaussian", **NOISE
    ),
    "own": fedagg.aggregator(
        fedagg.secure_sum(
            fedagg.chain(fedagg.clipping(clip), fedagg.mean()),
            fedagg.quantile_bound(5.0, 0.9, 0.5),
            largest_cohort=CLIENTS,
            largest_weight=20.0,
            bits=26,
        )
    ),
    "grouped": fedagg.aggregator(
        fedagg.grouped(
            {
                "b": fedagg.secure_sum(fedagg.chain(), 50.0, largest_cohort=9),
                "*": fedagg.secure_sum(
                    fedagg.mean(), 900.0, largest_cohort=8, largest_weight=20.0
                ),
            }
        )
    ),
    "integers": fedagg.aggregator(
        fedagg.secure_modular_sum(
            fedagg.discretization(0.25, stochastic=True),
            bits=20,
            largest_cohort=CLIENTS,
            largest_weight=500.0,
        )
    ),
}
# One quick, and the others, most of which take seconds to compile, in the deep half.
some = [
    x if x == "own" else pytest.param(x, marks=pytest.mark.deep) for x in AGGREGATORS
]


def over_the_protocol(aggregator, template, state, sent, drop):
    """The round of those who do not drop out: five lines a side."""
    plan = secagg.Plan.for_aggregator(
        aggregator, template, CLIENTS, CONTEXT, complete=True, threshold=3
    )
    vectors = [secagg.vector_of(message) for message in sent]
    total, survivors = secagg.simulate(plan, vectors, drop=drop)
    total = secagg.total_of(aggregator, template, total)
    key = jax.random.fold_in(jax.random.key(4), 2**32 - 1)
    return jax.jit(aggregator.steps.server)(state, total, key), survivors


@pytest.mark.parametrize("name", some)
@pytest.mark.parametrize("drop", [{}, DROP], ids=["all", "some"])
def test_a_round_over_the_protocol_is_the_round_in_jit_to_the_bit(name, drop):
    aggregator, key = AGGREGATORS[name], jax.random.key(4)
    updates = make_updates(CLIENTS)
    state = aggregator.init(TEMPLATE)
    shared = aggregator.steps.broadcast(state)
    client = jax.jit(aggregator.steps.client)

    sent = [
        client(
            shared,
            *jax.tree.map(lambda x, i=i: x[i], updates),
            jax.random.fold_in(key, i),
        )
        for i in range(CLIENTS)
    ]
    real, survivors = over_the_protocol(aggregator, TEMPLATE, state, sent, drop)
    alive = np.isin(np.arange(CLIENTS), survivors)
    weights = jnp.where(alive, updates.weight, 0.0)
    simulated = jax.jit(aggregator.next)(state, updates.value, weights, key)

    assert len(survivors) == CLIENTS - 2 * bool(drop)
    assert_same(simulated, real)
    assert any(np.asarray(x).any() for x in jax.tree.leaves(real.value))


def shares_of(rows: int = 6):
    """A regression whose clients have a few examples each."""
    draw = np.random.default_rng(0)
    examples = draw.normal(size=(CLIENTS, rows, 3)).astype(np.float32)
    return examples, examples @ np.array([1.0, -2.0, 0.5], np.float32)


def work(variables, row, key):
    """One step on a client's examples, and nothing that is told of it."""
    del key
    x, y = row
    error = jnp.einsum("ni,i->n", x, variables["w"], precision="highest") - y
    return {"w": -0.01 * jnp.einsum("ni,n->i", x, error, precision="highest")}, {}


@pytest.mark.parametrize(
    "name", ["own", pytest.param("skellam", marks=pytest.mark.deep)]
)
def test_a_training_over_the_protocol_sums_what_it_sums_in_jit(name):
    training = fedagg.federated_averaging(work, optax.sgd(1.0), AGGREGATORS[name])
    variables, rows = {"w": jnp.zeros(3)}, shares_of()
    state = training.init(variables)
    client = jax.jit(training.steps.client)
    keys = [fedagg.secret_key() for _ in range(CLIENTS)]  # nobody else has them

    shared = training.steps.broadcast(state)
    sent = [
        client(shared, jax.tree.map(lambda x, i=i: x[i], rows), 1.0, keys[i])
        for i in range(CLIENTS)
    ]
    real, survivors = over_the_protocol(training, variables, state, sent, DROP)

    total = None
    for i in survivors:
        total = training.steps.add(total, sent[i])
    key = jax.random.fold_in(jax.random.key(4), 2**32 - 1)
    assert_same(jax.jit(training.steps.server)(state, total, key), real)
    assert float(jnp.abs(real.value["w"]).max()) > 0.0


def test_a_plan_and_demands_are_those_of_the_aggregator():
    aggregator = AGGREGATORS["discrete_gaussian"]

    plan = secagg.Plan.for_aggregator(
        aggregator, TEMPLATE, CLIENTS, CONTEXT, mode="semi-honest", adversary=0.0
    )
    demands = secagg.Demands.for_aggregator(
        aggregator, TEMPLATE, CONTEXT, mode="semi-honest", adversary=0.0
    )

    # Eight entries rotated, a count of the clip, a note of two, and two counts.
    assert (plan.length, plan.bits, plan.quorum) == (8 + 1 + 2 + 2, 18, 6)
    assert (demands.bits, demands.smallest_cohort, demands.largest_cohort) == (18, 5, 7)
    demands.check(plan)
    with pytest.raises(secagg.ContradictionError, match="smallest cohort"):
        demands.check(dataclasses.replace(plan, quorum=4))


def test_more_clients_than_the_sum_has_room_for_are_refused():
    aggregator = AGGREGATORS["own"]

    with pytest.raises(ValueError, match="at most 7 clients"):
        secagg.Plan.for_aggregator(aggregator, TEMPLATE, CLIENTS + 1, CONTEXT)


def test_the_sum_has_room_for_as_many_as_the_noise_in_it():
    """Of more clients the noise releases nothing, however large the sum around it."""
    noise = fedagg.skellam_noise(0.2, 1.0, 5, largest_cohort=6)
    for largest, room in ((9, 6), (5, 5)):
        aggregator = fedagg.aggregator(
            fedagg.secure_modular_sum(noise, bits=20, largest_cohort=largest)
        )

        demands = secagg.Demands.for_aggregator(aggregator, TEMPLATE, CONTEXT)

        assert (demands.smallest_cohort, demands.largest_cohort) == (5, room)
        with pytest.raises(ValueError, match=f"at most {room} clients"):
            secagg.Plan.for_aggregator(aggregator, TEMPLATE, room + 1, CONTEXT)


OPEN = {
    "plain": (fedagg.robust_aggregator(), "value"),
    "coded": (fedagg.aggregator(fedagg.mean(), fedagg.quantization(8, 0)), "value"),
    "combined": (fedagg.combining(fedagg.median()), "value"),
    "beside": (
        fedagg.aggregator(
            fedagg.grouped(
                {
                    "b": fedagg.mean(),
                    "*": fedagg.secure_sum(fedagg.chain(), 5.0, largest_cohort=9),
                }
            )
        ),
        "value",
    ),
    "noise at the server": (fedagg.dp_aggregator(1.0, 100), "value"),
}


@pytest.mark.parametrize("name", OPEN)
def test_an_aggregator_with_anything_in_the_clear_is_refused_by_its_part(name):
    aggregator, part = OPEN[name]

    with pytest.raises(ValueError, match=f"^{part}.* would be in the clear"):
        secagg.Plan.for_aggregator(aggregator, TEMPLATE, 20, CONTEXT)
    with pytest.raises(ValueError, match="in the clear"):
        secagg.Demands.for_aggregator(aggregator, TEMPLATE, CONTEXT)


def test_sums_of_different_bits_beside_each_other_are_refused():
    def secure(bits: int) -> fedagg.Stage:
        return fedagg.secure_sum(fedagg.chain(), 5.0, largest_cohort=9, bits=bits)

    aggregator = fedagg.aggregator(fedagg.grouped({"b": secure(20), "*": secure(24)}))

    with pytest.raises(ValueError, match="the same bits"):
        secagg.Plan.for_aggregator(aggregator, TEMPLATE, 9, CONTEXT)


def test_metrics_of_the_work_are_refused_before_anything_is_sent():
    steps, state = AGGREGATORS["own"].steps, AGGREGATORS["own"].init(TEMPLATE)
    value = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), TEMPLATE)

    message = steps.client(
        steps.broadcast(state),
        value,
        work=lambda row, key: (row, {"loss": jnp.float32(1.0)}),
    )

    with pytest.raises(ValueError, match="'loss'.* would be in the clear"):
        secagg.vector_of(message)
    with pytest.raises(TypeError, match="memory"):
        secagg.vector_of((message, value))


def test_a_sum_of_another_form_is_refused():
    aggregator = AGGREGATORS["own"]
    plan = secagg.Plan.for_aggregator(
        aggregator, TEMPLATE, CLIENTS, CONTEXT, complete=True
    )
    length = plan.length

    for total in (np.zeros(length + 1, np.uint32), np.zeros(length, np.int64)):
        with pytest.raises(ValueError, match=f"uint32 \\[{length}\\]"):
            secagg.total_of(aggregator, TEMPLATE, total)
