"""Flower: its simulation, in which Ray's actors, one a core, train PyTorch's models.

The simulation stays up: its server waits for the benchmark to ask for a round, which is
then `FedAvg.start` for one round, of which weights are alike and nothing is evaluated.
"""

import functools
import importlib
import queue
import tempfile
import threading
from pathlib import Path
from typing import Any

from benchmarks.training.rounds import Job, NotRun, Round
from benchmarks.training.workloads import (
    load,
    load_parameters,
    save,
    save_parameters,
)

_STARTING_SECONDS = 300.0
_MOST_NODES = 200


def prepare(job: Job) -> Round:
    if len(job.workload.clients) > _MOST_NODES:
        raise NotRun("half a second a client to connect, before the first round")
    flwr = importlib.import_module("flwr.app")
    serverapp = importlib.import_module("flwr.serverapp")
    strategies = importlib.import_module("flwr.serverapp.strategy")
    simulation = importlib.import_module("flwr.simulation")
    torch_models = importlib.import_module("benchmarks.training.peers.torch_models")
    kept = tempfile.TemporaryDirectory()  # where actors find the examples
    folder = Path(kept.name)
    save(job.workload, folder / "workload.npz")
    save_parameters(job.start, folder / "start.npz")
    save_parameters(job.frozen, folder / "frozen.npz")
    number = len(job.workload.clients)
    start = flwr.ArrayRecord(torch_models.trained(torch_models.model_of(job)))
    asked: queue.Queue[bool] = queue.Queue()
    done: queue.Queue[Any] = queue.Queue()
    app = serverapp.ServerApp()

    @app.main()
    def _(grid: Any, context: Any) -> None:
        del context
        strategy = strategies.FedAvg(
            fraction_evaluate=0.0, min_train_nodes=number, min_available_nodes=number
        )
        while asked.get():
            try:
                done.put(strategy.start(grid, start, num_rounds=1).arrays)
            except Exception as error:
                done.put(error)

    def simulate() -> None:
        resources = {"client_resources": {"num_cpus": 1.0, "num_gpus": 0.0}}
        try:
            simulation.run_simulation(
                app, _client_app(folder), number, backend_config=resources
            )
        except BaseException as error:
            done.put(error)

    threading.Thread(target=simulate, daemon=True).start()

    def run() -> Any:
        asked.put(True)
        arrays = done.get(timeout=_STARTING_SECONDS)
        if isinstance(arrays, BaseException):
            raise RuntimeError(f"the simulation failed: {arrays}")
        return arrays

    def parameters(arrays: Any) -> Any:
        kept.cleanup()  # all turns are over
        return torch_models.parameters_of(job, arrays.to_torch_state_dict())

    return Round("run_simulation, FedAvg", run, parameters)


def _client_app(folder: Path) -> Any:
    flwr = importlib.import_module("flwr.app")
    app = importlib.import_module("flwr.clientapp").ClientApp()

    @app.train()
    def _(message: Any, context: Any) -> Any:
        importlib.import_module("torch")  # Flower looks whether it is imported
        client = int(context.node_config["partition-id"])
        state = message.content["arrays"].to_torch_state_dict()
        content = {
            "arrays": flwr.ArrayRecord(train(folder, client, state)),
            "metrics": flwr.MetricRecord({"num-examples": 1}),
        }
        return flwr.Message(flwr.RecordDict(content), reply_to=message)

    return app


@functools.cache
def _prepared(folder: Path) -> tuple[Job, Any]:
    """What an actor keeps."""
    models = importlib.import_module("benchmarks.training.peers.torch_models")
    start, frozen = (load_parameters(folder / f"{x}.npz") for x in ("start", "frozen"))
    job = Job(load(folder / "workload.npz"), start, frozen, "")
    return job, models.model_of(job)


def train(folder: Path, client: int, state: dict) -> dict:
    """One client's round, in an actor."""
    torch = importlib.import_module("torch")
    models = importlib.import_module("benchmarks.training.peers.torch_models")
    (workload, *_), model = _prepared(folder)
    trained = models.trained(model)
    for name, x in trained.items():
        x.copy_(state[name])
    optimizer = torch.optim.SGD(
        [x for x in model.parameters() if x.requires_grad], lr=workload.rate
    )
    data = models.data_of(workload.clients[client])
    for _ in range(workload.epochs):
        for batch in zip(*(x.split(workload.batch_size) for x in data), strict=True):
            optimizer.zero_grad()
            models.loss(model, *batch).backward()
            optimizer.step()
    return trained
