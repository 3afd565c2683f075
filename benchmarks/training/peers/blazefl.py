"""BlazeFL: a `ThreadPoolClientTrainer` with a thread a core, and PyTorch's models.

Trainer and mean are what its example of federated averaging does: each client loads the
model that it is sent, as one vector, and a `DataLoader` has its batches.
"""

import importlib
import os
import threading
from typing import Any

from benchmarks.training.rounds import Job, Round


def prepare(job: Job) -> Round:
    torch = importlib.import_module("torch")
    core = importlib.import_module("blazefl.core")
    data = importlib.import_module("torch.utils.data")
    models = importlib.import_module("benchmarks.training.peers.torch_models")
    workload = job.workload
    datasets = [
        data.TensorDataset(*models.data_of(examples)) for examples in workload.clients
    ]
    model = models.model_of(job)
    start = core.serialize_model(model)

    class Trainer(core.ThreadPoolClientTrainer):
        def __init__(self) -> None:
            self.num_parallels = os.cpu_count() or 1
            self.device, self.device_count = "cpu", 0
            self.cache: list[Any] = []
            self.stop_event = threading.Event()

        def worker(self, cid: int, device: str, payload: Any, stop_event: Any) -> Any:
            del device, stop_event
            mine = models.model_of(job)
            core.deserialize_model(mine, payload)
            chosen = [x for x in mine.parameters() if x.requires_grad]
            optimizer = torch.optim.SGD(chosen, lr=workload.rate)
            loader = data.DataLoader(datasets[cid], batch_size=workload.batch_size)
            for _ in range(workload.epochs):
                for batch in loader:
                    optimizer.zero_grad()
                    models.loss(mine, *batch).backward()
                    optimizer.step()
            return core.serialize_model(mine)

        def uplink_package(self) -> list[Any]:
            sent, self.cache = self.cache, []
            return sent

    trainer = Trainer()

    def run() -> Any:
        trainer.local_process(start, [*range(len(datasets))])
        return torch.stack(trainer.uplink_package()).mean(dim=0)

    def parameters(mean: Any) -> Any:
        core.deserialize_model(model, mean)
        return models.parameters_of(job, models.trained(model))

    return Round("ThreadPoolClientTrainer", run, parameters)
