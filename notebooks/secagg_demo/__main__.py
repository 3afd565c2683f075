"""Does secure aggregation over real sockets give what a simulation gives?

`make secagg-demo` starts a server and a dozen clients, each a process of its own. A
client is one side of a person with a smartwatch who did seven shoulder exercises; four
more people, who took no part, are for testing. They train a small Flax model by SecAgg+
over TLS on loopback, in signed mode. Clients are killed in the middle of rounds, one
stalls and one sends nonsense, while strangers send the server worse. In the end the
same rounds run inside `jax.jit`, with the survivors that the server had, and each
client's training done as at home: the models are the same to the last bit. Where
clients train side by side inside the program too, their floats are rounded otherwise,
and the last column has how far apart models then are after as many rounds.
"""

import argparse
import contextlib
import json
import pathlib
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from flax import serialization
from seglearn.datasets import load_watch

import fedagg
from fedagg import secagg
from notebooks.secagg_demo import task
from notebooks.secagg_demo.certificates import SERVER, Authority, client_context

ROOT = pathlib.Path(__file__).parents[2]
# Client, round, what it does not send any more, and how that comes.
FAULTS = (
    *("2:1:shares:killed", "5:1:vectors:killed", "8:1:signatures:killed"),
    *("1:2:vectors:stalls", "10:3:vectors:killed halfway", "3:4:openings:garbles"),
)
UNEXPECTED = 99  # a client that has a certificate, and no place


class Round(NamedTuple):
    """What came of a round."""

    cohort: int
    survivors: list[int]
    seconds: float
    accuracy: float  # on people who took no part
    same: bool  # whether the simulation has this model, bit for bit
    apart: float  # from a simulation that trains inside too, the largest difference


def federated_watches() -> tuple[list[tuple], tuple]:
    """Windows of two seconds of each client, and those of the people for testing."""
    watches = load_watch()
    scale = np.array([1, 1, 1, 3, 3, 3], np.float32)  # g, radians a second
    owned: dict[tuple, list] = {}
    for recording, person, side, label in zip(
        *(watches[name] for name in ("X", "subject", "side", "y")), strict=True
    ):
        count = len(recording) // task.WINDOW
        windows = recording[: count * task.WINDOW].astype(np.float32) / scale
        windows = windows.reshape(count, task.WINDOW, task.CHANNELS)
        labels = np.full(count, label, np.int32)
        owned.setdefault((person, side), []).append((windows, labels))
    parts = [
        tuple(np.concatenate(x) for x in zip(*owned[who], strict=True))
        for who in sorted(owned)
    ]
    test = tuple(np.concatenate(x) for x in zip(*parts[task.CLIENTS :], strict=True))
    return parts[: task.CLIENTS], test


def hand_out(folder: pathlib.Path, data: Any) -> None:
    """Writes each client's file, with its own data and identity, and the roster."""
    (windows, labels), mask = data
    authority, roster = Authority(folder), b""
    authority.sign_server()
    authority.sign_client(UNEXPECTED)
    for i in range(len(mask)):
        authority.sign_client(i)
        private, public = secagg.generate_identity()
        roster += public
        own = {"windows": windows[i], "labels": labels[i], "mask": mask[i]}
        identity = np.frombuffer(private, np.uint8)
        np.savez(folder / f"client-{i}.npz", **own, identity=identity)
    (folder / "roster").write_bytes(roster)


def be_a_nuisance(folder: pathlib.Path, port: int, stack: contextlib.ExitStack) -> None:
    """Connects as peers whom the server has to refuse, and stays."""

    def stranger(context: ssl.SSLContext | None, sent: bytes = b"") -> None:
        peer = stack.enter_context(socket.create_connection((SERVER, port)))
        if context is not None:
            peer = stack.enter_context(
                context.wrap_socket(peer, server_hostname=SERVER)
            )
        peer.sendall(sent)

    elsewhere = folder / "elsewhere"
    Authority(elsewhere).sign_client(0)
    shutil.copy(folder / "authority.pem", elsewhere)  # it trusts the server
    stranger(client_context(elsewhere, 0))
    stranger(client_context(folder, UNEXPECTED))
    stranger(ssl.create_default_context(cafile=folder / "authority.pem"))
    stranger(None, b"GET / HTTP/1.1\r\n\r\n")
    stranger(None)


