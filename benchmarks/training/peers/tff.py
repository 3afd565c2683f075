"""TFF: `build_unweighted_fed_avg` of Keras models, in its default local context.

That context is a server in C++ which TFF starts; clients' data sets are batched
`tf.data`.
"""

import importlib
from typing import Any

from benchmarks.training.rounds import Job, NotRun, Round
from benchmarks.training.workloads import Parameters


def prepare(job: Job) -> Round:
    workload = job.workload
    if workload.model not in ("cnn", "logistic", "mlp"):
        raise NotRun("this model isn't written in Keras")
    tf = importlib.import_module("tensorflow")
    tff = importlib.import_module("tensorflow_federated")
    layers = list(dict.fromkeys(name.split("/")[0] for name in job.start))
    sets = [
        tf.data.Dataset.from_tensor_slices(examples)
        .repeat(workload.epochs)
        .batch(workload.batch_size)
        for examples in workload.clients
    ]

    def model() -> Any:
        return tff.learning.models.from_keras_model(
            _keras_model(job),
            loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            input_spec=sets[0].element_spec,
        )

    optimizers = tff.learning.optimizers
    process = tff.learning.algorithms.build_unweighted_fed_avg(
        model,
        client_optimizer_fn=optimizers.build_sgdm(learning_rate=workload.rate),
        server_optimizer_fn=optimizers.build_sgdm(learning_rate=1.0),
    )
    state = process.initialize()
    first = [job.start[f"{x}/{y}"] for x in layers for y in ("kernel", "bias")]
    weights = tff.learning.models.ModelWeights(first, [])
    state = process.set_model_weights(state, weights)

    def parameters(end: Any) -> Parameters:
        names = [f"{x}/{y}" for x in layers for y in ("kernel", "bias")]
        trained = process.get_model_weights(end).trainable
        return dict(zip(names, trained, strict=True))

    return Round(
        "build_unweighted_fed_avg", lambda: process.next(state, sets).state, parameters
    )


def _keras_model(job: Job) -> Any:
    keras = importlib.import_module("tensorflow").keras
    inputs = keras.Input(job.workload.clients[0][0].shape[1:])
    x = inputs
    if job.workload.model == "cnn":
        for features in (32, 64):
            x = keras.layers.Conv2D(features, 3, activation="relu")(x)
        x = keras.layers.Flatten()(keras.layers.MaxPool2D()(x))
    if job.workload.model != "logistic":
        x = keras.layers.Dense(128, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))
