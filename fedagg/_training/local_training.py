"""Client work for `federated_averaging`: training a model on a client's examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedagg._sentence import prints_as_its_call
from fedagg._training.federated_averaging import ClientWork, join_model, split_model
from fedagg._training.gradient import value_and_grad
from fedagg._trees import checks, pytree, rowwise
from fedagg._trees.keys import split_key
from fedagg._types import PyTree

Loss = Callable[[PyTree, Any, jax.Array | None], tuple[jax.Array, dict[str, PyTree]]]


@prints_as_its_call
def local_training(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int | None = None,
    epochs: int = 1,
    proximal: float = 0.0,
    shuffle: bool = True,
) -> ClientWork:
    """Makes the client work that trains the model on the client's own examples.

    A row of client data is `(examples, mask)`, as `pad_clients` makes it: leaves of
    `examples` are `[m, ...]`, and `mask` `[m]` is False where there is no example. In
    each epoch the client's examples are put in batches, the last of which may be short;
    a client takes as many steps as it has batches. A step follows the gradient of the
    mean loss over the batch. A short batch is filled up with other examples of the same
    client, so that batch statistics see real data; their losses do not count.

    Reports `training/loss` `[]`, the mean loss over examples and epochs, each as it was
    before the step on its batch.

    Args:
        loss: `(variables, examples, key) -> (losses, collections)`: the loss of each
            example `[b]`, and the new values of collections beside "params" (a dict,
            empty for none). `linen_loss` and `nnx_loss` make one from a Flax model.
        optimizer: from Optax. It starts anew with each client and round.
        batch_size: examples in a batch. None takes all of a client's at once.
        epochs: passes over the client's examples.
        proximal: FedProx's mu: adds `mu / 2` times the squared distance from the
            server's parameters to the loss of a batch.
        shuffle: whether each epoch draws a new order, where there is a `batch_size`.

    Raises:
        ValueError: if a number is out of range; in the work, if an order is to be drawn
            and there is no key.

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
        Decentralized Data", 2017, algorithm 1; Li et al., "Federated Optimization in
        Heterogeneous Networks", 2020, algorithm 2.
    """
    if batch_size is not None:
        checks.check_whole(1, batch_size=batch_size)
    checks.check_whole(1, epochs=epochs)
    checks.check_not_negative(proximal=proximal)
    shuffle = shuffle and batch_size is not None

    def work(variables: PyTree, row: Any, key: jax.Array | None):
        if shuffle and key is None:
            raise ValueError(
                "local_training draws the order of the examples and needs a key, got "
                "key=None. Give next a key, or set shuffle=False."
            )
        examples, mask = row
        start = split_model(variables)
        size = mask.shape[0] if batch_size is None else min(batch_size, mask.shape[0])
        order_key, loss_key = split_key(key, 2)
        places, counts = _batches(mask, size, epochs, order_key if shuffle else None)

        def batch_loss(parameters, collections, batch, counts, key):
            model = join_model(parameters, collections)
            losses, changed = loss(model, batch, key)
            # At least one: a batch that counts no example takes no step, below.
            count = jnp.maximum(jnp.sum(counts), 1).astype(losses.dtype)
            value = jnp.sum(jnp.where(counts, losses, 0.0)) / count
            distance = pytree.squared_norm(pytree.subtract(parameters, start[0]))
            penalty = (proximal / 2.0 * distance).astype(value.dtype)
            total = value + penalty if proximal > 0.0 else value
            return total, (value, collections and collections | changed)

        def step(carry, batch):
            (parameters, collections), optimizer_state = carry
            places, counts, key = batch
            (_, (value, changed)), gradient = value_and_grad(batch_loss)(
                parameters, collections, rowwise.take(examples, places), counts, key
            )
            change, new_state = optimizer.update(gradient, optimizer_state, parameters)
            stepped = (optax.apply_updates(parameters, change), changed), new_state
            count = jnp.sum(counts, dtype=jnp.float32)
            counted = jnp.where(count > 0.0, count * value.astype(jnp.float32), 0.0)
            return pytree.where(count > 0.0, stepped, carry), (counted, count)

        steps = len(places)
        keys = None if loss_key is None else jax.random.split(loss_key, steps)
        (end, _), (losses, counted) = jax.lax.scan(
            step, (start, optimizer.init(start[0])), (places, counts, keys)
        )
        # Not a number for a client without examples, which has no say in a mean.
        mean_loss = jnp.sum(losses) / jnp.sum(counted)
        change = pytree.subtract(join_model(*end), join_model(*start))
        return change, {"training/loss": mean_loss}

    return work


def _batches(
    mask: jax.Array, size: int, epochs: int, key: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Positions of examples `[steps, size]` and which of them count, over all epochs.

    Examples come before padding, so that a client's first batches are full.
    """
    count = jnp.sum(mask, dtype=jnp.int32)
    places = jnp.arange(-(-mask.shape[0] // size) * size, dtype=jnp.int32)

    def epoch(key: jax.Array | None) -> jax.Array:
        rank = (
            jnp.zeros(mask.shape)
            if key is None
            else jax.random.uniform(key, mask.shape)
        )
        order = jnp.argsort(jnp.where(mask, rank, 2.0), stable=True)
        return order[places % jnp.maximum(count, 1)]  # beyond the last, from the front

    if key is None:
        orders = jnp.tile(epoch(None), epochs)
    else:
        orders = jax.vmap(epoch)(jax.random.split(key, epochs))
    counts = jnp.tile(places < count, epochs)
    return orders.reshape(-1, size), counts.reshape(-1, size)


def linen_loss(
    model: Any, loss: Callable[[Any, Any], jax.Array], **kwargs: Any
) -> Loss:
    """Makes `local_training`'s loss from a Flax linen module.

    The model is what `model.init` returns, a dict of collections. All of them but
    "params" may change in training (`batch_stats`, say) and are aggregated like the
    parameters. Randomness is drawn from the stream "dropout".

    Args:
        model: a `flax.linen.Module` that takes a batch of inputs.
        loss: `(outputs, targets) -> [b]`, such as
            `optax.softmax_cross_entropy_with_integer_labels`. A client's examples are
            pairs `(inputs, targets)`.
        **kwargs: further arguments of the module's call, such as `train=True`.
    """

    def batch_loss(variables: PyTree, examples: Any, key: jax.Array | None):
        inputs, targets = examples
        outputs, changed = model.apply(
            variables,
            inputs,
            mutable=[name for name in variables if name != "params"],
            rngs=None if key is None else {"dropout": key},
            **kwargs,
        )
        return loss(outputs, targets), dict(changed)

    return batch_loss


def nnx_loss(
    model: Any, loss: Callable[[Any, Any], jax.Array]
) -> tuple[dict[str, PyTree], Loss]:
    """Makes the model's variables and `local_training`'s loss from a Flax nnx module.

    Variables are `{"params": ..., "state": ...}`, both of `nnx.State`: the parameters,
    and all else but random number generators, which draw anew from each step's key.
    `nnx.update(model, variables["params"], variables["state"])` puts them back into the
    module.

    Args:
        model: a `flax.nnx.Module` that takes a batch of inputs, in the mode to train in
            (`model.train()`).
        loss: `(outputs, targets) -> [b]`, such as
            `optax.softmax_cross_entropy_with_integer_labels`. A client's examples are
            pairs `(inputs, targets)`.

    Returns:
        `(variables, loss)`, for `federated_averaging`'s `init` and for
        `local_training`.
    """
    from flax import nnx  # takes longer to import than all the rest

    graph, parameters, generators, state = nnx.split(
        model, nnx.Param, nnx.RngState, ...
    )

    def batch_loss(variables: PyTree, examples: Any, key: jax.Array | None):
        inputs, targets = examples
        # Copies, since nnx refuses to write to variables of an outer trace.
        now = pytree.copy((variables["params"], variables["state"]))
        module = nnx.merge(graph, *now, pytree.renew_keys(generators, key))
        outputs = module(inputs)
        _, _, _, changed = nnx.split(module, nnx.Param, nnx.RngState, ...)
        return loss(outputs, targets), {"state": changed}

    return {"params": parameters, "state": state}, batch_loss
