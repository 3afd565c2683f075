"""A total counts each client once: among threads, and after the server was killed."""

import itertools
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.deployment.messages import AGGREGATORS, CLIENTS, TEMPLATE, messages_of
from tests.helpers import assert_close, assert_same

QUICK = ("mean",)
every_kind = pytest.mark.parametrize(
    "name",
    [x if x in QUICK else pytest.param(x, marks=pytest.mark.deep) for x in AGGREGATORS],
)


def added_in_turn(name: str, sent: list):
    total = None
    for message in sent:
        total = AGGREGATORS[name].steps.add(total, message)
    return total


@every_kind
@pytest.mark.parametrize("on_device", [False, True], ids=["numpy", "device"])
def test_it_is_the_total_of_the_steps(name, on_device):
    wire = fedagg.Wire(AGGREGATORS[name], TEMPLATE)
    _, sent = messages_of(name)
    device = jax.devices()[1] if on_device else None

    running = fedagg.RunningTotal(wire, 3, device=device)
    for client, message in enumerate(sent):
        assert running.add(client, wire.encode(message, 3))
    total = running.total

    assert running.clients == set(range(CLIENTS))
    assert jax.tree.structure(total) == jax.tree.structure(added_in_turn(name, sent))
    assert_same(total, added_in_turn(name, sent))


def test_it_adds_by_what_it_is_given():
    wire = fedagg.Wire(AGGREGATORS["sign"], TEMPLATE)
    _, sent = messages_of("sign", 2)
    running = fedagg.RunningTotal(wire, 3, add=jax.jit(wire.aggregator.steps.add))

    for client, message in enumerate(sent):
        running.add(client, wire.encode(message, 3))

    assert_close(running.total, added_in_turn("sign", sent), rtol=1e-6)


def test_a_total_that_was_taken_stays_as_it_is():
    wire = fedagg.Wire(AGGREGATORS["mean"], TEMPLATE)
    _, sent = messages_of("mean")
    running = fedagg.RunningTotal(wire, 0)

    assert running.total is None
    running.add(0, sent[0])
    first = running.total
    running.add(1, sent[1])

    assert_same(first, added_in_turn("mean", sent[:1]))


def test_who_comes_after_the_round_was_closed_is_not_in_it(tmp_path):
    wire = fedagg.Wire(AGGREGATORS["mean"], TEMPLATE)
    _, sent = messages_of("mean")
    path = tmp_path / "total"
    running = fedagg.RunningTotal(wire, 0, path=path)
    running.add(0, sent[0])

    total = running.close()

    assert not running.add(1, sent[1]) and not running.add(0, sent[0])
    assert running.clients == {0}
    expected = added_in_turn("mean", sent[:1])
    assert_same(total, expected)
    assert_same(running.close(), expected)
    # A server that was killed before its step goes on with the round.
    assert fedagg.RunningTotal(wire, 0, path=path).add(1, sent[1])


def test_a_message_that_is_decoded_while_the_round_is_closed_is_not_in_it():
    wire = fedagg.Wire(AGGREGATORS["mean"], TEMPLATE)
    _, sent = messages_of("mean")
    closed = []

    def closing(total, message):
        closed.append(running.close())
        return wire.aggregator.steps.add(total, message)

    running = fedagg.RunningTotal(wire, 0, add=closing)

    assert not running.add(0, sent[0])
    assert closed == [None] and running.total is None and running.clients == set()


@pytest.mark.parametrize("name", ["secure", "quantization"])
@pytest.mark.deep
def test_many_threads_count_each_client_once(name):
    wire = fedagg.Wire(AGGREGATORS[name], TEMPLATE)
    state, sent = messages_of(name)
    data = [wire.encode(x, 1) for x in sent]
    clients, threads = 40, 8
    running = fedagg.RunningTotal(wire, 1)
    together = threading.Barrier(threads)

    def thread(seed: int) -> int:
        together.wait()
        order = np.random.default_rng(seed).permutation(clients).tolist()
        return sum(running.add(i, data[i % CLIENTS]) for i in order)

    with ThreadPoolExecutor(threads) as pool:
        counted = list(pool.map(thread, range(threads)))

    assert sum(counted) == clients == len(running.clients)
    expected = added_in_turn(name, [sent[i % CLIENTS] for i in range(clients)])
    assert_close(running.total, expected, rtol=1e-5)


def test_a_message_that_is_refused_changes_nothing_and_another_may_come():
    wire = fedagg.Wire(AGGREGATORS["mean"], TEMPLATE)
    _, sent = messages_of("mean")
    running = fedagg.RunningTotal(wire, 1)
    running.add(0, sent[0])

    with pytest.raises(ValueError, match="this round"):
        running.add(1, wire.encode(sent[1], 2))
    with pytest.raises(TypeError):
        running.add(1, None)
    wrong = jax.tree.map(lambda x: jnp.zeros((2, *x.shape)), sent[1].value)
    with pytest.raises(ValueError, match="shapes"):
        running.add(1, sent[1]._replace(value=wrong))

    assert running.clients == {0}
    assert running.add(1, wire.encode(sent[1], 1))
    assert not running.add(1, wire.encode(sent[1], 1))
    assert_same(running.total, added_in_turn("mean", sent[:2]))


