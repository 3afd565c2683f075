"""A client, as a process of its own, with a file of its own data."""

import argparse
import asyncio
import os
import pathlib
import signal
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedagg import secagg
from notebooks.secagg_demo import task
from notebooks.secagg_demo.transport import Connection, TransportError, pack

STEPS = ("keys", "shares", "vectors", "signatures", "openings")


class Participant:
    """What a client is from round to round."""

    def __init__(self, folder: pathlib.Path, number: int):
        own = np.load(folder / f"client-{number}.npz")
        self._row = (own["windows"], own["labels"]), own["mask"]
        self._weight = jnp.float32(own["mask"].sum() / task.MOST_WINDOWS)
        self._number, self._identity = number, own["identity"].tobytes()
        keys = (folder / "roster").read_bytes()
        self._roster = [keys[i : i + 32] for i in range(0, len(keys), 32)]
        self._ledger = secagg.Ledger(folder / f"ledger-{number}")
        # Compiles, so that the server's deadlines are for the work alone.
        state = task.training.init(task.first_variables())
        self._train(0, task.training.steps.broadcast(state))

    def begin(self, plan: secagg.Plan, cohort: list[int], told: bytes) -> secagg.Client:
        """Trains, and makes the state machine of a round, if it is as demanded."""
        roster = [self._roster[i] for i in cohort]
        demands = task.demands(roster, told)
        demands.check(plan)  # before the work
        shared = task.wire().decode_shared(told, plan.number)
        return secagg.Client(
            plan,
            cohort.index(self._number),
            self._train(plan.number, shared),
            demands,
            identity=self._identity,
            roster=roster,
            ledger=self._ledger,
        )

    def _train(self, number: int, shared: Any) -> np.ndarray:
        change = task.change_of(
            shared.variables, self._row, task.key_of(number), jnp.uint32(self._number)
        )
        message = task.message_of(shared.aggregator, change, self._weight)
        return secagg.vector_of(message)


async def take_part(participant: Participant, number: int, port: int, faults) -> None:
    """Answers the server until it has no more to say, but for what `faults` says."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connection = Connection(reader, writer, task.LARGEST_FRAME, task.CLIENTS)
    await connection.send(number)
    client, current, steps = None, None, iter(STEPS)
    while True:
        try:
            frame = await connection.receive(list, bytes)
        except (TransportError, OSError):
            return
        if type(frame) is list:
            plan = secagg.Plan.decode(frame[0])
            client, steps = participant.begin(plan, *frame[1:]), iter(STEPS)
            current = plan.number
            answer = client.respond()
        elif client is None:
            raise secagg.WrongStepError("A step before there is a round.")
        else:
            answer = client.respond(frame)
        fault = faults.get((current, next(steps)))
        if fault == "garbles":
            answer = answer[::-1]
        elif fault == "stalls":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault == "killed halfway":
            writer.write(pack(answer)[: len(answer) // 2])
            await writer.drain()
        if fault in ("killed", "killed halfway"):
            os.kill(os.getpid(), signal.SIGKILL)
        await connection.send(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--faults", nargs="*", default=[], help="ROUND:STEP:HOW")
    options = parser.parse_args()
    faults = {}
    for fault in options.faults:
        current, step, how = fault.split(":")
        faults[int(current), step] = how
    participant = Participant(options.folder, options.number)
    asyncio.run(take_part(participant, options.number, options.port, faults))


if __name__ == "__main__":
    main()
