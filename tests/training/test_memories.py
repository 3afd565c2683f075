"""Memories of a population on the host: rows, files, and going back to a commit."""

import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import fedagg

CLIENTS = 9


def first():
    return {"a": np.float32(0.5) * np.ones(3, np.float32), "n": np.int32(0)}


def rows_of(value, count):
    return {
        "a": np.full((count, 3), value, np.float32),
        "n": np.full(count, value, np.int32),
    }


@pytest.fixture(params=["memory", "folder"])
def folder(request, tmp_path):
    return tmp_path / "kept" if request.param == "folder" else None


def everything(memories):
    return memories[np.arange(len(memories))]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_client_of_no_round_has_the_first_memory(folder):
    memories = fedagg.ClientMemories(first(), CLIENTS, folder)

    got = memories[[8, 0]]

    assert len(memories) == CLIENTS
    assert_same(got, {"a": np.full((2, 3), 0.5), "n": np.zeros(2)})
    assert got["a"].dtype == np.float32 and got["n"].dtype == np.int32


def test_what_is_written_is_read(folder):
    memories = fedagg.ClientMemories(first(), CLIENTS, folder)
    draw = np.random.default_rng(0)
    expected = np.zeros(CLIENTS, np.int32)

    for value in range(1, 20):
        numbers = draw.permutation(CLIENTS)[:4]
        memories[numbers] = rows_of(value, 4)
        expected[numbers] = value

    np.testing.assert_array_equal(everything(memories)["n"], expected)


def test_rounds_have_what_was_written_in_the_round_before(folder):
    memories = fedagg.ClientMemories(first(), CLIENTS, folder)
    draw = np.random.default_rng(1)
    cohorts = [draw.permutation(CLIENTS)[:5] for _ in range(50)]
    expected = np.zeros(CLIENTS, np.int32)

    for numbers, memory in memories.rounds(cohorts):
        np.testing.assert_array_equal(memory["n"], expected[numbers])
        memory["n"] += 1
        memories[numbers] = memory
        expected[numbers] += 1

    np.testing.assert_array_equal(everything(memories)["n"], expected)
    assert expected.sum() == 250


def test_half_precision_is_kept_as_it_is(tmp_path):
    half = np.asarray([1.5, -2.25], ml_dtypes.bfloat16)
    memories = fedagg.ClientMemories(jnp.asarray(half), 3, tmp_path / "kept")

    memories[[1]] = jnp.asarray([[3.0, 4.0]], jnp.bfloat16)
    memories.commit(0)

    again = fedagg.ClientMemories(jnp.asarray(half), 3, tmp_path / "kept")
    assert again[[0, 1]].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(
        again[[0, 1]].astype(np.float32), [[1.5, -2.25], [3.0, 4.0]]
    )


def test_opened_again_memories_are_those_of_a_commit(tmp_path):
    memories = fedagg.ClientMemories(first(), CLIENTS, tmp_path / "kept")
    states = {-1: everything(memories)}
    for step in (3, 5, 8):
        for part in ([0, 1, 2], [2, 3, 4]):
            memories[part] = rows_of(10 * step + part[0], 3)
        memories.commit(step)
        states[step] = everything(memories)
    memories[[0, 8]] = rows_of(99, 2)  # in a step that does not end
    memories[[8, 1]] = rows_of(98, 2)

    last = fedagg.ClientMemories(first(), CLIENTS, tmp_path / "kept")
    assert_same(everything(last), states[8])
    last[[8]] = rows_of(97, 1)
    before = fedagg.ClientMemories(first(), CLIENTS, tmp_path / "kept", step=5)
    assert_same(everything(before), states[5])
    before[[7]] = rows_of(96, 1)
    before.commit(9)
    again = fedagg.ClientMemories(first(), CLIENTS, tmp_path / "kept", step=5)
    assert_same(everything(again), states[5])


def test_before_the_first_commit_is_the_beginning(tmp_path):
    memories = fedagg.ClientMemories(first(), CLIENTS, tmp_path / "kept")
    memories[[1]] = rows_of(4, 1)
    memories.commit(0)

    again = fedagg.ClientMemories(first(), CLIENTS, tmp_path / "kept", step=-1)

    np.testing.assert_array_equal(everything(again)["n"], np.zeros(CLIENTS))


