"""Losses of Flax models, for the work of a client."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from fedagg._training.local_training import Loss
from fedagg._training.models import in_containers_of
from fedagg._trees import pytree
from fedagg._trees.kinds import check_function, described, types_of
from fedagg._types import PyTree


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

    Raises:
        TypeError: if `model` is no linen module, or `loss` no function; in the loss,
            for examples that are no pair.
        ValueError: in the loss, for variables without "params".
    """
    from flax import linen  # takes a while, and who has a module has paid for it

    if not isinstance(model, linen.Module):
        raise TypeError(
            "model: expected a module of flax.linen, as nn.Dense(10) is one, got "
            f"{_other_than_a_module(model, 'nnx')}"
        )
    check_function("(outputs, targets)", loss=loss)

    def batch_loss(variables: PyTree, examples: Any, key: jax.Array | None):
        inputs, targets = pair(examples)
        if not isinstance(variables, Mapping) or "params" not in variables:
            got = sorted(variables) if isinstance(variables, dict) else variables
            raise ValueError(
                "variables: expected all that model.init returned, a dict of "
                f"collections with params among them; got {described(got)}."
            )
        outputs, changed = model.apply(
            variables,
            inputs,
            mutable=[name for name in variables if name != "params"],
            rngs=None if key is None else {"dropout": key},
            **kwargs,
        )
        # What a model sows grows with each call, and is nothing that a round keeps.
        made = {x: in_containers_of(y, variables[x]) for x, y in changed.items()}
        kept = {x: y for x, y in made.items() if _is_like(y, variables[x])}
        return loss(outputs, targets), kept

    return batch_loss


def nnx_loss(
    model: Any, loss: Callable[[Any, Any], jax.Array]
) -> tuple[dict[str, PyTree], Loss]:
    """Makes the model's variables and `local_training`'s loss from a Flax nnx module.

    Variables are `{"params": ..., "state": ...}`, both of `nnx.State`: the parameters,
    and all else but random number generators, which draw anew from each step's key.
    `nnx.update(model, variables["params"], variables["state"])` puts them back into the
    module. A prediction by variables, such as `federated_evaluation` takes one::

        def predict(variables, inputs):
            module = nnx.clone(model)  # of this call: jit lets no other be changed
            nnx.update(module, variables["params"], variables["state"])
            module.eval()
            return module(inputs)

    Args:
        model: a `flax.nnx.Module` that takes a batch of inputs, in the mode to train in
            (`model.train()`).
        loss: `(outputs, targets) -> [b]`, such as
            `optax.softmax_cross_entropy_with_integer_labels`. A client's examples are
            pairs `(inputs, targets)`.

    Returns:
        `(variables, loss)`, for `federated_averaging`'s `init` and for
        `local_training`.

    Raises:
        TypeError: if `model` is no nnx module, or `loss` no function; in the loss, for
            examples that are no pair.
        ValueError: in the loss, for variables that are another tree than the first
            result, or if the model draws, as dropout does, and there is no key.
    """
    from flax import nnx  # takes longer to import than all the rest

    if not isinstance(model, nnx.Module):
        raise TypeError(
            "model: expected a module of flax.nnx, as nnx.Linear(...) is one, got "
            f"{_other_than_a_module(model, 'linen')}"
        )
    check_function("(outputs, targets)", loss=loss)
    graph, parameters, generators, sown, state = nnx.split(
        model, nnx.Param, nnx.RngState, nnx.Intermediate, ...
    )

    def batch_loss(variables: PyTree, examples: Any, key: jax.Array | None):
        if not isinstance(variables, Mapping) or set(variables) != {"params", "state"}:
            raise ValueError(
                "variables: expected the first of what nnx_loss returned, a dict of "
                f"params and state, as what init is given; got {type(variables)}."
            )
        inputs, targets = pair(examples)
        # Copies, since nnx refuses to write to variables of an outer trace.
        now = pytree.copy((variables["params"], variables["state"]))
        renewed = pytree.renew_keys(generators, key)
        before, _ = pytree.flatten(renewed)
        module = nnx.merge(graph, *now, renewed, pytree.copy(sown))
        outputs = module(inputs)
        nnx.pop(module, nnx.Intermediate)  # what it sowed, which no round keeps
        _, _, drawn, changed = nnx.split(module, nnx.Param, nnx.RngState, ...)
        if key is None and not pytree.has_same_leaves(drawn, before):
            raise ValueError(
                "the model draws, for dropout, say, and needs a key, got key=None: "
                "without one, all clients and steps would draw the same. Give next a "
                "key, or put the model in the mode of evaluation, model.eval()."
            )
        return loss(outputs, targets), {"state": changed}

    # Copies: nnx.split gives the module's own variables, which change when it does.
    return pytree.copy({"params": parameters, "state": state}), batch_loss


def _other_than_a_module(model: Any, other: str) -> str:
    if isinstance(model, type):
        return f"the class {model.__name__}. Make one of it: {model.__name__}(...)."
    return f"{described(model)}. For one of flax.{other}: {other}_loss(model, loss)."


def _is_like(collection: PyTree, before: PyTree) -> bool:
    return pytree.is_alike(collection, before) and (
        pytree.shapes(collection) == pytree.shapes(before)
    )


def pair(examples: Any) -> tuple[Any, Any]:
    """A client's examples as inputs and targets."""
    if not isinstance(examples, (tuple, list)) or len(examples) != 2:
        raise TypeError(
            "examples: expected a pair (inputs, targets) of each client, got "
            f"{types_of(examples)}. For examples of another kind, write the loss "
            "yourself: (variables, examples, key) -> (losses, {})."
        )
    return examples[0], examples[1]
