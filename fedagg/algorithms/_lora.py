"""FedEx-LoRA: adapters of low rank, with the mean of their products exact."""

import fnmatch
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fedagg
from fedagg.algorithms._parts import named, path_of, scaled


def fedex_lora(
    loss: Any,
    optimizer: optax.GradientTransformation,
    aggregator: fedagg.Aggregator,
    *,
    adapters: Mapping[str, tuple[str, str]],
    scale: float = 1.0,
    **options: Any,
) -> fedagg.Aggregator:
    """Trains adapters of frozen weights such that the weights' mean is exact.

    A layer works with `weight + scale * a @ b`, of which clients train `a` and `b`. The
    mean of their products is not the product of their means: what is left of it goes
    into the frozen weight. So after a round the layer works with exactly the mean of
    what clients had, and they go on from factors that are the means of theirs.

    | state | |
    | --- | --- |
    | `state.variables` | the whole model, as is the value of a round |
    | a client's memory | none |

    A client sends the changes of its factors and of their products, which have the
    shapes of the weights: sums of factors do not tell the sum of products. So it sends
    about as much as in FedAvg of these layers, and trains and keeps moments for
    adapters alone. `trained_part` of the factors averages factors, for fewer bytes; of
    `b` alone, with `a` as it is for all clients, the products' mean is exact as well.
    Nothing else of the model is moved, batch statistics neither.

    Args:
        loss: as `local_training` takes it, of the whole model.
        optimizer: of clients, for the factors.
        aggregator: any with a mean. Weights are the numbers of examples.
        adapters: for the pattern of each weight's path, `[in, out]`, those of its
            factors, `[in, rank]` and `[rank, out]`, as in
            `{"*/body/kernel": ("*/body/lora_a", "*/body/lora_b")}`.
        scale: that by which the model multiplies products. Finite.
        **options: of `local_training`: `batch_size`, `epochs` and others.

    Raises:
        ValueError: in `init` and `next`, if a pattern is that of no leaf or of several.
        TypeError: if an argument is of another type.

    Reference: Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and
        Efficient Fine-Tuning of Large Language Models", 2024, section 4.
    """

    def products(model: Any) -> dict[str, jax.Array]:
        leaves = named(model)

        def product(pair: tuple[str, str]) -> jax.Array:
            a, b = (leaves[_only(leaves, x)] for x in pair)
            whole = jnp.matmul(a, b, precision="highest")
            return scaled(jnp.float32(scale), whole)

        return {_only(leaves, weight): product(x) for weight, x in adapters.items()}

    def factors(model: Any) -> Any:
        leaves = named(model)
        patterns = [_only(leaves, x) for pair in adapters.values() for x in pair]
        return fedagg.trained_part(model, loss, patterns)

    def work(model: Any, row: Any, key: Any) -> Any:
        part, loss_of_part, whole = factors(model)
        train = fedagg.local_training(loss_of_part, optimizer, **options)
        change, metrics = train(part, row, key)
        after = products(whole(optax.tree.add(part, change)))
        moved = optax.tree.sub(after, products(model))
        return {"factors": change, "products": moved}, metrics

    def step(model: Any, change: Any, metrics: Any, state: Any) -> Any:
        part, _, whole = factors(model)
        after = whole(optax.tree.add(part, change["factors"]))
        wanted = optax.tree.add(products(model), change["products"])
        left = optax.tree.sub(wanted, products(after))

        def exact(path: Any, x: jax.Array) -> jax.Array:
            return x + left[path_of(path)] if path_of(path) in left else x

        return jax.tree.map_with_path(exact, after), state

    def sent(model: Any) -> Any:
        return {"factors": factors(model)[0], "products": products(model)}

    return fedagg.federated_averaging(
        work, fedagg.ServerStep(lambda model: (), step, sent), aggregator
    )


def _only(leaves: Mapping[str, Any], pattern: str) -> str:
    """The path that a pattern is of."""
    found = [name for name in leaves if fnmatch.fnmatchcase(name, pattern)]
    if len(found) != 1:
        raise ValueError(
            f"adapters: expected the pattern of one leaf, got {pattern!r}, which is of "
            f"{found or 'none'}; there are {', '.join(leaves)}."
        )
    return found[0]