def test_a_record_that_was_torn_is_not_undone(tmp_path):
    memories = fedagg.ClientMemories(first(), CLIENTS, tmp_path / "kept")
    memories.commit(0)
    memories[[1, 2]] = rows_of(5, 2)
    log = tmp_path / "kept" / "after0"
    whole = log.read_bytes()
    memories[[3]] = rows_of(6, 1)
    written = log.read_bytes()

    for cut in range(len(whole), len(written)):
        log.write_bytes(written[:cut])
        again = fedagg.ClientMemories(first(), CLIENTS, tmp_path / "kept")
        got = everything(again)["n"]
        np.testing.assert_array_equal(got[[1, 2]], [0, 0])
        assert got[3] == 6  # of which nothing was torn but the record


def kept_by_five(folder):
    """Two commits, and rows that were written after the second."""
    memories = fedagg.ClientMemories(np.zeros(3, np.float32), 5, folder)
    for step, value in ((0, 1), (3, 2)):
        memories[[1]] = np.full((1, 3), value, np.float32)
        memories.commit(step)
    memories[[2, 4]] = np.full((2, 3), 7.0, np.float32)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("kind.json", b""),
        ("kind.json", b"\xff{}"),
        ("steps.json", b"[3"),
        ("steps.json", b"[]"),
        ("leaf0", b"\0" * 59),
        ("leaf0", b""),
    ],
)
def test_a_file_that_is_damaged_is_refused_by_name(name, data, tmp_path):
    kept_by_five(tmp_path)
    (tmp_path / name).write_bytes(data)

    with pytest.raises(ValueError, match=name):
        fedagg.ClientMemories(np.zeros(3, np.float32), 5, tmp_path)


def test_a_record_that_is_damaged_is_refused_before_anything_goes_back(tmp_path):
    """A flipped bit anywhere but in what makes a record look torn: its length."""
    kept_by_five(tmp_path)
    log, leaf = tmp_path / "after3", tmp_path / "leaf0"
    whole, rows = log.read_bytes(), leaf.read_bytes()

    for at in range(1, len(whole)):
        log.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match="after3.* damaged"):
            fedagg.ClientMemories(np.zeros(3, np.float32), 5, tmp_path)
        assert leaf.read_bytes() == rows
    log.write_bytes(whole)

    again = fedagg.ClientMemories(np.zeros(3, np.float32), 5, tmp_path)
    np.testing.assert_array_equal(everything(again)[:, 0], [0, 2, 0, 0, 0])


@pytest.mark.parametrize("numbers", [[0, 9], [-1], [0.0], 3, [[1, 2]]])
def test_wrong_numbers_are_an_error(numbers):
    memories = fedagg.ClientMemories(first(), CLIENTS)

    with pytest.raises(IndexError, match="numbers: expected"):
        memories[numbers]


def test_wrong_rows_are_an_error():
    memories = fedagg.ClientMemories(first(), CLIENTS)
    rows = rows_of(1, 2)

    with pytest.raises(ValueError, match="a client is there twice"):
        memories[[1, 1]] = rows
    with pytest.raises(ValueError, match="memory: expected PyTreeDef"):
        memories[[0, 1]] = {"a": rows["a"]}
    with pytest.raises(ValueError, match=r"rows of shape \(3, 3\)"):
        memories[[0, 1, 2]] = rows
    with pytest.raises(ValueError, match="dtype float32, got .* float64"):
        memories[[0, 1]] = rows | {"a": rows["a"].astype(np.float64)}
    np.testing.assert_array_equal(everything(memories)["n"], np.zeros(CLIENTS))


