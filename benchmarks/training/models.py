"""The workloads' models in Flax, their losses, and their first parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.training.workloads import RANK, SYMBOLS, TOKENS, Parameters, Workload

PyTree = Any


class CNN(nn.Module):
    """pfl-research's for CIFAR10, of 1,626,442 parameters, and FedJAX's for digits."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for layer, features in enumerate((32, 64), 1):
            conv = nn.Conv(features, (3, 3), padding="VALID", name=f"conv{layer}")
            x = nn.relu(conv(x))
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        return nn.Dense(10, name="dense2")(nn.relu(nn.Dense(128, name="dense1")(x)))


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(10, name="dense2")(nn.relu(nn.Dense(128, name="dense1")(x)))


class Logistic(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(10, name="dense")(x)


class LoRADense(nn.Module):
    """A dense layer, and beside it a product of two thin ones."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.param("a", nn.initializers.he_normal(), (x.shape[-1], RANK))
        b = self.param("b", nn.initializers.zeros_init(), (RANK, self.features))
        return nn.Dense(self.features, name="base")(x) + x @ a @ b


class Block(nn.Module):
    """Attention and two dense layers, each after a norm."""

    with_lora: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        adapted = LoRADense if self.with_lora else nn.Dense
        y = nn.LayerNorm(name="norm1")(x)
        q = adapted(width, name="q")(y)
        k = nn.Dense(width, name="k")(y)
        v = adapted(width, name="v")(y)
        heads = (z.reshape(*z.shape[:-1], 4, -1) for z in (q, k, v))
        y = jax.nn.dot_product_attention(*heads, is_causal=True)
        x = x + nn.Dense(width, name="o")(y.reshape(x.shape))
        y = nn.gelu(nn.Dense(512, name="up")(nn.LayerNorm(name="norm2")(x)))
        return x + nn.Dense(width, name="down")(y)


class Transformer(nn.Module):
    """Foresees the next character: two blocks of width 128."""

    with_lora: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        width = 128
        init = nn.initializers.normal(0.02)
        x = nn.Embed(SYMBOLS, width, name="embed")(tokens)
        x = x + self.param("positions", init, (TOKENS, width))[None]
        for layer in (1, 2):
            x = Block(self.with_lora, name=f"block{layer}")(x)
        return nn.Dense(SYMBOLS, name="logits")(nn.LayerNorm(name="norm")(x))


MODELS: dict[str, nn.Module] = {
    "cnn": CNN(),
    "logistic": Logistic(),
    "mlp": MLP(),
    "transformer": Transformer(),
    "lora": Transformer(with_lora=True),
}


def loss(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """The loss of each example `[b]`, over tokens its mean."""
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
    return losses.reshape(len(losses), -1).mean(axis=1)


def first_parameters(workload: Workload) -> tuple[Parameters, Parameters]:
    """Those that are trained, and those that stay (none, but for LoRA)."""
    inputs = workload.clients[0][0][:1]
    variables = MODELS[workload.model].init(jax.random.key(0), inputs)
    flat = {x: np.asarray(y) for x, y in flat_of(variables).items()}
    if workload.model != "lora":
        return flat, {}
    trained = {x for x in flat if x.endswith(("/a", "/b"))}
    return (
        {x: flat[x] for x in flat if x in trained},
        {x: flat[x] for x in flat if x not in trained},
    )


def variables_of(*parts: PyTree) -> PyTree:
    """What a Flax model takes, from flat dicts."""
    merged = {name: jnp.asarray(x) for part in parts for name, x in part.items()}
    return {"params": unflatten_dict(merged, sep="/")}


def flat_of(variables: PyTree) -> PyTree:
    return flatten_dict(variables["params"], sep="/")
