"""FedJAX: what `algorithms.fed_avg` trains with, on the default `for_each_client`.

Models are Haiku's. Batches are `padded_batch`, so that the last of a client compiles
nothing anew, and clients count alike, by `mean_aggregator`.
"""

import importlib
from typing import Any

from benchmarks.training.peers.layout import from_haiku, to_haiku
from benchmarks.training.rounds import Job, NotRun, Round


def prepare(job: Job) -> Round:
    workload = job.workload
    if workload.model not in ("cnn", "mlp", "logistic"):
        raise NotRun("FedJAX has no transformer; this one isn't written in Haiku")
    jax = importlib.import_module("jax")
    for name in ("map", "leaves", "flatten", "unflatten", "structure", "reduce"):
        # FedJAX calls these names, which JAX has removed.
        vars(jax)[f"tree_{name}"] = getattr(jax.tree, name)
    fedjax = importlib.import_module("fedjax")
    fed_avg = importlib.import_module("fedjax.algorithms.fed_avg")
    optimizer = fedjax.optimizers.sgd(workload.rate)
    model = _model(job)
    train = fed_avg.create_train_for_each_client(fedjax.model_grad(model), optimizer)
    aggregator = fedjax.aggregators.mean_aggregator()
    server = fedjax.optimizers.sgd(1.0)
    start = jax.tree.map(jax.numpy.asarray, to_haiku(job.start))
    key = jax.random.PRNGKey(0)
    clients = [
        (i, fedjax.ClientDataset({"x": inputs, "y": targets}))
        for i, (inputs, targets) in enumerate(workload.clients)
    ]

    def batches(data: Any) -> list:
        once = data.padded_batch(batch_size=workload.batch_size)
        return [batch for _ in range(workload.epochs) for batch in once]

    def run() -> Any:
        given = [(i, batches(data), key) for i, data in clients]
        ends = ((i, change, 1.0) for i, change in train(start, given))
        mean, _ = aggregator.apply(ends, aggregator.init())
        state = server.init(start)
        return jax.block_until_ready(server.apply(mean, state, start)[1])

    calls = "for_each_client, mean_aggregator"
    return Round(calls, run, lambda end: from_haiku(end, job.start))


def _model(job: Job) -> Any:
    fedjax = importlib.import_module("fedjax")
    hk = importlib.import_module("haiku")
    jax = importlib.import_module("jax")
    kind = job.workload.model

    def forward(batch: dict) -> Any:
        x = batch["x"]
        if kind == "cnn":
            for layer, features in enumerate((32, 64), 1):
                conv = hk.Conv2D(features, 3, padding="VALID", name=f"conv{layer}")
                x = jax.nn.relu(conv(x))
            x = hk.Flatten()(hk.max_pool(x, (2, 2, 1), (2, 2, 1), "VALID"))
        if kind == "logistic":
            return hk.Linear(10, name="dense")(x)
        x = jax.nn.relu(hk.Linear(128, name="dense1")(x))
        return hk.Linear(10, name="dense2")(x)

    inputs, targets = job.workload.clients[0]
    return fedjax.create_model_from_haiku(
        hk.transform(forward),
        {"x": inputs[:1], "y": targets[:1]},
        lambda batch, outputs: fedjax.metrics.unreduced_cross_entropy_loss(
            batch["y"], outputs
        ),
    )
