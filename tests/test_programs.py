"""The demo and the benchmark run as a user would run them."""

import pathlib
import re
import subprocess
import sys

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


def test_the_benchmark_prints_and_keeps_its_table(tmp_path):
    shown = run(
        *["-m", "benchmarks.throughput", "--out", str(tmp_path)],
        *["--sizes", "8x3000", "--leaves", "6"],
    )

    rows = re.findall(r"^\| robust +\| default +\| +([\d.]+)", shown, re.M)
    assert len(rows) == 1 and float(rows[0]) > 0.0
    assert (tmp_path / "cpu.md").read_text() in shown + "\n"
