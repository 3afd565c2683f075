"""What secure aggregation costs in time and bytes: `-m benchmarks.secagg`."""

import argparse
import asyncio
import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import made_up
from benchmarks.options import RESULTS, add_compare
from benchmarks.report import Report, markdown
from fedagg import secagg
from fedagg.secagg import _messages as messages
from fedagg.secagg._crypto import SEALED, keystream
from fedagg.secagg._demands import AnyPlan
from fedagg.secagg._masking import Mask, add_masks, packed_size
from notebooks.secagg_demo import crowd

_PIECE = bytes(2**20)
_CONTEXT = secagg.context_of([], b"a benchmark")
_ALL_REAL = 1000  # clients, and of more the most are made up
_LEGEND = """
cryptography {version}. When it began, {load:.1f} programs wanted a core. One process,
one thread. *Client*: all steps of the median
client. *Server*: all steps, of which *close* is recovering secrets and taking masks
off, after the last client. *Sent*: bytes of a client's messages over those of its plain
vector of b-bit entries; *and received*: with the server's messages to it. Clients drop
out with their vectors, after they shared secrets, which costs the server most. Each sum
is compared with NumPy's. Of {all_real:,} clients and fewer, each takes its steps. Of
more, the server has the whole of its work, with messages as they would come, though of
clients that are made up; and a client is timed in a cohort of twice its neighbours, as
what it does and sends depends on their number and the threshold alone.

*Over TLS*: a server in one process, in another all clients, which share one core, of
the transport of `notebooks/secagg_demo`: how long until they are connected, the round,
and the frames that the server took in it. Of those killed, a third each goes halfway in
its shares, its vector and its openings. *Liars* open a share that nobody dealt; all
clients of such a graph are made up."""


class Case(NamedTuple):
    """A row: a plan, and how many of its clients drop out."""

    name: str
    plan: secagg.Plan
    dropped: int


class Cost(NamedTuple):
    """What a round took."""

    client: float  # seconds, the median client's
    server: float  # seconds
    close: float  # seconds of these, in the last step
    sent: int  # bytes, of a client
    received: int


def main() -> None:
    chosen = _options()
    start = time.perf_counter()
    with Report("Secure aggregation", chosen.out / "secagg-cpu.md") as report:
        known = {
            "version": metadata.version("cryptography"),
            "load": os.getloadavg()[0],
            "all_real": _ALL_REAL,
        }
        report.say(_LEGEND.format(**known))
        cases = [x for x in _cases() if x.plan.clients <= chosen.largest]
        cases = cases[: 3 if chosen.quick else None]
        crowds = ((10, 1),) if chosen.quick else ((100, 9), (1000, 0), (1000, 99))
        parts = {
            "masks": _masking(),
            "rounds": [_round(case) for case in cases],
            "bytes": _bytes(),
            "transport": [_over_tls(*numbers) for numbers in crowds],
            "liars": [_lying(20 if chosen.quick else 1000)],
        }
        for heading, (name, rows) in zip(_HEADINGS, parts.items(), strict=True):
            report.say(f"\n## {heading}\n\n{table(name, rows)}")
            for row in rows:
                report.keep(table=name, **row)
        report.say(f"\nThis took {time.perf_counter() - start:.0f} seconds.")
        report.compare("secagg", chosen.compare)


def table(name: str, rows: list[dict]) -> str:
    """One of the tables, of rows as they are kept."""
    columns = _COLUMNS[name]
    cells = [[form(row) for form in columns.values()] for row in rows]
    return markdown([[*columns], *cells])


def _number(name: str, form: str) -> Callable[[dict], str]:
    """A cell, `-` where nothing was measured."""
    return lambda row: "-" if row.get(name) is None else f"{row[name]:{form}}"


def _milliseconds(name: str) -> Callable[[dict], str]:
    """A cell with three digits at least."""
    return lambda row: f"{row[name]:,.{2 if row[name] < 10.0 else 1}f}"


_HEADINGS = [
    *("Masks", "Rounds", "Bytes beside Bonawitz et al. 2017"),
    *("Over TLS", "Liars in a complete graph"),
]
_COLUMNS: dict[str, dict[str, Callable[[dict], str]]] = {
    "masks": {
        "23 masks of 1,000,000 uint32": _number("what", ""),
        "ms": _number("milliseconds", ".1f"),
        "GB/s": _number("gigabytes_a_second", ".1f"),
        "ratio": _number("ratio", ".2f"),
    },
    "rounds": {
        "mode": _number("mode", ""),
        "clients": _number("clients", ","),
        "entries x bits": lambda row: f"{row['entries']:,} x {row['bits']}",
        "degree": _number("degree", ""),
        "threshold": _number("threshold", ""),
        "dropped": _number("dropped", ""),
        "client ms": _milliseconds("client_milliseconds"),
        "server ms": _milliseconds("server_milliseconds"),
        "close ms": _milliseconds("close_milliseconds"),
        "sent": _number("sent", ".3f"),
        "and received": _number("sent_and_received", ".3f"),
    },
    "bytes": {
        "2^10 clients, 2^20 entries of 16 bits, sent as 26": _number("who", ""),
        "degree": _number("degree", ""),
        "sent": _number("sent", ".3f"),
        "and received": _number("sent_and_received", ".3f"),
    },
    "transport": {
        "clients over TLS": _number("clients", ","),
        "entries x bits": lambda row: f"{row['entries']:,} x {row['bits']}",
        "killed": _number("killed", ""),
        "in the sum": _number("survivors", ""),
        "connected in s": _number("connecting_seconds", ".1f"),
        "round s": _number("round_seconds", ".1f"),
        "MB taken": _number("megabytes", ".1f"),
        "clients/s": _number("clients_a_second", ".1f"),
    },
    "liars": {
        "clients of a complete graph": _number("clients", ","),
        "threshold": _number("threshold", ""),
        "liars": _number("liars", ""),
        "dropped": _number("dropped", ""),
        "server s": _number("server_seconds", ".2f"),
        "close s": _number("close_seconds", ".2f"),
    },
}


