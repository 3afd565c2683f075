"""How does a round run on many hosts? As on one: JAX spreads one program over all.

Start this file on each host, with the address of the first of them:

    python notebooks/many_hosts.py --coordinator HOST:PORT --processes N --process I

Without options it is one process on all devices it has, with the same result. Eighteen
clients train a linear model on handwritten digits. One is broken and sends NaN; on
whichever host it is, all of them see that one client was zeroed.
"""

import argparse
import pathlib

import jax
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import fedagg

CLIENTS, EXAMPLES, BROKEN, ROUNDS = 18, 100, 16, 10


def clients_data(rows: np.ndarray):
    """The data of some clients, `((images, labels), mask)`, and their sizes.

    This is local: a host reads its own clients' data, and nothing else. Shapes are
    global: all hosts fill up to the same number of examples, where `fedagg.pad_clients`
    would fill up to the largest of the clients it is given.
    """
    images, labels = (np.asarray(x) for x in load_digits(return_X_y=True))
    places = rows[:, None] + CLIENTS * np.arange(EXAMPLES)
    # Rows beyond the last client have no examples, so their weight is zero: absent.
    mask = (rows[:, None] < CLIENTS) & (places < len(labels))
    places = np.where(mask, places, 0)
    inputs = (images[places] / 16).astype(np.float32)
    inputs[rows == BROKEN] = np.nan
    return ((inputs, labels[places].astype(np.int32)), mask), mask.sum(1, np.float32)


def train() -> tuple[dict, dict]:
    """Runs the rounds and returns the model and what the last round reported."""
    # One axis over all devices of all hosts.
    mesh = jax.make_mesh((jax.device_count(),), ("clients",))
    by_client = jax.NamedSharding(mesh, jax.P("clients"))
    everywhere = jax.NamedSharding(mesh, jax.P())

    # All devices hold the same number of rows, and the sharding says which are on this
    # host. Nobody checks that hosts agree on the whole. Row i is client i here, and
    # draws by keys that depend on i alone: any hosts and devices give one result.
    rows = np.arange(-(-CLIENTS // jax.device_count()) * jax.device_count())
    places = by_client.addressable_devices_indices_map(rows.shape).values()
    own = clients_data(np.unique(np.concatenate([rows[place] for place in places])))
    data, sizes = jax.make_array_from_process_local_data(by_client, own)

    # From here on nothing is about hosts. All must run the same lines with the same
    # values: options, number of rounds, and keys, which nobody checks either.
    model = nn.Dense(10)
    loss = optax.softmax_cross_entropy_with_integer_labels
    work = fedagg.local_training(
        fedagg.linen_loss(model, loss), optax.sgd(0.5), batch_size=16
    )
    # Where a device's clients do not fit in memory at once: inner=fedagg.in_chunks(8).
    robust = fedagg.robust_aggregator(sum_over=fedagg.across(mesh))
    training = fedagg.federated_averaging(work, optax.sgd(1.0), robust)
    state = training.init(model.init(jax.random.key(0), np.zeros((1, 64), np.float32)))
    # Placed like the state that a round returns, so that round two does not compile
    # anew. JAX does check here that all hosts made the same.
    state = jax.device_put(state, everywhere)
    next_round, metrics = jax.jit(training.next), {}
    for key in jax.random.split(jax.random.key(1), ROUNDS):
        state, _, metrics = next_round(state, data, sizes, key)
    # Every host has the whole model and metrics; of the data only its own part.
    return jax.tree.map(np.asarray, (state.variables["params"], metrics))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coordinator", help="address of the first host, HOST:PORT")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    if options.processes > 1:
        # Before all else that asks JAX for a device. On TPU pods and under SLURM it
        # takes no arguments. GPUs exchange through NCCL, CPUs through Gloo.
        host = (options.coordinator, options.processes, options.process)
        jax.distributed.initialize(*host)
    model, metrics = train()
    if jax.process_index() == 0:
        for name, x in metrics.items():
            print(f"{name:<18} {x:.4f}")
        if options.out:
            np.savez(options.out, **model, **metrics)


if __name__ == "__main__":
    main()
