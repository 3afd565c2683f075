"""What all parties know: the model, a client's work, what they demand."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import fedagg
from fedagg import secagg

# A dozen processes share this machine, and all must round alike.
jax.config.update("jax_platforms", "cpu")

CLIENTS, WINDOW, CHANNELS, EXERCISES = 12, 100, 6, 7
MOST_WINDOWS = 256  # weights are fractions of it, which a float has exactly
BITS = 32  # of an entry in the sum
LARGEST_FRAME = 2**17  # bytes; a model or a masked vector takes less than a third
HANDSHAKE = 5.0  # seconds to show a certificate in
PENDING = 16  # connections that have not shown one yet


class Net(nn.Module):
    """Linear layers on fifths of a second, then the mean, for windows `[b, 100, 6]`."""

    @nn.compact
    def __call__(self, windows):
        x = windows.reshape(*windows.shape[:-2], 10, 10 * CHANNELS)
        x = nn.relu(nn.Dense(32)(x))
        x = nn.relu(nn.Dense(32)(x))
        return nn.Dense(EXERCISES)(x.mean(axis=-2))


net = Net()
work = fedagg.local_training(
    fedagg.linen_loss(net, optax.softmax_cross_entropy_with_integer_labels),
    optax.adam(0.01),
    batch_size=32,
    epochs=2,
)
# What the bound on entries learns from goes through the sum too, as weights do. No
# floats are added up in it, so that clients alone and side by side send the same bits.
aggregator = fedagg.aggregator(
    fedagg.secure_sum(
        fedagg.mean(),
        fedagg.quantile_bound(0.05, 0.9, 0.2),
        largest_cohort=CLIENTS,
        largest_weight=1.0,
        bits=BITS,
    )
)


def silent(variables: Any, row: Any, key: jax.Array) -> tuple[Any, dict]:
    """The work, and nothing that is told of it: it would be in the clear."""
    return work(variables, row, key)[0], {}


training = fedagg.federated_averaging(silent, optax.sgd(1.0), aggregator)


@functools.cache
def first_variables() -> Any:
    windows = np.zeros((1, WINDOW, CHANNELS), np.float32)
    return net.init(jax.random.key(0), windows)


@functools.cache
def wire() -> fedagg.Wire:
    """What the server tells, the model and what the aggregator has to say, as bytes."""
    return fedagg.Wire(training, first_variables())


def key_of(number: int) -> jax.Array:
    """What a round draws from."""
    return jax.random.fold_in(jax.random.key(1), number)


@jax.jit
def change_of(variables: Any, row: Any, round_key: jax.Array, client: jax.Array):
    """What a client would add to the model."""
    return work(variables, row, jax.random.fold_in(round_key, client))[0]


# A client's message, and what the server makes of their sum. The stages draw nothing.
message_of = jax.jit(aggregator.steps.client)
output_of = jax.jit(training.steps.server)


def make_plan(cohort: Sequence[bytes], number: int, told: bytes) -> secagg.Plan:
    """A round of clients with these public keys, who were told this."""
    form, context = first_variables(), secagg.context_of(cohort, told)
    options = {"complete": True, "signed": True, "number": number}
    return secagg.Plan.for_aggregator(aggregator, form, len(cohort), context, **options)


def demands(cohort: Sequence[bytes], told: bytes) -> secagg.Demands:
    """What clients ask of a plan: that they sign, above all, and were told the same."""
    context = secagg.context_of(cohort, told)
    return secagg.Demands.for_aggregator(
        aggregator, first_variables(), context, smallest_cohort=3, mode="signed"
    )


def add(variables: Any, change: Any) -> Any:
    """The model after a round."""
    return jax.tree.map(jnp.add, variables, change)
