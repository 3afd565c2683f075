"""The notebooks and the benchmarks run as a user would run them."""

import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.thorough


ROOT = pathlib.Path(__file__).parents[1]


def run(*arguments):
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_demo_learns_with_robust_aggregation_and_not_without(tmp_path):
    picture = tmp_path / "demo.png"

    shown = run("notebooks/demo.py", "--rounds", "10", "--out", str(picture))

    accuracy = dict(
        re.findall(r"^(plain mean|robust_aggregator) +([\d.]+)", shown, re.M)
    )
    assert float(accuracy["plain mean"]) < 0.2
    assert float(accuracy["robust_aggregator"]) > 0.6
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_how_many_bits_prints_a_table_and_draws_it(tmp_path):
    picture = tmp_path / "bits.png"

    shown = run(
        *["notebooks/how_many_bits.py", "--rounds", "1", "--bits", "1"],
        *["--ways", "EDEN", "--out", str(picture)],
    )

    rows = re.findall(r"^(float32|EDEN) +\d+ +([\d.]+) +[\d.]+$", shown, re.M)
    sent = {title: float(bits) for title, bits in rows}
    assert sent["float32"] == 32.0 and 1.0 < sent["EDEN"] < 1.1
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_private_training_prints_a_table_and_draws_it(tmp_path):
    picture = tmp_path / "private.png"

    shown = run(
        *["notebooks/private_training.py", "--questions", "clip", "--rounds", "2"],
        *["--clips", "1", "--out", str(picture)],
    )

    rows = re.findall(
        r"^clip +(fixed|adaptive).* +([\d.]+) +([\d.]+) +0\.\d+$", shown, re.M
    )
    assert [row[0] for row in rows] == ["fixed", "adaptive"]
    assert rows[0][1] == rows[1][1]  # epsilon, which the way to clip does not change
    assert float(rows[0][2]) == 1.0 and 0.1 < float(rows[1][2]) < 0.15
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_secure_aggregation_over_sockets_gives_the_model_of_the_simulation(tmp_path):
    picture = tmp_path / "secagg.png"

    shown = run(
        *["-m", "notebooks.secagg_demo", "--clients", "5", "--rounds", "2"],
        *["--faults", "2:0:vectors:killed", "--seconds", "30", "--out", str(picture)],
    )

    rows = re.findall(r"^ +\d +(\d) +(\d) .* (yes|NO) ", shown, re.M)
    assert rows == [("5", "4", "yes"), ("4", "4", "yes")]
    assert "round 0: 2: closed the connection" in shown
    for why in ("no frame", "too large a frame", "here already", "nobody expects"):
        assert re.search(f"^round 0: stranger: .*{why}$", shown, re.M)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_benchmark_prints_and_keeps_its_table(tmp_path):
    shown = run(
        *["-m", "benchmarks.throughput", "--out", str(tmp_path)],
        *["--sizes", "8x3000", "--leaves", "6"],
        *["--aggregators", "robust", "robust, one NaN", "Skellam noise"],
    )

    rows = re.findall(r"^\| robust +\| default +\| +([\d.]+)", shown, re.M)
    assert len(rows) == 1 and float(rows[0]) > 0.0
    assert re.search(r"^\| robust, one NaN +\| default +\| +[\d.]+ ", shown, re.M)
    assert re.search(r"^\| Skellam noise +\| default +\| +[\d.]+ ", shown, re.M)
    assert re.search(r"^\| 8 x 3,000 parameters, 6 leaves \| .*in_chunks", shown, re.M)
    assert (tmp_path / "cpu.md").read_text() in shown + "\n"


def test_scaling_prints_and_keeps_a_table_with_fits(tmp_path):
    shown = run(
        *["-m", "benchmarks.scaling", "--out", str(tmp_path), "--leaves", "6"],
        *["--clients", "4", "8", "--parameters", "3000", "6000", "--base", "8x3000"],
    )

    assert len(re.findall(r"^\| exponent \| +-?[\d.]+ \|", shown, re.M)) == 2
    assert (tmp_path / "scaling-cpu.md").read_text() in shown + "\n"
    assert (tmp_path / "scaling-cpu.png").read_bytes().startswith(b"\x89PNG")


def test_the_accelerator_benchmark_runs_on_a_cpu_and_says_so(tmp_path):
    shown = run(
        *["-m", "benchmarks.accelerator", "--out", str(tmp_path)],
        *["--sizes", "16x3000", "--leaves", "6"],
    )

    assert "This is no accelerator" in shown
    assert len(re.findall(r"^\| 16 x 3,000 \| \w+ \| 6 \| [\d.]+ \|", shown, re.M)) == 2
    assert (tmp_path / "cpu-accelerator.md").read_text() in shown + "\n"


def test_the_benchmark_of_secure_aggregation_stays_near_the_raw_keystream(tmp_path):
    shown = run("-m", "benchmarks.secagg", "--quick", "--out", str(tmp_path))

    ratio = re.search(r"^\| masks added to a vector \|.*\| ([\d.]+) \|$", shown, re.M)
    assert ratio and float(ratio[1]) < 4.0
    assert len(re.findall(r"^\| semi-malicious \| 10", shown, re.M)) == 3
    assert (tmp_path / "secagg-cpu.md").read_text() in shown + "\n"


def test_rounds_over_many_clients_say_what_they_took():
    shown = run(
        *["-m", "benchmarks.population", "--clients", "3000"],
        *["--rounds", "2", "--cohort", "500"],
    )

    rows = re.findall(r"^\| ([12]) \| ([\d,]+) \|", shown, re.M)
    assert rows == [("1", "3,000"), ("2", "500")]
