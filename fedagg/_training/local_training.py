"""Client work for `federated_averaging`: training a model on a client's examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedagg._sentence import prints_as_its_call
from fedagg._training.batches import batches_of, first_steps
from fedagg._training.checked import (
    check_collections,
    checked_losses,
    checked_row,
)
from fedagg._training.federated_averaging import ClientWork
from fedagg._training.gradient import value_and_grad
from fedagg._training.models import split_model, with_collections, with_parameters
from fedagg._trees import checks, pytree, rowwise
from fedagg._trees.keys import as_key, fold_key, split_key
from fedagg._trees.kinds import check_function, check_kind
from fedagg._types import PyTree

# Stream of the client optimizer's key, beside those that the client's is split into.
_OPTIMIZER = 2**32 - 3

Loss = Callable[[PyTree, Any, jax.Array | None], tuple[jax.Array, dict[str, PyTree]]]


@prints_as_its_call
def local_training(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int | None = None,
    epochs: int = 1,
    max_steps: int | None = None,
    proximal: float = 0.0,
    shuffle: bool = True,
) -> ClientWork:
    """Makes the client work that trains the model on the client's own examples.

    A row of client data is that of a `ClientTable`, or `(examples, mask)`, as
    `pad_clients` makes it: leaves of `examples` are `[m, ...]`, and `mask` `[m]` is
    False where there is no example. Both give the same draws and results. In each epoch
    the client's examples are put in batches, the last of which may be short; a client
    takes as many steps as it has batches. (One client at a time, that is, by
    `in_chunks(1)`; side by side all wait for the one with most.) A step follows the
    gradient of the mean loss over the batch. A short batch is filled up with other
    examples of the same client, so that batch statistics see real data; their losses do
    not count.

    Reports `training/loss` `[]`, the mean loss over examples and epochs, each as it was
    before the step on its batch; NaN for a client without examples. After a private
    stage it comes out through `noised_metrics` alone. Such a stage hides the client,
    with all its examples. To hide single examples is another guarantee, that of
    `private_training`.

    Args:
        loss: `(variables, examples, key) -> (losses, collections)`: the loss of each
            example `[b]`, and the new values of collections beside "params" (a dict,
            empty for none). `linen_loss` and `nnx_loss` make one from a Flax model.
        optimizer: from Optax. It starts anew with each client and round, and is told
            the loss, as `optax.lbfgs` and `optax.contrib.reduce_on_plateau` want it.
            Typed keys in its state, as `optax.add_noise` has one, are made anew from
            the client's, so that clients and rounds draw apart.
        batch_size: examples in a batch. None takes all of a client's at once.
        epochs: passes over the client's examples.
        max_steps: of a client in a round, at most. None is as many as it has batches.
        proximal: FedProx's mu: adds `mu / 2` times the squared distance from the
            server's parameters to the loss of a batch.
        shuffle: whether each epoch draws a new order, where there is a `batch_size`.

    Raises:
        TypeError: if the loss is no function of that, or the optimizer none of Optax;
            in the work, for client data without a mask, or a loss that returns
            something else than a pair.
        ValueError: if a number is out of range; in the work, if an order is to be drawn
            and there is no key, likewise if the optimizer draws, or losses are of
            another shape than `[b]`, or collections are others than the model has.

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
        Decentralized Data", 2017, algorithm 1; Li et al., "Federated Optimization in
        Heterogeneous Networks", 2020, algorithm 2.
    """
    if isinstance(loss, tuple):
        raise TypeError(
            "loss: expected a function (variables, examples, key), got a tuple. "
            "nnx_loss returns variables too: variables, loss = nnx_loss(model, ...)."
        )
    check_function("(variables, examples, key)", loss=loss)
    check_kind(optax.GradientTransformation, optimizer=optimizer)
    if batch_size is not None:
        checks.check_whole(1, batch_size=batch_size)
    if max_steps is not None:
        checks.check_whole(1, max_steps=max_steps)
    told = optax.with_extra_args_support(optimizer)
    checks.check_whole(1, epochs=epochs)
    checks.check_not_negative(proximal=proximal)
    shuffle = shuffle and batch_size is not None

    def work(variables: PyTree, row: Any, key: jax.Array | None):
        key = as_key(key)
        if shuffle and key is None:
            raise ValueError(
                "local_training draws the order of the examples and needs a key, got "
                "key=None. Give next a key, or set shuffle=False."
            )
        examples, place, mask = checked_row(row)
        parameters, _ = split_model(variables)
        checks.check_floating(parameters, "local_training")
        size = mask.shape[0] if batch_size is None else min(batch_size, mask.shape[0])
        state = _with_draws_of_its_own(optimizer.init(parameters), key)
        first = variables, state, jnp.float32(0.0), jnp.float32(0.0)
        order_key, loss_key = split_key(key, 2)
        batches = batches_of(mask, size, epochs, order_key if shuffle else None)
        if max_steps is not None:
            batches = first_steps(batches, max_steps)
        # A client without examples may be said to begin after the last.
        places = jnp.minimum(place + batches.places, rowwise.count_rows(examples) - 1)
        batches = batches._replace(places=places)
        keys = None
        if loss_key is not None:
            keys = jax.random.split(loss_key, len(batches.places))
        end, total, count = train(first, examples, batches, keys)
        # Not a number for a client without examples, which has no say in a mean.
        return pytree.subtract(end, variables), {"training/loss": total / count}

    def batch_loss(parameters, model, start, batch, counts, key):
        model = with_parameters(model, parameters)
        losses, changed = checked_losses(loss(model, batch, key), counts.shape)
        check_collections(changed, model)
        # At least one: a batch that counts no example takes no step.
        count = jnp.maximum(jnp.sum(counts), 1).astype(losses.dtype)
        value = jnp.sum(jnp.where(counts, losses, 0.0)) / count
        distance = pytree.squared_norm(
            pytree.subtract(parameters, split_model(start)[0])
        )
        penalty = (proximal / 2.0 * distance).astype(value.dtype)
        total = value + penalty if proximal > 0.0 else value
        return total, (value, with_collections(model, changed))

    def step(carry, start, examples, batch):
        """One step on a batch that counts an example."""
        model, optimizer_state, total, counted = carry
        parameters, _ = split_model(model)
        places, counts, key = batch
        given = model, start, rowwise.take(examples, places), counts, key
        (loss_now, (value, changed)), gradient = value_and_grad(batch_loss)(
            parameters, *given
        )
        change, new_state = told.update(
            gradient,
            optimizer_state,
            parameters,
            value=loss_now,
            grad=gradient,
            value_fn=lambda x: batch_loss(x, *given)[0],
        )
        count = jnp.sum(counts, dtype=jnp.float32)
        total += count * value.astype(jnp.float32)
        model = with_parameters(changed, optax.apply_updates(parameters, change))
        return model, new_state, total, counted + count

    @jax.custom_jvp
    def train(first, examples, batches, keys):
        """The model after the client's own steps, the sum of its losses, their number.

        Steps on padding are not run, where clients train one at a time.
        """
        own = batches.steps
        steps = epochs * own
        if max_steps is not None:
            steps = jnp.minimum(steps, max_steps)

        def body(i, carry):
            at = i // own * (len(batches.places) // epochs) + i % own
            batch = batches.places[at], batches.counts[at]
            key = None if keys is None else keys[at]
            return step(carry, first[0], examples, (*batch, key))

        end, _, total, count = jax.lax.fori_loop(0, steps, body, first)
        return end, total, count

    @train.defjvp
    def _(primals, tangents):
        """Through a loop of known length, which has derivatives in both modes."""

        def through_all(first, examples, batches, keys):
            def body(carry, batch):
                stepped = step(carry, first[0], examples, batch)
                return pytree.where(jnp.any(batch[1]), stepped, carry), None

            stacked = batches.places, batches.counts, keys
            end, _, total, count = jax.lax.scan(body, first, stacked)[0]
            return end, total, count

        return jax.jvp(through_all, primals, tangents)

    return work


def _with_draws_of_its_own(state: PyTree, key: jax.Array | None) -> PyTree:
    """An optimizer's first state, with keys of this client and round, if it has any."""
    has_keys = any(pytree.is_key(jnp.asarray(x)) for x in pytree.flatten(state)[0])
    if has_keys and key is None:
        raise ValueError(
            "the client optimizer draws and needs a key, got key=None. Give next a key."
        )
    return pytree.renew_keys(state, fold_key(key, _OPTIMIZER)) if has_keys else state
