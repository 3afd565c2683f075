"""The loop for people: what it runs, and what it goes on from."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg

CLIENTS = 12
RANDOM = np.random.default_rng(0)
TARGETS = RANDOM.normal(size=(CLIENTS, 3)).astype(np.float32)
TABLE = fedagg.ClientTable.of(
    [TARGETS[i] + np.zeros((1 + i % 3, 3), np.float32) for i in range(CLIENTS)]
)
KEY = jax.random.key(3)


def loss(variables, examples, key):
    return jnp.sum((examples - variables[None]) ** 2, axis=-1), {}


def make(aggregator=None):
    work = fedagg.local_training(loss, optax.sgd(0.1), batch_size=2)
    aggregator = aggregator or fedagg.robust_aggregator()
    server = optax.sgd(1.0, momentum=0.5)
    return fedagg.federated_averaging(work, server, aggregator)


def distance(variables):
    return {"distance": jnp.mean(jnp.square(variables - TARGETS.mean(axis=0)))}


def run(
    training=None,
    data: Any = TABLE,
    rounds=9,
    stop=None,
    sampler=None,
    **options: Any,
):
    """The rounds, as NumPy arrays; left after the one numbered `stop`."""
    found = []
    given: dict[str, Any] = {"key": KEY, "weights": TABLE.sizes} | options
    sampler = sampler or fedagg.fixed_size(4, CLIENTS)
    for each in fedagg.train(
        *(training or make(), jnp.zeros(3), data, sampler),
        rounds=rounds,
        **given,
    ):
        found.append(jax.device_get(each))
        if each.number == stop:
            break
    return found


def assert_same(found, expected):
    assert [x.number for x in found] == [x.number for x in expected]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def by_hand(rounds):
    """The same rounds in a loop of one's own."""
    training, sampler = make(), fedagg.fixed_size(4, CLIENTS)
    state, next_round = training.init(jnp.zeros(3)), jax.jit(training.next)
    draws = sampler.init(CLIENTS, KEY)
    for number in range(rounds):
        draws, (rows, present) = sampler.next(draws, jax.random.fold_in(KEY, 2**32 - 2))
        cohort = TABLE[rows]
        state, *_ = next_round(
            state,
            cohort,
            present * np.float32(cohort.sizes),
            jax.random.fold_in(KEY, number),
        )
    return state


@pytest.mark.deep
def test_it_is_a_loop_of_ones_own():
    found = run(rounds=3)

    expected = jax.device_get(by_hand(3))
    jax.tree.map(np.testing.assert_array_equal, found[-1].state, expected)


@pytest.mark.deep
def test_an_interrupted_run_is_to_the_bit_the_one_that_was_not(tmp_path):
    options = {"evaluate": distance, "every": 2, "rounds": 5}
    whole = run(folder=tmp_path / "whole", **options)

    run(folder=tmp_path / "parts", stop=2, **options)  # the checkpoint is of two
    rest = run(folder=tmp_path / "parts", key=jax.random.key(9), **options)

    assert_same(rest, whole[2:])
    logs = [fedagg.read_metrics(tmp_path / x) for x in ("whole", "parts")]
    assert logs[0] == logs[1] and [x["step"] for x in logs[0]] == [*range(5)]
    assert run(folder=tmp_path / "parts", **options) == []
    more = run(folder=tmp_path / "parts", **(options | {"rounds": 6}))
    assert [x.number for x in more] == [5]


def private():
    return fedagg.aggregator(fedagg.gaussian_noise(2.0, 1.0, 3.0))


SAMPLERS = {
    "poisson": lambda: fedagg.poisson(0.3),
    "cyclic": lambda: fedagg.cyclic(3),
    "separated": lambda: fedagg.separated(2, size=4),
}


@pytest.mark.deep
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("is_on_host", [False, True])
def test_whoever_draws_and_wherever_examples_are_it_goes_on(name, is_on_host, tmp_path):
    sampler = SAMPLERS[name]()
    data = TABLE
    if is_on_host:
        examples = np.asarray(TABLE.examples)
        data = dataclasses.replace(TABLE, examples=examples)
    options = {"every": 2, "sampler": sampler, "data": data, "rounds": 6}
    on_the_device = run(**(options | {"data": TABLE}))

    whole = run(**options)
    run(folder=tmp_path, stop=4, **options)
    rest = run(folder=tmp_path, **options)

    assert_same(whole, on_the_device)
    assert_same(rest, whole[4:])


@pytest.mark.deep
def test_memories_of_a_population_are_saved_with_the_rest(tmp_path):
    training = remembering(clients=CLIENTS)
    options = {"training": training, "data": (TABLE, np.arange(CLIENTS)), "every": 2}

    whole = run(rounds=5, **options)
    run(rounds=5, folder=tmp_path, stop=3, **options)
    rest = run(rounds=5, folder=tmp_path, **options)

    assert_same(rest, whole[4:])
    assert whole[-1].state.memories.any()


def remembering(**more):
    def work(variables, row, key, memory):
        change = 0.1 * (row.padded()[0][0] - variables) + 0.1 * memory
        return change, {}, memory + change

    return fedagg.federated_averaging(
        fedagg.RememberingWork(jnp.zeros_like, work),
        optax.sgd(1.0),
        fedagg.aggregator(fedagg.mean()),
        **more,
    )


