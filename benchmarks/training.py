"""What a round of training costs, beside its arithmetic: `-m benchmarks.training`."""

import argparse
import re
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import fedagg
from benchmarks import options
from benchmarks.report import Report, markdown, markdown_row

PyTree = Any
LOSS = optax.softmax_cross_entropy_with_integer_labels

_HEADER = ["workload", "way", "s a round", "x arithmetic", "first call s", "held MB"]
_LEGEND = """
A round of `federated_averaging` with `local_training`, one after the other in one
process. *x arithmetic* is the time over that of the floating-point operations of the
clients' steps at the speed of a large matrix product in float32, measured in the same
run. *held MB* is what the compiled program allocates beside inputs and outputs. The
model after a round is compared with that of a plain loop over clients and steps.
"""


class Net(nn.Module):
    """The network of pfl-research's CIFAR10 benchmark: 1,626,442 parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (3, 3), padding="VALID")(x))
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        return nn.Dense(10)(nn.relu(nn.Dense(128)(x)))


class Workload(NamedTuple):
    """Clients with examples, the model that they train, and how."""

    name: str
    model: nn.Module
    data: PyTree  # as pad_clients makes it
    weights: np.ndarray
    batch_size: int
    rate: float
    steps: int  # that clients take together


def cifar(clients: int) -> Workload:
    """pfl-research's setting: clients with 50 images each, here of random noise."""
    draw = np.random.default_rng(0)
    images = draw.normal(size=(clients, 50, 32, 32, 3)).astype(np.float32)
    labels = draw.integers(0, 10, (clients, 50))
    data, sizes = fedagg.pad_clients([*zip(images, labels, strict=True)])
    return Workload("CNN, 50 images", Net(), data, sizes, 10, 0.1, 5 * clients)


def logistic(clients: int) -> Workload:
    """Many small clients: 20 examples, a logistic regression on 64 features."""
    draw = np.random.default_rng(1)
    features = draw.normal(size=(clients, 20, 64)).astype(np.float32)
    labels = draw.integers(0, 10, (clients, 20))
    data, sizes = fedagg.pad_clients([*zip(features, labels, strict=True)])
    name = f"logistic regression, {clients:,} clients"
    return Workload(name, nn.Dense(10), data, sizes, 10, 0.1, 2 * clients)


def main() -> None:
    chosen = _options()
    device = jax.devices()[0]
    stem = re.sub("[^a-z0-9]+", "-", device.device_kind.lower())
    path = None if chosen.out is None else chosen.out / f"training-{stem}.md"
    with Report("A round of training", path) as report:
        speed = _product_speed()
        report.say(f"- A product of 4096 x 4096 matrices: {speed / 1e9:,.0f} GFLOP/s")
        report.say(f"{_LEGEND}\n{markdown([_HEADER])}")
        for workload in (cifar(chosen.clients), logistic(20 * chosen.clients)):
            loop = _plain_loop(workload) if chosen.check else None
            for name, way in _ways(chosen.chunks, len(workload.weights)).items():
                try:
                    row = _measure(workload, way, loop, speed)
                except jax.errors.JaxRuntimeError as error:  # out of memory
                    row = [f"failed: {str(error).splitlines()[0][:80]}", *3 * [""]]
                report.say(markdown_row([workload.name, name, *row]))


def _ways(chunks: list[int], clients: int) -> dict[str, Any]:
    ways: dict[str, Any] = {"default": None}
    ways |= {f"in_chunks({x})": fedagg.in_chunks(x) for x in chunks if x < clients}
    return ways | {"at_once()": fedagg.at_once()}


def _training(workload: Workload, way: Any) -> tuple[fedagg.Aggregator, PyTree]:
    inputs = workload.data[0][0]
    variables = workload.model.init(jax.random.key(0), inputs[0, :1])
    work = fedagg.local_training(
        fedagg.linen_loss(workload.model, LOSS),
        optax.sgd(workload.rate),
        batch_size=workload.batch_size,
        shuffle=False,
    )
    mean = fedagg.aggregator(fedagg.mean(weighted=False), sum_over=way)
    return fedagg.federated_averaging(work, optax.sgd(1.0), mean), variables


