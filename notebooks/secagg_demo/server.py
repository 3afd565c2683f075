"""The server, as a process of its own. It never sees a client's vector."""

import argparse
import asyncio
import json
import pathlib
import socket
import sys
import time
from typing import Any

from flax import serialization

from fedagg import secagg
from notebooks.secagg_demo import task
from notebooks.secagg_demo.certificates import SERVER, server_context
from notebooks.secagg_demo.transport import Clients


def report(**fields: Any) -> None:
    """Tells whoever started this process."""
    print(json.dumps(fields), flush=True)


async def serve(
    folder: pathlib.Path, clients: int, rounds: int, seconds: float
) -> None:
    """Waits for all clients, then trains with those who are left in each round."""
    keys = (folder / "roster").read_bytes()
    roster = [keys[32 * i : 32 * (i + 1)] for i in range(clients)]
    peers = Clients(
        clients,
        largest=task.LARGEST_FRAME,
        seconds=seconds,
        handshake=task.HANDSHAKE,
        pending=task.PENDING,
        report=lambda number, why: report(cut=number, why=why),
    )
    listener = socket.create_server((SERVER, 0), backlog=clients)
    listener.setblocking(False)
    listening = asyncio.create_task(peers.listen(listener, server_context(folder)))
    report(port=listener.getsockname()[1])
    while len(peers.connected()) < clients:
        await asyncio.sleep(0.05)
    report(joined=clients)
    await asyncio.to_thread(sys.stdin.readline)  # the word to begin

    variables = task.first_variables()
    state = task.training.init(variables)
    for number in range(rounds):
        start, cohort = time.monotonic(), peers.connected()
        keys = [roster[i] for i in cohort]
        shared = task.training.steps.broadcast(state)
        told = task.wire().encode_shared(shared, number)
        plan = task.make_plan(keys, number, told)
        try:
            total, survivors = await peers.round(cohort, plan, keys, told)
        except secagg.ProtocolError as error:
            survivors = []
            report(failed=number, why=str(error))
        else:
            total = secagg.total_of(task.training, variables, total)
            state = task.output_of(state, total).state
        model = serialization.to_bytes((state.variables, state.aggregator))
        (folder / f"model-{number}").write_bytes(model)
        took = time.monotonic() - start
        report(round=number, cohort=cohort, survivors=survivors, seconds=took)
    listening.cancel()
    peers.close()
    listener.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    asyncio.run(serve(options.folder, options.clients, options.rounds, options.seconds))


if __name__ == "__main__":
    main()
