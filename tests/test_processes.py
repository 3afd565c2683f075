"""Many hosts, as processes on this one: `notebooks/many_hosts.py` run by each."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers import assert_close, assert_same

pytestmark = pytest.mark.thorough


ROOT = pathlib.Path(__file__).parents[1]
SECONDS = 120.0  # ten times what it takes, since a test machine may be busy


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(log: pathlib.Path, devices: int, *options: str) -> subprocess.Popen:
    """Runs the script on CPU devices of its own, with all output to a file."""
    # A proxy would stand between processes that are on one machine.
    direct = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment = direct | {
        "JAX_PLATFORMS": "cpu",
        "JAX_LOG_COMPILES": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "notebooks/many_hosts.py", *options]
    with log.open("w") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output
        )


def run_together(folder: pathlib.Path, **started: tuple) -> dict[str, str]:
    """Runs the script once for each name, all at once, and returns their outputs.

    A process that fails waits for its partner before it exits, and the partner for it,
    for minutes. So the first error ends them all, and so does the end of the time.
    """
    logs = {name: folder / f"{name}.log" for name in started}
    processes = {}
    deadline = time.monotonic() + SECONDS
    try:
        for name, options in started.items():
            processes[name] = start(logs[name], *options)
        codes, failed = [None], False
        while None in codes and not failed and time.monotonic() < deadline:
            failed = any("Traceback" in log.read_text() for log in logs.values())
            time.sleep(0.1)
            codes = [process.poll() for process in processes.values()]
            failed = failed or any(codes)
    finally:
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.wait()
    outputs = {name: log.read_text() for name, log in logs.items()}
    if any(code != 0 for code in codes):
        shown = "\n".join(f"--- {name}:\n{x[-4000:]}" for name, x in outputs.items())
        pytest.fail(f"exit codes {codes}, None where the test ended it\n{shown}")
    return outputs


def test_two_processes_give_the_result_of_one_and_compile_a_round_once(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    files = {name: tmp_path / f"{name}.npz" for name in ("alone", "first", "second")}
    host = ("--coordinator", address, "--processes", "2", "--process")

    outputs = run_together(
        tmp_path,
        alone=(1, "--out", str(files["alone"])),
        first=(2, *host, "0", "--out", str(files["first"])),
        second=(2, *host, "1", "--out", str(files["second"])),
    )

    got, expected = (dict(np.load(files[name])) for name in ("first", "alone"))
    counts = ("clipping/count", "mean/weight", "zeroing/count")
    assert_close(got, expected)
    assert_same({x: got[x] for x in counts}, {x: expected[x] for x in counts})
    assert got["zeroing/count"] == 1 and got["mean/weight"] > 1000
    assert not files["second"].exists()
    for output in outputs.values():
        assert output.count("Finished XLA compilation of jit(next)") == 1