def on_host(folder=None, clients=CLIENTS):
    return fedagg.ClientMemories(jnp.zeros(3), clients, folder)


def test_memories_on_the_host_are_as_those_in_the_state():
    inside = run(
        remembering(clients=CLIENTS), data=(TABLE, np.arange(CLIENTS)), rounds=4
    )
    memories = on_host()

    found = run(remembering(), rounds=4, memories=memories)

    last, expected = found[-1].state, inside[-1].state
    np.testing.assert_allclose(last.variables, expected.variables, rtol=1e-6)
    kept = memories[range(CLIENTS)]
    np.testing.assert_allclose(kept, expected.memories, rtol=1e-6)
    assert kept.any() and last.memories is None


@pytest.mark.deep
@pytest.mark.parametrize("name", ["fixed", *SAMPLERS])
def test_memories_on_the_host_are_resumed_to_the_bit(name, tmp_path):
    sampler = SAMPLERS[name]() if name in SAMPLERS else None
    options = {"rounds": 7, "every": 2, "sampler": sampler}
    whole, kept, memories = {}, {}, on_host()
    for path, stops in (("whole", [None]), ("parts", [0, 4, None])):
        found = []
        for stop in stops:
            memories = on_host(tmp_path / path / "memories")  # the last commit's
            folder = tmp_path / path / "run"
            given = options | {"memories": memories, "folder": folder, "stop": stop}
            found = run(remembering(), **given)
        whole[path], kept[path] = found, memories[range(CLIENTS)]

    assert [x.number for x in whole["parts"]] == [4, 5, 6]
    assert_same(whole["parts"], whole["whole"][4:])
    np.testing.assert_array_equal(kept["parts"], kept["whole"])
    assert kept["whole"].any()


@pytest.mark.deep
def test_memories_go_back_to_a_checkpoint_that_is_older_than_their_commit(tmp_path):
    """What is left if the program ends between the commit and the checkpoint."""
    options = {"every": 2, "folder": tmp_path / "run"}
    whole = run(remembering(), rounds=6, memories=on_host())
    memories = on_host(tmp_path / "memories")
    run(remembering(), rounds=4, memories=memories, **options)
    memories[[0]] = np.full((1, 3), 7.0, np.float32)
    memories.commit(5)

    rest = run(remembering(), rounds=6, memories=memories, **options)

    assert_same(rest, whole[4:])


def test_it_stops_where_nothing_is_gained(tmp_path):
    values = iter([3.0, 2.0, np.nan, 2.0, 1.0, 1.5, 1.0, 0.5])
    options = {"every": 1, "minimized": "loss", "patience": 2, "folder": tmp_path}

    found = run(evaluate=lambda x: {"loss": next(values)}, **options)

    # NaN and an equal number are no gain.
    assert [x.metrics["loss"] for x in found][:2] == [3.0, 2.0]
    assert len(found) == 4
    assert run(evaluate=lambda x: {"loss": 0.0}, **options) == []


@pytest.mark.deep
def test_it_stops_at_the_budget_and_says_what_is_spent(tmp_path):
    training = make(private())
    sampler = fedagg.poisson(0.25)
    budget = fedagg.budget(
        *(training, jnp.zeros(3), 2.0, 1e-3),
        neighbors="add_or_remove",
        participation=sampler,
        accountant="rdp",
    )
    options = {"training": training, "sampler": sampler, "budget": budget}
    assert 2 < budget.rounds < 60

    found = run(rounds=100, every=2, weights=None, folder=tmp_path, **options)

    assert len(found) == budget.rounds
    spent = found[-1].metrics["privacy/epsilon"]
    state = budget.init()
    for _ in found:
        state = budget.next(state)
    assert spent == budget.epsilon(state) <= 2.0
    assert "privacy/epsilon" not in found[0].metrics
    assert run(rounds=100, weights=None, folder=tmp_path, **options) == []


def test_a_bar_and_tensorboard_follow_the_rounds(tmp_path, capsys):
    run(rounds=3, folder=tmp_path, tensorboard=True, progress=True)

    assert "3/3" in capsys.readouterr().err
    assert [*tmp_path.glob("events*")]


REFUSED = {
    "every": ({"every": 0}, ValueError, "every must be"),
    "patience": ({"patience": 0}, ValueError, "patience must be"),
    "minimized": ({"minimized": "loss"}, ValueError, "is a metric of evaluate"),
    "tensorboard": ({"tensorboard": True}, ValueError, "needs a folder"),
    "sampler": ({"sampler": 0.1}, TypeError, "sampler: expected a Sampler"),
    "weights": ({"weights": np.ones(2)}, ValueError, "weights: expected shape"),
    "key": ({"key": None}, ValueError, "train draws"),
    "memories": (
        {"memories": on_host(clients=3), "training": remembering()},
        ValueError,
        "expected those of 12 clients, got ClientMemories of 3",
    ),
    "memories in no folder": (
        {"memories": on_host(), "training": remembering(), "folder": True},
        ValueError,
        "go_back is of memories in a folder",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_before_a_round(name, tmp_path):
    options, kind, match = REFUSED[name]
    if "folder" in options:
        options = options | {"folder": tmp_path}

    with pytest.raises(kind, match=match):
        run(**options)


def test_what_is_minimized_is_a_metric_of_the_evaluation():
    with pytest.raises(ValueError, match="minimized='loss' is none"):
        run(rounds=1, evaluate=distance, minimized="loss")
