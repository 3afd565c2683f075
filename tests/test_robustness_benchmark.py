"""The grid of rules against attacks: what it chooses, its data, and a small one run."""

import argparse
import json
import struct

import jax
import numpy as np
import pytest

from benchmarks.robustness import __main__ as command
from benchmarks.robustness import byzfl, ours
from benchmarks.robustness.choosing import ends, gaps, worst
from benchmarks.robustness.keeping import wanted, whole
from benchmarks.robustness.settings import (
    FULL,
    HONEST,
    MIXED,
    PLAIN,
    SMALL,
    Digits,
    Run,
    sample,
    split,
)
from benchmarks.robustness.table import agreement, draw, times, worst_cases

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


def flat(asked: tuple) -> Run:
    """A training of a grid, that learns nothing."""
    return Run._make([*asked, [0.5], [0.5]])


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
    rows.append({"who": "fedagg", "trainings": 10, "of": 20, "seconds": 30.0})
    rows.append({"who": "ByzFL", "trainings": 5, "of": 20, "seconds": 60.0})

    lines = worst_cases(rows).splitlines()
    took = times(rows).splitlines()
    draw(rows, tmp_path / "map.png")

    header = "| rule | fedagg, 100 % alike, 2 lie | ByzFL, 100 % alike, 2 lie |"
    assert lines[0] == header
    assert lines[2:] == ["| median | 0.540 ± 0.028 | 0.540 ± 0.028 |"]
    assert took[2:] == [
        "| fedagg | 10 | 30 | 3.00 | 1.0 | 1.0 |",
        "| ByzFL | 5 | 60 | 12.00 | 4.0 | 4.0 |",
    ]
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_worst_cases_are_compared_in_deviations_from_seed_to_seed():
    ours, theirs = ({"who": x, "attack": "a"} for x in ("fedagg", "ByzFL"))
    where = {"rule": "median", "mixer": PLAIN, "similarity": 1.0, "liars": 2}
    ours |= where | {"accuracy": 0.8, "spread": 0.03}
    theirs |= where | {"accuracy": 0.9, "spread": 0.04}

    assert gaps([ours, theirs]) == {
        ("ByzFL", "median", PLAIN, 1.0, 2): pytest.approx(2.0)
    }
    assert agreement([ours, theirs]).endswith(
        "0 differ by less than a deviation from seed to seed, and all by at most 2.0."
    )


def test_a_grid_that_was_stopped_goes_on_with_what_is_not_there(tmp_path, monkeypatch):
    grid = SMALL._replace(rules=("mean", "median"), mixers=(PLAIN,), liars=(3,))
    chosen = argparse.Namespace(work=tmp_path, times=False)
    digits = made_up_digits(np.random.default_rng(0))
    asked = sorted(wanted(grid))
    started = []

    def trained(grid, digits, done):
        for cell in {(x[0], x[1], x[4]) for x in asked} - {*done}:
            started.append(cell)
            yield [flat(x) for x in asked if (x[0], x[1], x[4]) == cell]

    def stopped(grid, digits, done):
        yield next(trained(grid, digits, done))
        raise KeyboardInterrupt

    monkeypatch.setattr(ours, "runs", stopped)
    with pytest.raises(KeyboardInterrupt):
        command._ours(grid, digits, chosen)
    [path] = tmp_path.glob("*/runs.jsonl")
    path.write_text(path.read_text() + '[0.5, [["mean", ')  # and cut short
    monkeypatch.setattr(ours, "runs", trained)
    rows = command._ours(grid, digits, chosen)

    assert sorted(started) == [("mean", PLAIN, 3), ("median", PLAIN, 3)]
    assert [x["trainings"] for x in rows if "trainings" in x] == [len(asked)]
    assert {x["rule"] for x in rows if "accuracy" in x} == {"mean", "median"}
    assert len(path.read_text().splitlines()) == 2


def test_only_a_whole_part_of_a_grid_is_shown():
    grid = SMALL._replace(rules=("mean", "median"), mixers=(PLAIN,), liars=(3,))
    runs = [flat(x) for x in sorted(wanted(grid))]
    more = runs[0]._replace(seed=7)

    found = whole([more, *runs[1:]], grid)

    there = {(x.rule, x.similarity) for x in found}
    left_out = {(x.rule, x.similarity) for x in runs} - there
    assert left_out == {(runs[0].rule, runs[0].similarity)}
    assert len(found) == len(runs) * 3 // 4


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
        crossed = len(grid.rules) * len(grid.mixers) * len(grid.attacks)
        assert len(wanted(sample(grid))) == crossed


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
        for seed in (1, 2):  # of which the former was stopped
            path = folder / f"{name}_accuracy_tr_seed_0_dd_seed_{seed}.txt"
            path.write_text(text)
    (folder / "train_time_tr_seed_0_dd_seed_2.txt").write_text("1.5")

    byzfl.write_digits(tmp_path, digits)
    [(seconds, found)] = byzfl.trainings(tmp_path / "results")

    raw = (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()
    assert struct.unpack(">4i", raw[:16]) == (2051, 500, 28, 28)
    assert raw[16:] == digits.images.tobytes()
    where = ("trimmed mean", MIXED, "a little", 0.25, 3, 0.1, 0.9, 2)
    assert told["benchmark_config"]["f"] == [1, 3]
    assert [x["name"] for x in told["aggregator"]] == ["Average", "TrMean", "MultiKrum"]
    assert seconds == 1.5 and found == Run(*where, [0.1, 0.8], [0.1, 0.7])


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

    digits = made_up_digits(np.random.default_rng(0))
    runs = [x for together in ours.runs(grid, digits) for x in together]

    least = worst(ends("fedagg", runs, grid.every))
    found = {rule: row["accuracy"] for (_, rule, *_), row in least.items()}
    done = [(rule, PLAIN, 3) for rule in grid.rules]
    assert [*ours.runs(grid, digits, done)] == []
    assert {*wanted(grid)} == {x[:8] for x in runs}
    assert len(runs) == 4 * 2 and all(len(x.test) == 3 for x in runs)
    assert found["mean"] < 0.3 and found["trimmed mean"] > 0.9

    # Side by side, each experiment's branches are all run, with the same keys.
    jax.config.update("jax_debug_key_reuse", False)
    try:
        others = ours.runs(grid, digits, done[:1], together=2)
        beside = [x for side_by_side in others for x in side_by_side]
    finally:
        jax.config.update("jax_debug_key_reuse", True)
    alone = [run for run in runs if run.rule == "trimmed mean"]
    assert [x[:8] for x in beside] == [x[:8] for x in alone]
    got, expected = ([x.test[-1] for x in both] for both in (beside, alone))
    np.testing.assert_allclose(got, expected, atol=0.02)
