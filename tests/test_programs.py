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


def lesson(name, folder):
    """What a notebook prints as a program. It draws a picture too."""
    picture = folder / f"{name}.png"
    shown = run("-m", "notebooks", name, "--out", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    return shown


def test_the_demo_learns_with_robust_aggregation_and_not_without(tmp_path):
    shown = lesson("first_lesson", tmp_path)

    rows = re.findall(r"^(plain mean|robust|robust, linen) +([\d.]+)", shown, re.M)
    accuracy = {title: float(x) for title, x in rows}
    assert accuracy["plain mean"] < 0.2
    assert accuracy["robust"] > 0.9 and accuracy["robust, linen"] > 0.9


def test_one_bit_a_parameter_is_enough_with_a_rotation_and_not_without(tmp_path):
    shown = lesson("how_many_bits", tmp_path)

    rows = re.findall(r"^(\w.*?)  +(\d*) +([\d.]+) +([\d.]+)$", shown, re.M)
    sent = {(title, bits): float(x) for title, bits, x, _ in rows}
    accuracy = {(title, bits): float(x) for title, bits, _, x in rows}
    assert sent["EDEN", "1"] < 1.1 and sent["float32", ""] == 32.0
    assert abs(accuracy["EDEN", "1"] - accuracy["float32", ""]) < 0.03
    assert abs(accuracy["EDEN", "2"] - accuracy["float32", ""]) < 0.03
    assert accuracy["equal steps", "1"] < 0.5
    assert accuracy["equal steps", "2"] > 0.85


def test_privacy_costs_accuracy_and_a_learnt_clip_spares_a_choice(tmp_path):
    shown = lesson("private_training", tmp_path)

    found = [float(x) for x in re.findall(r"^epsilon ([\d.]+|inf), delta", shown, re.M)]
    rows = re.findall(r"^(noise|clip) ([\d.]+) +\S+ +[\d.]+ +([\d.]+)$", shown, re.M)
    accuracy = {(kind, float(of)): float(x) for kind, of, x in rows}
    assert found == sorted(found, reverse=True)
    assert found[0] == float("inf") and 2.0 < found[2] < 3.0 and found[3] < 1.0
    # Keys are secret, so that runs differ by a hundredth or so.
    assert accuracy["noise", 0] > 0.3 and accuracy["noise", 1] > accuracy["noise", 2]
    assert accuracy["noise", 2] > 0.22 > accuracy["noise", 4]
    assert accuracy["noise", 2] > accuracy["clip", 10] + 0.05
    assert accuracy["noise", 2] > accuracy["clip", 0.1] - 0.01
    stopped = re.search(r"^(\d+) rounds, epsilon ([\d.]+), accuracy", shown, re.M)
    assert stopped and 50 < int(stopped[1]) < 90 and 1.9 < float(stopped[2]) <= 2.0


def test_a_stage_a_compressor_and_a_rule_of_ones_own_do_what_they_say(tmp_path):
    shown = lesson("write_your_own", tmp_path)

    rows = re.findall(r"^\D+?  +(\w+) +accuracy ([\d.]+)$", shown, re.M)
    titles, accuracy = zip(*((title, float(x)) for title, x in rows), strict=True)
    own = ("capped_weights", "powers_of_two", "majority")
    assert titles[1::2] == own and set(titles[::2]) == {"mean"}
    assert min(accuracy[1::2]) > 0.8 and max(accuracy[0], accuracy[4]) < 0.2
    assert "round 2: cap 160, mean 7.00" in shown
    assert "8032 bits for 1000 entries" in shown
    assert "mean of many: -0.30 0.00 0.50 3.00" in shown


def test_the_mean_fails_and_every_rule_holds_after_mixing(tmp_path):
    shown = lesson("rules_and_attacks", tmp_path)

    rows = re.findall(r"^(\w.*?)  +(alone|after \w+) +(.*)$", shown, re.M)
    found = {(rule, how): [*map(float, x.split())] for rule, how, x in rows}
    mixed = [x[-1] for (_, how), x in found.items() if how == "after mixing"]
    assert len(found) == 13 and len(mixed) == 4
    assert found["mean", "alone"][0] > 0.8  # nobody lies
    assert found["mean", "alone"][-1] < 0.2
    assert min(mixed) > 0.55
    assert found["trimmed mean", "alone"][-1] < 0.3  # clients differ too much


def test_a_round_in_messages_is_the_simulated_one_in_the_clear_and_masked(tmp_path):
    shown = lesson("simulation_to_machines", tmp_path)

    apart = re.findall(r"^the models differ by at most (\S+)$", shown, re.M)
    assert len(apart) == 2 and all(float(x) < 1e-6 for x in apart)
    assert "in the sum: 0 1 2 4 5 6 8 9" in shown
    assert "the sum of the survivors to the bit: True" in shown


def test_secure_aggregation_over_sockets_gives_the_model_of_the_simulation(tmp_path):
    picture = tmp_path / "secagg.png"

    shown = run(
        *["-m", "notebooks.secagg_demo", "--clients", "5", "--rounds", "2"],
        *["--faults", "2:0:vectors:killed", "--seconds", "30", "--out", str(picture)],
    )

    rows = re.findall(r"^ +\d +(\d) +(\d) .* (yes|NO) ", shown, re.M)
    assert rows == [("5", "4", "yes"), ("4", "4", "yes")]
    assert "round 0: 2: closed the connection" in shown
    for why in (
        *("CERTIFICATE_VERIFY_FAILED", "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
        *("HTTP_REQUEST", "nobody expects"),
    ):
        assert re.search(f"^round 0: stranger: .*{why}", shown, re.M)
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


def test_the_benchmark_of_messages_counts_their_bytes(tmp_path):
    shown = run(
        "-m", "benchmarks.wires", "--parameters", "3000", "--out", str(tmp_path)
    )

    sent = dict(re.findall(r"^\| `(.*)` \| ([\d.]+) \|", shown, re.M))
    # 32 bits, a weight, and 40 bytes of header for 3,000.
    assert sent["mean()"] == f"{32 + (32 + 320) / 3000:.2f}"
    assert 4.0 < float(sent["eden(4)"]) < 7.0
    assert (tmp_path / "wires-cpu.md").read_text() in shown + "\n"


def test_the_benchmark_of_asynchronous_rounds_says_what_a_step_costs(tmp_path):
    command = "-m", "benchmarks.asynchronous", "--quick", "--out", str(tmp_path)
    shown = run(*command)

    # By the simulated clock rounds that wait for the last of 30 take far longer.
    row = re.search(r"^\| 1,000 \| 10 \| 30 \|.* ([\d.]+) \|$", shown, re.M)
    assert row and float(row[1]) > 5.0
    assert (tmp_path / "asynchronous-cpu.md").read_text() in shown + "\n"


def test_rounds_over_many_clients_say_what_they_took():
    shown = run(
        *["-m", "benchmarks.population", "--clients", "3000"],
        *["--rounds", "2", "--cohort", "500"],
    )

    rows = re.findall(r"^\| ([12]) \| ([\d,]+) \|", shown, re.M)
    assert rows == [("1", "3,000"), ("2", "500")]
    assert re.search(r"^\| 2, remembering \| 50 \|", shown, re.M)
