"""Rounds through Flower are the simulated ones."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

import fedagg
from fedagg import flower, secagg
from fedagg.flower import FedAgg, fedagg_mod
from tests.flower.deployment import (
    NODES,
    OneProcess,
    change_of,
    client_app,
    examples_of,
    first_model,
)
from tests.test_api import entries, parameters
from tests.test_pages import OF_FLOWER


def started(strategy: FedAgg, grid, rounds: int = 2):
    return strategy.start(grid, first_model(), num_rounds=rounds)


def strategy_of(aggregator, optimizer=None, kind=FedAgg, **options) -> FedAgg:
    nodes = {"min_train_nodes": NODES, "min_available_nodes": NODES}
    return kind(aggregator, optimizer, plan={"complete": True}, **nodes, **options)


def simulated(aggregator, optimizer, rounds: int, absent=()):
    """The same rounds in one program: the model, and the metrics of the last."""
    training = fedagg.federated_averaging(
        lambda variables, row, key: (row, {}), optimizer, aggregator
    )
    next_round = jax.jit(training.next)
    state = training.init({name: x.numpy() for name, x in first_model().items()})
    metrics = {}
    for number in range(1, rounds + 1):
        changes = [change_of(i, number) for i in range(NODES)]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *changes)
        weights = [0 if i in absent else examples_of(i) for i in range(NODES)]
        output = next_round(state, stacked, jnp.float32(jnp.array(weights)))
        state, metrics = output.state, output.metrics
    return state.variables, metrics


def secure() -> fedagg.Aggregator:
    return fedagg.secure_aggregator(largest_cohort=NODES, largest_weight=8.0)


AGGREGATORS = {
    "mean": lambda: fedagg.aggregator(fedagg.mean()),
    "robust": fedagg.robust_aggregator,
    "median": lambda: fedagg.combining(fedagg.median()),
    "secure": secure,
}


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_deployment_gives_the_model_and_the_metrics_of_the_simulation(name):
    aggregator, optimizer = AGGREGATORS[name](), optax.sgd(0.5, momentum=0.5)
    strategy = strategy_of(aggregator, optimizer)

    result = started(strategy, OneProcess(client_app(aggregator)))

    model, metrics = simulated(aggregator, optimizer, 2)
    assert list(result.arrays) == ["w", "b"]
    for key, x in result.arrays.items():
        np.testing.assert_allclose(x.numpy(), model[key], rtol=1e-6)
    assert result.train_metrics_clientapp[2] == pytest.approx(
        {key: float(x) for key, x in metrics.items()}
    )
    largest = max(float(x.max()) for x in model.values())
    assert result.evaluate_metrics_clientapp[2]["largest"] == pytest.approx(largest)


def test_clients_send_the_message_of_the_aggregator_and_nothing_else():
    aggregator = fedagg.aggregator(fedagg.mean(), fedagg.eden(2))
    grid = OneProcess(client_app(aggregator))

    started(strategy_of(aggregator), grid, rounds=1)

    model = [x.numpy() for x in first_model().values()]
    replies = [
        x
        for x in grid.messages
        if x.metadata.message_type == MessageType.TRAIN
        and x.metadata.reply_to_message_id
    ]
    bits = fedagg.message_bits(aggregator, model)
    header = fedagg.Wire(aggregator, model).header
    for reply in replies:
        assert list(reply.content) == ["fedagg"]
        assert list(reply.content["fedagg"]) == ["message"]
        assert len(reply.content["fedagg"]["message"]) == header + -(-bits // 8)


def same(arrays, model) -> bool:
    return all(np.array_equal(x.numpy(), model[key]) for key, x in arrays.items())


def spoiling(node: int, change):
    """Has the node's answers in its steps changed; `change` gets the step's number."""
    seen = {"steps": -1}

    def spoil(at: int, reply: Message) -> Message | None:
        if at != 2**64 - 1 - node or reply.metadata.message_type != MessageType.TRAIN:
            return reply
        seen["steps"] += 1
        return change(seen["steps"], reply)

    return spoil


def with_ours(reply: Message, **ours) -> Message:
    reply.content = RecordDict({"fedagg": ConfigRecord(ours)})
    return reply


def without_ours(reply: Message) -> Message:
    reply.content = RecordDict({})
    return reply


SPOILT = {
    "silent": lambda step, reply: None,
    "of other bytes": lambda step, reply: with_ours(reply, message=b"nonsense"),
    "without bytes": lambda step, reply: with_ours(reply, other=1),
    "without a record": lambda step, reply: without_ours(reply),
}


@pytest.mark.parametrize("change", SPOILT.values(), ids=SPOILT.keys())
@pytest.mark.parametrize("name", ["mean", "secure"])
def test_a_reply_that_is_none_of_the_round_is_of_an_absent_client(name, change):
    aggregator = AGGREGATORS[name]()
    grid = OneProcess(client_app(aggregator), spoiling(2, change))

    result = started(strategy_of(aggregator), grid, rounds=1)

    model, _ = simulated(aggregator, optax.sgd(1.0), 1, absent=[2])
    for key, x in result.arrays.items():
        np.testing.assert_allclose(x.numpy(), model[key], rtol=1e-6)


def test_a_node_that_fails_is_absent():
    aggregator = fedagg.aggregator(fedagg.mean())
    app = client_app(aggregator)

    def failing(message, context):
        if context.node_config["partition-id"] == 2 and "config" in message.content:
            raise RuntimeError("out of data")
        return app(message, context)

    result = started(strategy_of(aggregator), OneProcess(failing), rounds=1)

    model, _ = simulated(aggregator, optax.sgd(1.0), 1, absent=[2])
    for key, x in result.arrays.items():
        np.testing.assert_allclose(x.numpy(), model[key], rtol=1e-6)


@pytest.mark.parametrize("step", range(4))
def test_a_secure_round_is_that_of_who_survived_to_the_bit(step):
    """A client that is silent in a step; after the third its vector is in the sum."""
    aggregator = secure()
    silent = spoiling(2, lambda at, reply: None if at >= step else reply)
    grid = OneProcess(client_app(aggregator), silent)

    result = started(strategy_of(aggregator), grid, rounds=1)

    absent = [2] if step < 3 else []
    model, _ = simulated(aggregator, optax.sgd(1.0), 1, absent=absent)
    assert same(result.arrays, model)


def test_the_server_of_a_secure_round_gets_masks_and_clients_forget_theirs():
    aggregator = secure()
    grid = OneProcess(client_app(aggregator))

    started(strategy_of(aggregator), grid, rounds=1)

    model = [x.numpy() for x in first_model().values()]
    shared = aggregator.steps.broadcast(aggregator.init(model))
    vectors = [
        secagg.vector_of(
            aggregator.steps.client(
                shared, list(change_of(i, 1).values()), float(examples_of(i))
            )
        ).tobytes()
        for i in range(NODES)
    ]
    sent = [
        bytes(x.content["fedagg"].get("message", b""))
        for x in grid.messages
        if "fedagg" in x.content
    ]
    trips = 4 * NODES
    assert sum(map(bool, sent)) == trips
    assert not any(vector[:32] in x for vector in vectors for x in sent)
    assert all(not context.state for context in grid.contexts.values())


def test_a_secure_round_with_too_few_changes_nothing_and_the_next_one_goes_on():
    aggregator = secure()
    lost = {"left": 3}

    def spoil(node, reply):
        if reply.metadata.message_type == MessageType.TRAIN and lost["left"]:
            lost["left"] -= 1
            return None
        return reply

    strategy = strategy_of(aggregator)

    result = started(strategy, OneProcess(client_app(aggregator), spoil), rounds=2)

    model = {name: x.numpy() for name, x in first_model().items()}
    changes = [change_of(i, 2) for i in range(NODES)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *changes)
    weights = jnp.array([examples_of(i) for i in range(NODES)], jnp.float32)
    change = aggregator.next(aggregator.init(model), stacked, weights).value
    assert 1 not in result.train_metrics_clientapp
    for key, x in result.arrays.items():
        np.testing.assert_allclose(x.numpy(), model[key] + change[key], rtol=1e-6)


def test_rounds_go_on_from_a_file_as_if_they_had_never_stopped(tmp_path):
    aggregator = secure()  # whose sums do not depend on who comes first
    optimizer = optax.sgd(0.5, momentum=0.5)
    path = tmp_path / "rounds"
    once = strategy_of(aggregator, optimizer)
    started(once, OneProcess(client_app(aggregator)), rounds=2)

    for _ in range(2):
        again = strategy_of(aggregator, optimizer, path=path, kind=Continued)
        started(again, OneProcess(client_app(aggregator)), rounds=1)

    assert again.number == 2
    for x, y in zip(
        jax.tree.leaves(once.state), jax.tree.leaves(again.state), strict=True
    ):
        assert np.array_equal(x, y)


@pytest.mark.parametrize("what", ["bits", "cut off", "something else", "others"])
def test_a_file_that_is_damaged_or_of_other_rounds_is_refused_by_name(tmp_path, what):
    aggregator = fedagg.aggregator(fedagg.mean())
    path = tmp_path / "rounds"
    grid = OneProcess(client_app(aggregator))
    started(strategy_of(aggregator, path=path), grid, rounds=1)
    whole = path.read_bytes()
    wrong = {
        "bits": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "cut off": whole[:-1],
        "something else": b"{}",
        "others": whole,
    }[what]
    path.write_bytes(wrong)
    optimizer = optax.adam(1.0) if what == "others" else optax.sgd(1.0)

    with pytest.raises(ValueError, match="rounds: expected rounds of a FedAgg"):
        started(strategy_of(aggregator, optimizer, path=path), grid, rounds=1)

    assert path.read_bytes() == wrong


class Continued(FedAgg):
    """Tells clients the number of its own round, where Flower counts from one again."""

    def configure_train(self, server_round, arrays, config, grid):
        return super().configure_train(self.number + 1, arrays, config, grid)


def test_noise_of_the_clients_is_in_a_secure_sum():
    aggregator = fedagg.distributed_dp_aggregator(0.2, NODES)
    strategy = strategy_of(aggregator)

    result = started(strategy, OneProcess(client_app(aggregator)), rounds=1)

    assert all(np.isfinite(x.numpy()).all() for x in result.arrays.values())
    assert not same(result.arrays, {k: x.numpy() for k, x in first_model().items()})


REFUSED = {
    "signed": ({"complete": True, "signed": True}, {}, "neither signed nor hybrid"),
    "hybrid": ({"complete": True, "hybrid": True}, {}, "neither signed nor hybrid"),
    "of few": ({"complete": True}, {"smallest_cohort": NODES}, "smallest cohort"),
}


@pytest.mark.parametrize(("plan", "demands", "why"), REFUSED.values(), ids=REFUSED)
def test_a_plan_that_is_not_as_demanded_is_refused_by_clients(plan, demands, why):
    aggregator = secure()
    refused = []

    def app(message, context):
        try:
            return client_app(aggregator, **demands)(message, context)
        except secagg.ContradictionError as error:
            refused.append(str(error))
            raise

    strategy = FedAgg(aggregator, plan=plan, min_train_nodes=NODES)
    if plan.get("signed"):
        with pytest.raises(ValueError, match="roster"):
            started(strategy, OneProcess(app), rounds=1)
    else:
        started(strategy, OneProcess(app), rounds=1)

    assert len(refused) == NODES and all(why in x for x in refused)


def another_rate(content: RecordDict) -> None:
    content["config"] = ConfigRecord({**content["config"], "rate": 0.5})


def another_record(content: RecordDict) -> None:
    content["more"] = ConfigRecord({"rate": 0.5})


def other_names(content: RecordDict) -> None:
    content["arrays"] = ArrayRecord(
        dict(zip("bw", content["arrays"].values(), strict=True))
    )


@pytest.mark.parametrize("lie", [another_rate, another_record, other_names])
def test_a_node_that_is_told_anything_else_than_others_does_not_train(lie):
    aggregator, trained, refused = secure(), [], []
    app = client_app(aggregator)

    def lied_to(message, context):
        partition = context.node_config["partition-id"]
        is_first = message.metadata.message_type == MessageType.TRAIN
        if not (is_first and "config" in message.content):
            return app(message, context)
        if partition == 2:
            lie(message.content)
        try:
            reply = app(message, context)
        except secagg.ContradictionError as error:
            refused.append((partition, str(error)))
            raise
        trained.append(partition)
        return reply

    started(strategy_of(aggregator), OneProcess(lied_to), rounds=1)

    assert sorted(trained) == [i for i in range(NODES) if i != 2]
    [(partition, why)] = refused
    assert partition == 2 and "for what the client was told" in why


def test_a_client_trains_for_no_server_without_the_strategy():
    grid = OneProcess(client_app(fedagg.aggregator(fedagg.mean())))
    content = RecordDict({"arrays": first_model()})
    [node, *_] = grid.get_node_ids()

    [reply] = grid.send_and_receive([Message(content, node, MessageType.TRAIN)])

    assert "Expected a message of a server with FedAgg" in reply.error.reason


def test_an_aggregator_of_another_client_is_refused():
    ours, theirs = fedagg.aggregator(fedagg.mean()), fedagg.robust_aggregator()
    grid = OneProcess(client_app(theirs))

    result = started(strategy_of(ours), grid, rounds=1)

    assert same(result.arrays, {k: x.numpy() for k, x in first_model().items()})


def test_the_page_has_the_public_names_and_their_docstrings_their_arguments():
    assert OF_FLOWER == {f"fedagg.flower.{name}" for name in flower.__all__}
    for function in (fedagg_mod, FedAgg.__init__, FedAgg.start):
        described = FedAgg if function is FedAgg.__init__ else function
        expected = [x for x in parameters(function) if x != "self"]
        assert entries(described, "Args") == expected


def test_what_the_page_shows_runs(tmp_path, monkeypatch, capsys):
    page = pathlib.Path(__file__).parents[2] / "docs/coming_from/flower.md"
    shown: dict = {}
    for snippet in re.findall(r"```py\n(.*?)```", page.read_text(), re.S):
        exec(snippet, shown)
    monkeypatch.chdir(tmp_path)

    shown["main"](OneProcess(shown["client"]), None)

    assert (tmp_path / "rounds").exists()
    assert capsys.readouterr().out.rstrip().endswith(" 0.0")


@pytest.mark.deep
@pytest.mark.parametrize("name", ["robust", "secure"])
def test_flowers_own_runtime_gives_the_simulation_of_fedagg(name):
    """Its server, its link and its clients, which are processes of their own."""
    program = [sys.executable, "-m", "tests.flower.simulation", name]

    done = subprocess.run(program, capture_output=True, text=True, timeout=600)

    assert done.returncode == 0, done.stderr[-2000:]
    given = json.loads(done.stdout.strip().splitlines()[-1])
    model, _ = simulated(AGGREGATORS[name](), optax.sgd(1.0), 2)
    for key, x in model.items():
        np.testing.assert_allclose(given[key], x, rtol=1e-6)