def _measure(
    workload: Workload, way: Any, loop: PyTree | None, speed: float
) -> list[str]:
    training, variables = _training(workload, way)
    data = jax.tree.map(jnp.asarray, workload.data)
    state = training.init(variables)
    start = time.perf_counter()
    compiled = jax.jit(training.next).lower(state, data).compile()
    output = jax.block_until_ready(compiled(state, data))
    first = time.perf_counter() - start
    if loop is not None:
        _compare(output.value, loop)
    seconds = _median_seconds(lambda: compiled(state, data).value)
    memory = compiled.memory_analysis()
    held = "" if memory is None else f"{memory.temp_size_in_bytes / 1e6:,.0f}"
    arithmetic = workload.steps * _operations(workload) / speed
    return [f"{seconds:.3f}", f"{seconds / arithmetic:.1f}", f"{first:.1f}", held]


def _step(workload: Workload) -> jax.stages.Wrapped:
    """One step of a client, on its own."""

    def step(variables: PyTree, batch: PyTree) -> PyTree:
        def loss(variables: PyTree) -> jax.Array:
            logits: Any = workload.model.apply(variables, batch[0])
            return LOSS(logits, batch[1]).mean()

        gradient = jax.grad(loss)(variables)
        return jax.tree.map(lambda x, g: x - workload.rate * g, variables, gradient)

    return jax.jit(step)


def _batches(workload: Workload, client: int) -> list[PyTree]:
    examples = jax.tree.map(lambda x: x[client], workload.data[0])
    size = workload.batch_size
    starts = range(0, int(workload.weights[client]), size)
    return [jax.tree.map(lambda x, i=i: x[i : i + size], examples) for i in starts]


def _plain_loop(workload: Workload) -> PyTree:
    """The model after a round, client by client and step by step."""
    step, variables = _step(workload), _training(workload, None)[1]
    total = jax.tree.map(lambda x: np.zeros(x.shape, np.float64), variables)
    for client in range(len(workload.weights)):
        end = variables
        for batch in _batches(workload, client):
            end = step(end, batch)
        total = jax.tree.map(lambda t, x: t + np.asarray(x, np.float64), total, end)
    return jax.tree.map(lambda t: t / len(workload.weights), total)


def _compare(got: PyTree, expected: PyTree) -> None:
    """Raises an AssertionError if a round's model is another than the loop's.

    By the norm over all leaves: where rounding turns a ReLU over, one client's end is
    off by more than rounding.
    """
    # An accelerator rounds factors of convolutions to 10 bits, unless told otherwise.
    tolerance = 1e-3 if jax.default_backend() == "cpu" else 1e-2
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    parts = [(np.linalg.norm(np.asarray(x) - y), np.linalg.norm(y)) for x, y in pairs]
    off, size = np.linalg.norm(np.asarray(parts), axis=0)
    if not off <= tolerance * size:
        raise AssertionError(f"the model is off by {off:.2g} of {size:.2g}.")


def _operations(workload: Workload) -> float:
    """Floating-point operations of a step, as XLA counts them."""
    variables = _training(workload, None)[1]
    lowered = _step(workload).lower(variables, _batches(workload, 0)[0])
    cost: Any = lowered.compile().cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])


def _product_speed() -> float:
    """Floating-point operations a second of a large product of float32 matrices."""
    x = jnp.ones((4096, 4096), jnp.float32)
    product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    return 2 * 4096**3 / _median_seconds(lambda: product(x))


def _median_seconds(run: Callable[[], Any]) -> float:
    """Median over three turns or more, after a first one."""
    jax.block_until_ready(run())
    turns = []
    end = time.perf_counter() + 2.0
    while len(turns) < 3 or (len(turns) < 20 and time.perf_counter() < end):
        start = time.perf_counter()
        jax.block_until_ready(run())
        turns.append(time.perf_counter() - start)
    return statistics.median(turns)


def _options() -> argparse.Namespace:
    parser = options.parser("training")
    parser.add_argument("--clients", type=int, default=50, help="of the CNN")
    parser.add_argument("--chunks", nargs="*", type=int, default=[1, 5])
    parser.add_argument(
        "--no-check", dest="check", action="store_false", help="skip the plain loop"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