def _cases() -> list[Case]:
    cases = []
    for clients, length, drops in (
        (10, 100_000, (0, 1)),
        (100, 10_000, (0,)),
        (100, 100_000, (0, 5, 10)),
        (100, 1_000_000, (0, 10)),
        (1000, 10_000, (0, 100)),
        (1000, 100_000, (0, 100)),
        (10_000, 1_000, (1000,)),
    ):
        plan = secagg.Plan.for_cohort(clients, length, 32, _CONTEXT)
        cases += [Case("semi-malicious", plan, dropped) for dropped in drops]
    for mode in ("semi-honest", "signed"):
        plan = secagg.Plan.for_cohort(100, 100_000, 32, _CONTEXT, mode=mode)
        cases.append(Case(mode, plan, 10))
    for clients, length, drops in ((100, 100_000, (0, 10)), (1000, 10_000, (100,))):
        hybrid = secagg.Plan.for_cohort(clients, length, 32, _CONTEXT, hybrid=True)
        cases += [Case("hybrid", hybrid, dropped) for dropped in drops]
    narrow = secagg.Plan.for_cohort(100, 100_000, 20, _CONTEXT)
    cases.append(Case("semi-malicious", narrow, 10))
    complete = secagg.Plan.complete(100, 100_000, 32, _CONTEXT)
    return [*cases, *(Case("complete graph", complete, x) for x in (0, 10))]


def _round(case: Case) -> dict:
    is_real = case.plan.clients <= _ALL_REAL
    plan, cost = case.plan, (_measure if is_real else _measure_apart)(case)
    plain = plan.length * plan.bits / 8
    return {
        "mode": case.name,
        "clients": plan.clients,
        "entries": plan.length,
        "bits": plan.bits,
        "degree": plan.degree,
        "threshold": plan.threshold,
        "dropped": case.dropped,
        "client_milliseconds": 1e3 * cost.client,
        "server_milliseconds": 1e3 * cost.server,
        "close_milliseconds": 1e3 * cost.close,
        "sent": cost.sent / plain,
        "sent_and_received": (cost.sent + cost.received) / plain,
    }


def _over_tls(clients: int, killed: int) -> dict:
    """A round over sockets.

    Raises:
        AssertionError: if the sum is not that of those whose vectors came.
    """
    entries = 10_000
    outcome = asyncio.run(crowd.measure(clients, entries, killed, seconds=600.0))
    assert outcome.survivors == crowd.those_in_the_sum(clients, killed)
    assert np.array_equal(outcome.total, crowd.sum_of(outcome.survivors, entries))
    return {
        "clients": clients,
        "entries": entries,
        "bits": crowd.BITS,
        "killed": killed,
        "survivors": len(outcome.survivors),
        "connecting_seconds": outcome.connecting,
        "round_seconds": outcome.seconds,
        "megabytes": 1e-6 * outcome.received,
        "clients_a_second": clients / outcome.seconds,
    }