@every_kind
def test_a_server_goes_on_from_its_file(name, tmp_path):
    wire = fedagg.Wire(AGGREGATORS[name], TEMPLATE)
    state, sent = messages_of(name)
    path = tmp_path / "total"

    first = fedagg.RunningTotal(wire, 3, path=path)
    for client in (0, 1, 2):
        first.add(client, sent[client])
    again = fedagg.RunningTotal(wire, 3, path=path)
    counted = [again.add(i, x) for i, x in enumerate(sent)]

    assert counted == [False, False, False, True, True]
    assert_same(again.total, added_in_turn(name, sent))
    assert_same(
        fedagg.RunningTotal(wire, 3, path=path, device=jax.devices()[1]).total,
        again.total,
    )


def test_what_came_after_the_last_write_is_sent_again(tmp_path):
    wire = fedagg.Wire(AGGREGATORS["mean"], TEMPLATE)
    _, sent = messages_of("mean")
    path = tmp_path / "total"

    first = fedagg.RunningTotal(wire, 3, path=path, every=2)
    for client in (0, 1, 2):
        first.add(client, sent[client])
    assert fedagg.RunningTotal(wire, 3, path=path).clients == {0, 1}
    first.save()

    assert fedagg.RunningTotal(wire, 3, path=path).clients == {0, 1, 2}


def test_the_file_of_another_round_is_refused(tmp_path):
    wire = fedagg.Wire(AGGREGATORS["mean"], TEMPLATE)
    path = tmp_path / "total"
    fedagg.RunningTotal(wire, 3, path=path).add(0, messages_of("mean")[1][0])

    with pytest.raises(ValueError, match="round 4"):
        fedagg.RunningTotal(wire, 4, path=path)
    with pytest.raises(ValueError, match="of this wire"):
        other = fedagg.Wire(fedagg.aggregator(fedagg.mean()), TEMPLATE)
        fedagg.RunningTotal(other, 3, path=path)
    path.write_bytes(b"PK what is no archive")
    with pytest.raises(ValueError, match="file of a RunningTotal"):
        fedagg.RunningTotal(wire, 3, path=path)


def test_a_file_that_is_damaged_is_refused_by_name_or_is_read_as_it_was(tmp_path):
    """Each byte with a bit flipped, and the file cut off anywhere; stamps are free."""
    wire = fedagg.Wire(AGGREGATORS["mean"], TEMPLATE)
    path, refused = tmp_path / "total", 0
    first = fedagg.RunningTotal(wire, 3, path=path)
    first.add(4, messages_of("mean")[1][0])
    whole, expected = path.read_bytes(), first.total
    flipped = [
        whole[:i] + bytes([x ^ 1 << i % 8]) + whole[i + 1 :]
        for i, x in enumerate(whole)
    ]

    for data in [*flipped, *(whole[:i] for i in range(0, len(whole), 29))]:
        path.write_bytes(data)
        try:
            again = fedagg.RunningTotal(wire, 3, path=path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert again.clients == {4}
            assert_same(again.total, expected)

    assert refused > len(whole) / 2


def test_a_file_that_cannot_be_written_is_an_error_and_tried_again(tmp_path):
    wire = fedagg.Wire(AGGREGATORS["mean"], TEMPLATE)
    _, sent = messages_of("mean")
    folder = tmp_path / "later"
    running = fedagg.RunningTotal(wire, 3, path=folder / "total")

    with pytest.raises(FileNotFoundError):
        running.add(0, sent[0])
    folder.mkdir()

    assert not running.add(0, sent[0])
    assert fedagg.RunningTotal(wire, 3, path=folder / "total").clients == {0}


SERVER = """
import pathlib, sys
import jax.numpy as jnp
import fedagg

wire = fedagg.Wire(fedagg.aggregator(fedagg.mean()), jnp.zeros(3))
running = fedagg.RunningTotal(wire, 7, path=sys.argv[1])
for line in sys.stdin:
    client = int(line)
    steps = wire.aggregator.steps
    message = steps.client(((),), jnp.full(3, float(client)), 1.0)
    print(client, running.add(client, wire.encode(message, 7)), flush=True)
"""


@pytest.mark.deep
@pytest.mark.thorough
def test_a_server_that_is_killed_at_any_time_counts_nobody_twice(tmp_path):
    path, answered = tmp_path / "total", set()
    wire = fedagg.Wire(fedagg.aggregator(fedagg.mean()), jnp.zeros(3))

    for life, fewest in enumerate((3, 5)):
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdin is not None and server.stdout is not None
        with server:
            for client in range(40):  # all send again to each server
                print(client, file=server.stdin, flush=True)
            for line in itertools.islice(server.stdout, fewest):
                client, was_added = line.split()
                assert (was_added == "False") == (int(client) in answered)
                answered.add(int(client))
            server.kill()  # in the middle of a message, for all that is known
        running = fedagg.RunningTotal(wire, 7, path=path)
        assert answered <= running.clients, life
        answered = set(running.clients)
        mean = wire.aggregator.steps.server(
            wire.aggregator.init(jnp.zeros(3)), running.total
        ).value
        assert_close(mean, jnp.full(3, float(np.mean(sorted(answered)))), rtol=1e-6)
