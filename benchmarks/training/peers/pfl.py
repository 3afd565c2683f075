"""pfl-research: `FederatedAveraging` on a `SimulatedBackend`, with PyTorch's models.

Users' datasets are tensors. A round is what `FederatedAveraging.run` does in a central
iteration without evaluation, callbacks apart: results are gathered from a cohort of all
users, weighted alike, and the model is updated by SGD of rate 1.
"""

import importlib
from typing import Any

from benchmarks.training.rounds import Job, Round


def prepare(job: Job) -> Round:
    torch = importlib.import_module("torch")
    models = importlib.import_module("benchmarks.training.peers.torch_models")
    training = importlib.import_module("pfl.algorithm.federated_averaging")
    base = importlib.import_module("pfl.algorithm.base")
    utils = importlib.import_module("pfl.algorithm.algorithm_utils")
    simulate = importlib.import_module("pfl.aggregate.simulate")
    weighting = importlib.import_module("pfl.aggregate.weighting")
    hyperparam = importlib.import_module("pfl.hyperparam")
    wrapped = importlib.import_module("pfl.model.pytorch")
    workload = job.workload

    module = models.model_of(job)
    module.loss = lambda x, y, is_eval=False: models.loss(module, x, y)
    module.metrics = lambda *examples, **kwargs: {}
    start = {name: x.clone() for name, x in models.trained(module).items()}
    chosen = [x for x in module.parameters() if x.requires_grad]
    model = wrapped.PyTorchModel(
        module, torch.optim.SGD, torch.optim.SGD(chosen, lr=1.0)
    )
    users = _users(job, models)
    backend = simulate.SimulatedBackend(
        training_data=users,
        val_data=None,
        postprocessors=[weighting.WeightByUser()],
    )
    rounds = base.NNAlgorithmParams(
        central_num_iterations=2,
        evaluation_frequency=2,  # the iteration that is run, number 1, has none
        train_cohort_size=len(workload.clients),
        val_cohort_size=0,
    )
    local = hyperparam.NNTrainHyperParams(
        local_num_epochs=workload.epochs,
        local_learning_rate=workload.rate,
        local_batch_size=workload.batch_size,
    )

    def run() -> dict[str, Any]:
        for name, x in models.trained(module).items():
            x.copy_(start[name])
        algorithm = training.FederatedAveraging()
        contexts, _, _ = algorithm.get_next_central_contexts(model, 1, rounds, local)
        [(sent, metrics)] = utils.run_train_eval(algorithm, backend, model, contexts)
        algorithm.process_aggregated_statistics(contexts[0], metrics, model, sent)
        return models.trained(module)

    return Round("FederatedAveraging", run, lambda end: models.parameters_of(job, end))


def _users(job: Job, models: Any) -> Any:
    datasets = importlib.import_module("pfl.data.dataset")
    federated = importlib.import_module("pfl.data.federated_dataset")
    sampling = importlib.import_module("pfl.data.sampling")
    clients = [models.data_of(examples) for examples in job.workload.clients]
    made = [datasets.Dataset(raw_data=list(x)) for x in clients]
    sampler = sampling.get_user_sampler("minimize_reuse", list(range(len(made))))
    return federated.FederatedDataset(lambda user: made[user], sampler)
