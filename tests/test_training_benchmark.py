"""The benchmark of training rounds: its workloads, and what needs no peer."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import records
from benchmarks.peers.environments import TRAINERS
from benchmarks.training.models import first_parameters
from benchmarks.training.peers.layout import (
    from_haiku,
    from_torch,
    to_haiku,
    to_torch,
)
from benchmarks.training.reference import plain_loop
from benchmarks.training.table import table
from benchmarks.training.worker import measure
from benchmarks.training.workloads import (
    WORKLOADS,
    change_off,
    load,
    save,
    save_parameters,
)
from tests.helpers import first_now

ROOT = Path(__file__).parents[1]
SIZES = {  # clients, examples of the largest, steps of all, parameters that are trained
    "cifar": (50, 50, 250, 1_626_442),
    "logistic": (1000, 20, 2000, 650),
    "mlp": (1000, 20, 2000, 9610),
    "pareto": (200, 1560, 550, 1_199_882),
    "lora": (100, 20, 200, 4096),
}


@first_now("name", SIZES)
def test_a_workload_is_what_it_claims(name):
    workload = WORKLOADS[name](1.0)
    trained, _ = first_parameters(workload)

    parameters = sum(x.size for x in trained.values())
    claimed = (len(workload.clients), workload.sizes.max(), workload.steps, parameters)
    assert claimed == SIZES[name]
    batches = sum(len([*workload.batches(i)]) for i in range(len(workload.clients)))
    assert batches == workload.steps


def test_pareto_sizes_have_a_median_of_twenty():
    workload = WORKLOADS["pareto"](1.0)

    assert np.median(workload.sizes) == 20.0 and workload.is_ragged


def test_roles_say_the_next_character_of_each():
    workload = WORKLOADS["shakespeare"](1.0)

    assert len(workload.clients) == 20 and 50 <= workload.steps <= 150
    for inputs, following in workload.clients:
        assert inputs.shape == following.shape and inputs.shape[1] == 80
        text = np.concatenate([inputs.ravel(), following[-1, -1:]])
        np.testing.assert_array_equal(following.ravel(), text[1:])


def test_a_workload_is_the_same_again_and_from_its_file(tmp_path):
    made = WORKLOADS["pareto"](0.02)
    save(made, tmp_path / "workload.npz")

    for other in (WORKLOADS["pareto"](0.02), load(tmp_path / "workload.npz")):
        assert other._replace(clients=[]) == made._replace(clients=[])
        for ours, theirs in zip(made.clients, other.clients, strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("name", ["cifar", "lora"])
@pytest.mark.deep
def test_parameters_come_back_from_pytorch(name):
    trained, frozen = first_parameters(WORKLOADS[name](0.0))

    named = to_torch(trained | frozen)

    back = from_torch(named, trained)
    assert change_off(back, trained, {x: 0.0 * y for x, y in trained.items()}) == 0.0
    assert name != "cifar" or named["conv2.weight"].shape == (64, 32, 3, 3)


@pytest.mark.deep
def test_pytorch_multiplies_an_image_as_flax_does():
    """The first dense layer takes channels first, and the same products."""
    trained, _ = first_parameters(WORKLOADS["pareto"](0.0))
    image = np.random.default_rng(0).normal(size=(12, 12, 64))

    got = to_torch(trained)["dense1.weight"] @ image.transpose(2, 0, 1).ravel()

    want = image.ravel() @ trained["dense1/kernel"]
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_parameters_come_back_from_haiku():
    trained, _ = first_parameters(WORKLOADS["mlp"](0.0))

    layers = to_haiku(trained)

    assert sorted(layers) == ["dense1", "dense2"] and sorted(layers["dense1"]) == [
        "b",
        "w",
    ]
    back = from_haiku(layers, trained)
    assert all(back[name] is x for name, x in trained.items())


@pytest.mark.deep
def test_the_check_tells_a_round_that_leaves_out_a_client():
    workload = WORKLOADS["mlp"](0.02)
    trained, frozen = first_parameters(workload)
    whole, seconds = plain_loop(workload, trained, frozen)
    fewer = workload._replace(clients=workload.clients[1:])

    off = change_off(plain_loop(fewer, trained, frozen)[0], whole, trained)

    assert off > 0.05 and seconds > 0.0


def test_a_model_that_is_wrong_is_no_row(tmp_path):
    workload = WORKLOADS["logistic"](0.01)
    trained, frozen = first_parameters(workload)
    expected, _ = plain_loop(workload, trained, frozen)
    save(workload, tmp_path / "workload.npz")
    save_parameters(trained, tmp_path / "start.npz")
    save_parameters(frozen, tmp_path / "frozen.npz")
    save_parameters(expected, tmp_path / "expected.npz")

    row = measure("benchmarks.training.ours", tmp_path, "in_chunks(1)", 1e-4)

    assert row["seconds"] > 0.0 and 0.0 < row["off"] < 1e-4
    doubled = {x: 2.0 * y for x, y in expected.items()}
    save_parameters(doubled, tmp_path / "expected.npz")
    with pytest.raises(ValueError, match="wrong, the change is off by"):
        measure("benchmarks.training.ours", tmp_path, "in_chunks(1)", 1e-4)


def test_the_table_has_ratios_to_peers_and_reasons():
    timed = {
        "first_call_seconds": 1.0,
        "x_arithmetic": 3.0,
        "held_megabytes": None,
        "peak_megabytes": 1234.0,
    }
    rows = [
        {
            "who": "fedagg",
            "way": "default",
            "seconds": 0.5,
            "x_own_steps": 1.25,
            **timed,
        },
        {"who": "pytorch", "calls": "SGD", "seconds": 2.0, **timed},
        {"who": "flower", "skipped": "no"},
    ]

    lines = table(rows, ["pytorch", "flower"]).splitlines()

    assert lines[0].endswith("| peak MB | x PyTorch |")
    assert lines[2] == "| fedagg default | 0.5 | 3 | 1.25 | 1 | - | 1,234 | 0.25 |"
    assert lines[3] == "| PyTorch SGD | 2 | 3 | - | 1 | - | 1,234 | 1 |"
    assert lines[4].startswith("| Flower | not run: no |")


def test_peers_import_workloads_without_jax():
    modules = ["worker", "workloads", "rounds", "peers.layout"]
    modules += [f"peers.{name}" for name in TRAINERS]
    code = "import sys\n" + "\n".join(
        f"import benchmarks.training.{x}" for x in modules
    )
    code += "\nassert not {'jax', 'flax', 'torch', 'fedagg'} & set(sys.modules)"

    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("peer", TRAINERS.values(), ids=TRAINERS.keys())
def test_a_peer_has_pinned_requirements(peer):
    lines = peer.requirements.read_text().splitlines()

    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines)
    assert {line.split("==")[0] for line in lines} >= set(peer.packages)


@pytest.mark.deep
def test_the_benchmark_prints_and_keeps_its_table(tmp_path):
    command = [sys.executable, "-m", "benchmarks.training", "--clients", "1"]
    options = ["--workloads", "logistic", "--chunks", "--out", str(tmp_path)]
    options += ["--environments", str(tmp_path / "peers")]

    shown = subprocess.run(
        [*command, *options], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout

    table_shown = (tmp_path / "training-cpu.md").read_text()
    assert re.search(r"^\| fedagg default \| [\d.e-]+ \| ", table_shown, re.M)
    assert set(table_shown.splitlines()) <= set(shown.splitlines())
    run, rows = records.read(tmp_path / "training-cpu.jsonl")
    assert run["versions"]["jax"] and "cpu" in run["device"]
    ways = ["default", "at_once()", "across(cpu_mesh())"]
    assert [x["way"] for x in rows] == ways
    assert all(x["off"] < 1e-4 for x in rows)
