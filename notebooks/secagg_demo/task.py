"""What all parties know: the model, a client's work, and messages as vectors."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.flatten_util import ravel_pytree

import fedagg
from fedagg import secagg

# A dozen processes share this machine, and all must round alike.
jax.config.update("jax_platforms", "cpu")

CLIENTS, WINDOW, CHANNELS, EXERCISES = 12, 100, 6, 7
MOST_WINDOWS = 256  # weights are fractions of it, which a float has exactly
BITS = 32  # of an entry in the sum
LARGEST_FRAME = 2**17  # bytes; a model or a masked vector takes less than a third


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
steps = aggregator.steps


def first_variables() -> Any:
    windows = np.zeros((1, WINDOW, CHANNELS), np.float32)
    return net.init(jax.random.key(0), windows)


def form() -> tuple[Any, Any]:
    """What the server sends in a round, the model and what else is told, of zeros."""
    variables = _zeros(jax.eval_shape(first_variables))
    return variables, steps.broadcast(aggregator.init(variables))


def key_of(number: int) -> jax.Array:
    """What a round draws from."""
    return jax.random.fold_in(jax.random.key(1), number)


@jax.jit
def change_of(variables: Any, row: Any, round_key: jax.Array, client: jax.Array):
    """What a client would add to the model."""
    return work(variables, row, jax.random.fold_in(round_key, client))[0]


@jax.jit
def vector_of(shared: Any, change: Any, weight: jax.Array) -> jax.Array:
    """A client's message as one vector of uint32. Its stages draw nothing."""
    return ravel_pytree(steps.client(shared, change, weight))[0]


@functools.cache
def read_vector() -> tuple[int, Any]:
    """The length of a message's vector, and the function that undoes `vector_of`."""
    message = aggregator.message(jax.eval_shape(first_variables))
    vector, undo = ravel_pytree(_zeros(message))
    return vector.size, undo


@jax.jit
def output_of(state: Any, total: np.ndarray) -> fedagg.Output:
    """What the server makes of the sum of vectors."""
    return steps.server(state, read_vector()[1](total))


def make_plan(cohort: Sequence[bytes], number: int, told: bytes) -> secagg.Plan:
    """A round of clients with these public keys, who were told this."""
    context = secagg.context_of(cohort, told)
    length = read_vector()[0]
    return secagg.Plan.complete(
        len(cohort), length, BITS, context, number=number, signed=True
    )


def demands(cohort: Sequence[bytes], told: bytes) -> secagg.Demands:
    """What clients ask of a plan: that they sign, above all, and were told the same."""
    context = secagg.context_of(cohort, told)
    sizes = {"smallest_cohort": 3, "largest_cohort": CLIENTS}
    return secagg.Demands(context, BITS, **sizes, mode="signed")


def add(variables: Any, change: Any) -> Any:
    """The model after a round."""
    return jax.tree.map(jnp.add, variables, change)


def _zeros(form: Any) -> Any:
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), form)
