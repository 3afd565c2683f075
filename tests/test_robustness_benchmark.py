"""The grid of rules against attacks: what it chooses, its data, and a small one run."""

import json
import struct

import numpy as np
import pytest

from benchmarks.robustness import byzfl, ours
from benchmarks.robustness.choosing import ends, worst
from benchmarks.robustness.settings import (
    FULL,
    HONEST,
    MIXED,
    PLAIN,
    SMALL,
    Digits,
    Run,
    split,
)
from benchmarks.robustness.table import draw, worst_cases

LABELS = np.arange(500) % 10


def made_up_digits(rng: np.random.Generator) -> Digits:
    """Rows of pixels that are bright, a row for each label."""

    def images(labels: np.ndarray) -> np.ndarray:
        pixels = rng.integers(0, 60, (len(labels), 28, 28))
        pixels[np.arange(len(labels)), 2 * labels + 4] += 150
        return pixels.astype(np.uint8)

    labels = LABELS.astype(np.uint8)
    return Digits(images(labels), labels, images(labels[:100]), labels[:100])


def run(rate: float, attack: str, seed: int, validation: list, test: list) -> Run:
    return Run("median", PLAIN, attack, 1.0, 2, rate, 0.9, seed, validation, test)


RUNS = [
    # The quick rate is best on average, and fails under one attack.
    run(0.4, "a", 0, [0.1, 0.9, 0.9], [0.1, 0.9, 0.9]),
    run(0.4, "b", 0, [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]),
    run(0.4, "a", 1, [0.1, 0.9, 0.9], [0.1, 0.9, 0.9]),
    run(0.4, "b", 1, [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]),
    # Of the slow one, the second look is the best for validation.
    run(0.1, "a", 0, [0.1, 0.5, 0.6], [0.1, 0.5, 0.6]),
    run(0.1, "b", 0, [0.1, 0.5, 0.4], [0.1, 0.52, 0.7]),
    run(0.1, "a", 1, [0.1, 0.5, 0.6], [0.1, 0.5, 0.8]),
    run(0.1, "b", 1, [0.1, 0.5, 0.5], [0.1, 0.56, 0.7]),
]


def test_hyperparameters_are_chosen_by_the_worst_attack_on_digits_for_validation():
    rows = ends("me", RUNS, every=20)

    found = {row["attack"]: row for row in rows}
    assert [row["rate"] for row in rows] == [0.1, 0.1]
    assert found["a"]["accuracy"] == 0.7 and found["a"]["step"] == 40
    assert found["b"]["accuracy"] == 0.54 and found["b"]["step"] == 20
    assert found["b"]["spread"] == pytest.approx(np.std([0.52, 0.56], ddof=1), abs=1e-4)
    assert worst(rows) == {("me", "median", PLAIN, 1.0, 2): found["b"]}


def test_the_table_and_the_picture_show_the_worst_case(tmp_path):
    rows = [*ends("fedagg", RUNS, 20), *ends("ByzFL", RUNS, 20)]

    lines = worst_cases(rows).splitlines()
    draw(rows, tmp_path / "map.png")

    header = "| rule | fedagg, 100 % alike, 2 lie | ByzFL, 100 % alike, 2 lie |"
    assert lines[0] == header
    assert lines[2:] == ["| median | 0.540 ± 0.028 | 0.540 ± 0.028 |"]
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_a_part_of_the_digits_is_dealt_by_chance_and_the_rest_by_label():
    alike, validation = split(LABELS, 1.0, seed=0)
    apart, _ = split(LABELS, 0.0, seed=0)

    labels_of_each = [len(set(LABELS[own])) for own in apart]
    assert alike.shape == apart.shape == (HONEST, 40) and len(validation) == 100
    assert len({*alike.ravel(), *validation}) == len(LABELS)
    assert max(labels_of_each) <= 3
    assert min(len(set(LABELS[own])) for own in alike) > 7


def test_every_rule_mixing_and_attack_of_a_grid_is_known_to_both():
    for grid in (SMALL, FULL):
        assert {*grid.rules} <= {*ours.RULES} & {*byzfl.RULES}
        assert {*grid.mixers} <= {*ours.MIXERS} & {*byzfl.MIXERS}
        assert {*grid.attacks} <= {*ours.ATTACKS, "label flipping"} & {*byzfl.ATTACKS}
        assert grid.steps % grid.every == 0


def test_byzfl_is_given_the_grid_and_digits_and_its_files_are_read(tmp_path):
    digits = made_up_digits(np.random.default_rng(0))
    told = byzfl.configuration(SMALL)
    spread = {"distribution_parameter": 0.25}
    own = {
        "benchmark_config": {"f": 3, "data_distribution": spread},
        "model": {"learning_rate": 0.1},
        "honest_clients": {"momentum": 0.9},
        "aggregator": {"name": "TrMean", "parameters": {"f": 3}},
        "pre_aggregators": [{"name": "NNM", "parameters": {"f": 3}}],
        "attack": {"name": "ALittleIsEnough", "parameters": {"tau": 1.5}},
    }
    folder = tmp_path / "results" / "one"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(own))
    for name, text in (("val", "0.1,0.8"), ("test", "0.1,0.7")):
        (folder / f"{name}_accuracy_tr_seed_0_dd_seed_2.txt").write_text(text)

    byzfl.write_digits(tmp_path, digits)
    [found] = byzfl.runs(tmp_path / "results")

    raw = (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()
    assert struct.unpack(">4i", raw[:16]) == (2051, 500, 28, 28)
    assert raw[16:] == digits.images.tobytes()
    where = ("trimmed mean", MIXED, "a little", 0.25, 3, 0.1, 0.9, 2)
    assert told["benchmark_config"]["f"] == [1, 3]
    assert [x["name"] for x in told["aggregator"]] == ["Average", "TrMean", "MultiKrum"]
    assert found == Run(*where, [0.1, 0.8], [0.1, 0.7])


@pytest.mark.deep
def test_a_mean_fails_on_the_way_on_which_a_rule_holds():
    grid = SMALL._replace(
        rules=("mean", "trimmed mean"),
        mixers=(PLAIN,),
        attacks=("inner product", "label flipping"),
        similarities=(1.0,),
        liars=(3,),
        rates=(0.1,),
        seeds=2,
    )

    runs = [*ours.runs(grid, made_up_digits(np.random.default_rng(0)))]

    least = worst(ends("fedagg", runs, grid.every))
    found = {rule: row["accuracy"] for (_, rule, *_), row in least.items()}
    assert len(runs) == 4 * 2 and all(len(x.test) == 3 for x in runs)
    assert found["mean"] < 0.3 and found["trimmed mean"] > 0.9
