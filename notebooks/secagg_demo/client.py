"""A client, as a process of its own, with a file of its own data."""

import argparse
import asyncio
import os
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedagg import secagg
from notebooks.secagg_demo import task
from notebooks.secagg_demo.certificates import client_context
from notebooks.secagg_demo.transport import Connection, Kind, answers, connect, pack

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


async def take_part(
    participant: Participant, connection: Connection, faults: dict
) -> None:
    """Answers the server until it has no more to say, but for what `faults` says."""
    steps: Iterator[str] = iter(())
    current = None
    async for plan, answer in answers(connection, participant.begin):
        if plan.number != current:
            current, steps = plan.number, iter(STEPS)
        fault = faults.get((current, next(steps)))
        if fault == "garbles":
            answer = answer[::-1]
        elif fault == "stalls":
            os.kill(os.getpid(), signal.SIGSTOP)
        frame = pack(Kind.STEP, answer)
        if fault == "killed halfway":
            await connection.send(frame[: len(frame) // 2])
        if fault in ("killed", "killed halfway"):
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            await connection.send(frame)
        except OSError:  # the server has had enough
            return


async def run(participant: Participant, folder: pathlib.Path, options, faults) -> None:
    context = client_context(folder, options.number)
    connection = await connect(options.port, context, task.LARGEST_FRAME)
    await take_part(participant, connection, faults)


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
    asyncio.run(run(participant, options.folder, options, faults))


if __name__ == "__main__":
    main()