def _lying(clients: int) -> dict:
    """A complete graph with two liars, of which a hundredth drops out.

    Raises:
        AssertionError: if they are not refused, or the sum is not that of the others.
    """
    plan = secagg.Plan.complete(clients, 1000, 32, _CONTEXT)
    row = made_up.measure(plan, max(1, clients // 100), (1, 3))
    assert row.pop("refused") == [1, 3] and row.pop("is_right")
    return row


def _measure(case: Case) -> Cost:
    """Runs a round, each party by its own clock.

    Raises:
        AssertionError: if the sum is not NumPy's.
    """
    plan, random = case.plan, np.random.default_rng(0)
    identities, roster = [None] * plan.clients, None
    if plan.signed:
        pairs = [secagg.generate_identity() for _ in range(plan.clients)]
        identities, roster = [x for x, _ in pairs], [x for _, x in pairs]
    expected = np.zeros(plan.length, np.uint32)
    clients = []
    for i in range(plan.clients):
        vector = random.integers(0, 2**plan.bits, plan.length, dtype=np.uint32)
        if i >= case.dropped:
            expected += vector
        client = secagg.Client(
            plan, i, vector, AnyPlan(), identity=identities[i], roster=roster
        )
        clients.append(client)
    spent, sent, received = [[0] * plan.clients for _ in range(3)]
    server = secagg.Server(plan, roster=roster)
    serving = closing = 0.0
    inbox: dict = dict.fromkeys(range(plan.clients))
    while server.step != "nothing":
        for i, message in inbox.items():
            if server.step == "vectors" and i < case.dropped:
                continue
            answer, seconds = _timed(lambda i=i, x=message: clients[i].respond(x))
            spent[i] += seconds
            sent[i] += len(answer)
            received[i] += len(message or b"")
            _, seconds = _timed(lambda i=i, x=answer: server.receive(i, x))
            serving += seconds
        inbox, closing = _timed(lambda: dict(server.close()))
        serving += closing
    assert np.array_equal(server.total, expected & np.uint32(2**plan.bits - 1))
    last = plan.clients - 1
    if not (plan.signed or plan.hybrid or case.dropped):
        assert (sent[last], received[last]) == _sizes(plan)
    middle = statistics.median(spent[case.dropped :])
    return Cost(middle, serving, closing, sent[last], received[last])


def _measure_apart(case: Case) -> Cost:
    """A client in a cohort of twice its neighbours, the server with made-up clients.

    Raises:
        AssertionError: if a sum is not NumPy's.
    """
    plan = case.plan
    few = 2 * plan.degree
    gone = few * case.dropped // plan.clients
    small = dataclasses.replace(plan, clients=few, quorum=few - gone)
    cost = _measure(Case(case.name, small, gone))
    server = made_up.measure(plan, case.dropped)
    assert server["is_right"]
    return cost._replace(server=server["server_seconds"], close=server["close_seconds"])


def _timed(run: Callable):
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def _masking() -> list[dict]:
    """Masks of 22 neighbours and one's own, beside as much of the raw keystream."""
    total = np.zeros(1_000_000, np.uint32)
    masks = [Mask(bytes([i]) * 32, 1 if i % 2 else -1) for i in range(23)]
    buffer = bytearray(len(_PIECE) + 15)

    def raw() -> None:
        for mask in masks:
            fill, left = keystream(mask.key), total.nbytes
            while left > 0:
                fill(_PIECE[:left] if left < len(_PIECE) else _PIECE, buffer)
                left -= len(_PIECE)

    turns = []
    for _ in range(30):
        turns.append((_timed(raw)[1], _timed(lambda: add_masks(total, masks))[1]))
    floor, ours = (statistics.median(x) for x in zip(*turns, strict=True))
    gigabytes = 1e-9 * 23 * total.nbytes
    return [
        {
            "what": what,
            "milliseconds": 1e3 * spent,
            "gigabytes_a_second": gigabytes / spent,
            "ratio": ratio,
        }
        for what, spent, ratio in (
            ("AES-256-CTR in 1 MiB pieces", floor, 1.0),
            (
                "masks added to a vector",
                ours,
                statistics.median(b / a for a, b in turns),
            ),
        )
    ]


def _bytes() -> list[dict]:
    """The setting of their 1.73: 2**10 users and 2**20 entries of 16 bits.

    The sum needs ceil(log2(2**10 * (2**16 - 1) + 1)) = 26 bits an entry.
    """
    clients, length, plain = 2**10, 2**20, 2**20 * 16 / 8
    rows: list[dict] = [{"who": "Bonawitz et al. 2017, as they report", "degree": 1023}]
    rows[0] |= {"sent": 1.73, "sent_and_received": None}
    for name, plan in (
        ("complete graph", secagg.Plan.complete(clients, length, 26, _CONTEXT)),
        ("for_cohort()", secagg.Plan.for_cohort(clients, length, 26, _CONTEXT)),
    ):
        sent, received = _sizes(plan)
        row = {"who": f"fedagg, {name}", "degree": plan.degree, "sent": sent / plain}
        rows.append(row | {"sent_and_received": (sent + received) / plain})
    return rows


def _sizes(plan: secagg.Plan) -> tuple[int, int]:
    """Bytes that a client sends and receives in a plain round without dropouts."""
    key, share, sealed = bytes(32), bytes(32), bytes(64 + SEALED)
    keys = (key, key, messages.NO_SIGNATURE)
    others = range(plan.degree)
    vector = bytes(packed_size(plan.bits, plan.length))
    sent = [
        messages.Keys(*keys),
        messages.Shares(key, [(j, sealed, key, key) for j in others]),
        messages.MaskedInput(vector),
        messages.Opened([(j, share) for j in others], []),
    ]
    received = [
        messages.KeysOfNeighbours([(j, *keys) for j in range(plan.degree + 1)], []),
        messages.SharesOfNeighbours([(j, sealed, key, key) for j in others]),
        messages.Unmasking([(j,) for j in others], [], []),
    ]

    def count(group) -> int:
        return sum(len(messages.encode(x, plan, 0, 0)) for x in group)

    return count(sent), count(received)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.secagg")
    parser.add_argument("--quick", action="store_true", help="three rounds only")
    parser.add_argument(
        "--largest", type=int, default=10_000, help="clients of the largest round"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="a folder")
    add_compare(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