def test_wrong_folders_and_steps_are_an_error(tmp_path):
    folder = tmp_path / "kept"

    with pytest.raises(ValueError, match="there are no memories"):
        fedagg.ClientMemories(first(), CLIENTS, folder, step=1)
    with pytest.raises(ValueError, match="clients must be a whole number"):
        fedagg.ClientMemories(first(), 0)
    with pytest.raises(ValueError, match="memory: expected arrays"):
        fedagg.ClientMemories({}, CLIENTS)
    with pytest.raises(ValueError, match="got folder=None"):
        fedagg.ClientMemories(first(), CLIENTS, step=1)
    with pytest.raises(ValueError, match="in none"):
        fedagg.ClientMemories(first(), CLIENTS).commit(1)
    memories = fedagg.ClientMemories(first(), CLIENTS, folder)
    memories.commit(4)
    with pytest.raises(ValueError, match="step must be above"):
        memories.commit(4)
    with pytest.raises(ValueError, match="one of the last two commits"):
        fedagg.ClientMemories(first(), CLIENTS, folder, step=3)
    with pytest.raises(ValueError, match="has memories of"):
        fedagg.ClientMemories(first(), CLIENTS + 1, folder)


def make_training():
    def init(variables):
        return jnp.zeros_like(variables)

    def work(variables, row, key, memory):
        change = row - variables + 0.5 * memory
        return change, {}, change + 0.1 * jax.random.normal(key, memory.shape)

    return fedagg.RememberingWork(init, work)


def test_a_population_on_the_host_is_trained_as_one_in_the_state(tmp_path):
    work, model = make_training(), jnp.zeros(3)
    mean = fedagg.aggregator(fedagg.mean())
    inside = fedagg.federated_averaging(work, optax.sgd(1.0), mean, clients=CLIENTS)
    outside = fedagg.federated_averaging(work, optax.sgd(1.0), mean)
    targets = np.random.default_rng(2).normal(size=(CLIENTS, 3)).astype(np.float32)
    cohorts = [np.random.default_rng(i).permutation(CLIENTS)[:4] for i in range(6)]
    keys = jax.random.split(jax.random.key(0), len(cohorts))
    expected, state = inside.init(model), outside.init(model)
    memories = fedagg.ClientMemories(work.init(model), CLIENTS, tmp_path / "kept")

    for key, numbers in zip(keys, cohorts, strict=True):
        data = targets[numbers], numbers
        expected = inside.next(expected, data, None, key).state
    for key, (numbers, memory) in zip(keys, memories.rounds(cohorts), strict=True):
        output, kept = outside.next(state, targets[numbers], None, key, memory=memory)
        memories[numbers], state = kept, output.state

    assert_same(everything(memories), expected.memories)
    assert_same(state.variables, expected.variables)


@pytest.mark.thorough
def test_a_process_that_is_killed_goes_on_where_its_last_commit_was(tmp_path):
    program = textwrap.dedent(
        """
        import os, pathlib, signal, sys
        import numpy as np
        import fedagg

        folder, stop = pathlib.Path(sys.argv[1]), int(sys.argv[2])
        saved = folder / "state.npy"
        state = np.load(saved) if saved.exists() else np.zeros(2, np.int64)
        first = np.zeros(4, np.int64)
        step = int(state[0]) - 1 if saved.exists() else None
        memories = fedagg.ClientMemories(first, 50, folder / "kept", step=step)
        for step in range(int(state[0]), 30):
            numbers = np.random.default_rng(step).permutation(50)[:20]
            memory = memories[numbers]
            state = state + [1, memory.sum()]
            memories[numbers] = memory * 3 + step
            if step == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            if step % 4 == 3:
                memories.commit(step)
                if step + 100 == stop:
                    os.kill(os.getpid(), signal.SIGKILL)
                np.save(folder / "new.npy", state)
                os.replace(folder / "new.npy", saved)
        np.save(folder / "end.npy", memories[np.arange(50)])
        print(state[1])
        """
    )

    def run(folder, stop=-1):
        command = [sys.executable, "-c", program, folder, str(stop)]
        return subprocess.run(command, capture_output=True, text=True)

    plain, broken = tmp_path / "plain", tmp_path / "broken"
    plain.mkdir()
    broken.mkdir()

    whole = run(plain)
    # In a step, between a commit and the state that is saved after it, in a step again.
    killed = [run(broken, stop).returncode for stop in (6, 111, 17)]
    resumed = run(broken)

    assert killed == [-signal.SIGKILL] * 3
    assert (whole.returncode, resumed.returncode) == (0, 0), resumed.stderr
    assert resumed.stdout == whole.stdout
    assert_same(np.load(broken / "end.npy"), np.load(plain / "end.npy"))