def run_processes(folder: pathlib.Path, clients: int, options) -> Iterator[dict]:
    """Starts the server and the clients, and gives what the server reports."""

    def start(role: str, *arguments: Any, **more: Any) -> subprocess.Popen:
        command = [sys.executable, "-m", f"notebooks.secagg_demo.{role}"]
        command += ["--folder", str(folder), *map(str, arguments)]
        process = subprocess.Popen(command, cwd=ROOT, **more)
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process

    with contextlib.ExitStack() as stack:
        limits = ("--rounds", options.rounds, "--seconds", options.seconds)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        server = start("server", "--clients", clients, *limits, **pipes)
        assert server.stdin is not None and server.stdout is not None
        port = json.loads(server.stdout.readline())["port"]
        for i in range(clients):
            own = [x.partition(":") for x in options.faults]
            faults = [rest for number, _, rest in own if int(number) == i]
            start("client", "--number", i, "--port", port, "--faults", *faults)
        for line in server.stdout:
            report = json.loads(line)
            if "joined" in report:
                be_a_nuisance(folder, port, stack)
                print(file=server.stdin, flush=True)
            else:
                yield report
        if server.wait():
            raise RuntimeError("The server failed; what it said is above.")


def replay(folder: pathlib.Path, data: Any, test: tuple, reports: list[dict]):
    """Runs the same rounds in one process, and compares the models."""
    variables = task.first_variables()
    aggregator = task.aggregator
    next_round, state = jax.jit(aggregator.next), aggregator.init(variables)
    next_whole = jax.jit(task.training.next)
    whole = task.training.init(variables)
    mask = data[1]
    for report in reports:
        number, survivors = report["round"], report["survivors"]
        weights = np.zeros(len(mask), np.float32)
        weights[survivors] = mask[survivors].sum(1) / task.MOST_WINDOWS
        key = task.key_of(number)
        # Each client by itself, as it is at home: trained side by side, the floats
        # would differ in their last bits, before there is anything to aggregate.
        changes = [
            task.change_of(
                variables, jax.tree.map(lambda x, i=i: x[i], data), key, jnp.uint32(i)
            )
            for i in range(len(mask))
        ]
        changes = jax.tree.map(lambda *x: jnp.stack(x), *changes)
        output = next_round(state, changes, weights)
        state, variables = output.state, task.add(variables, output.value)
        whole, _, _ = next_whole(whole, data, weights, key)

        stored = (folder / f"model-{number}").read_bytes()
        form = variables, aggregator.init(variables)
        there = jax.tree.leaves(serialization.from_bytes(form, stored))
        here = jax.tree.leaves((variables, state))
        inside = jax.tree.leaves(whole.variables)
        pairs = zip(inside, there[: len(inside)], strict=True)
        windows, labels = test
        guesses = np.asarray(task.net.apply(variables, windows)).argmax(-1)
        yield Round(
            len(report["cohort"]),
            survivors,
            report["seconds"],
            float(np.mean(guesses == labels)),
            all(np.array_equal(x, y) for x, y in zip(here, there, strict=True)),
            max(float(abs(x - y).max()) for x, y in pairs),
        )


def table(rounds: list[Round]) -> str:
    """What each round came to."""
    lines = ["round  clients  in the sum  seconds  accuracy  same bits  trained inside"]
    for number, x in enumerate(rounds):
        lines.append(
            f"{number:5}  {x.cohort:7}  {len(x.survivors):10}  {x.seconds:7.2f}  "
            f"{x.accuracy:8.3f}  {'yes' if x.same else 'NO':>9}  {x.apart:14.1e}"
        )
    return "\n".join(lines)


def draw(rounds: list[Round], path: pathlib.Path) -> None:
    """Accuracy after each round, and who was in its sum."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    numbers = range(len(rounds))
    left.plot(numbers, [x.accuracy for x in rounds], marker="o")
    left.axhline(1 / task.EXERCISES, color="grey", lw=0.8, ls=":", label="guessing")
    left.set(xlabel="round", ylabel="accuracy on new people", ylim=(0, 1))
    left.legend(loc="lower right")
    for number, x in enumerate(rounds):
        right.scatter([number] * len(x.survivors), x.survivors, color="C0")
    right.set(xlabel="round", ylabel="clients in the sum")
    for axes in (left, right):
        axes.set_xticks(numbers)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=task.CLIENTS)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=6.0, help="for a step")
    parser.add_argument("--faults", nargs="*", default=FAULTS)
    parser.add_argument("--out", type=pathlib.Path, default="build/secagg_demo.png")
    options = parser.parse_args()
    start = time.monotonic()
    clients, test = federated_watches()
    data, _ = fedagg.pad_clients(clients[: options.clients])
    with tempfile.TemporaryDirectory() as place:
        folder, reports = pathlib.Path(place), []
        hand_out(folder, data)
        for report in run_processes(folder, options.clients, options):
            if "round" in report:
                reports.append(report)
            else:
                who = report.get("cut", "server")
                who = "stranger" if who is None else who
                print(f"round {len(reports)}: {who}: {report['why']}")
        rounds = list(replay(folder, data, test, reports))
    print(table(rounds))
    draw(rounds, options.out)
    print(f"picture: {options.out}")
    same = all(x.same for x in rounds) and len(rounds) == options.rounds
    print(f"all models are the same to the last bit: {'yes' if same else 'NO'}")
    print(f"{time.monotonic() - start:.0f} seconds")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
