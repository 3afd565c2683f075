"""PyTorch by hand: a Python loop over clients and their batches, one model for all.

Clients' data are tensors, on the GPU where there is one, and a round adds up their ends
in place.
"""

import importlib
from typing import Any

from benchmarks.training.rounds import Job, Round
from benchmarks.training.workloads import Parameters


def prepare(job: Job) -> Round:
    torch = importlib.import_module("torch")
    models = importlib.import_module("benchmarks.training.peers.torch_models")
    has_gpu = torch.cuda.is_available()
    device = "cuda" if has_gpu else "cpu"
    workload, model = job.workload, models.model_of(job).to(device)
    size, number = workload.batch_size, len(workload.clients)
    start = {name: x.clone() for name, x in models.trained(model).items()}
    clients = [
        [x.to(device) for x in models.data_of(examples)]
        for examples in workload.clients
    ]
    optimizer = torch.optim.SGD(
        [x for x in model.parameters() if x.requires_grad], lr=workload.rate
    )

    def train(inputs: Any, targets: Any) -> None:
        for batch in zip(inputs.split(size), targets.split(size), strict=True):
            optimizer.zero_grad()
            models.loss(model, *batch).backward()
            optimizer.step()

    def run() -> dict[str, Any]:
        ends = models.trained(model)
        total = {name: torch.zeros_like(x) for name, x in start.items()}
        for data in clients:
            for name, x in ends.items():
                x.copy_(start[name])
            for _ in range(workload.epochs):
                train(*data)
            for name, x in ends.items():
                total[name] += x
        mean = {name: x / number for name, x in total.items()}
        if has_gpu:
            torch.cuda.synchronize()
        return mean

    def parameters(mean: dict[str, Any]) -> Parameters:
        return models.parameters_of(job, {name: x.cpu() for name, x in mean.items()})

    return Round("SGD", run, parameters)
