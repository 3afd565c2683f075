"""A part of a model that is trained, while the rest stays with the clients as it is."""

import fnmatch
from collections.abc import Callable, Sequence

import jax

from fedagg._training import models
from fedagg._training.local_training import Loss
from fedagg._trees import pytree
from fedagg._trees.kinds import array_leaves, check_function
from fedagg._types import PyTree


def trained_part(
    variables: PyTree, loss: Loss, patterns: Sequence[str]
) -> tuple[PyTree, Loss, Callable[[PyTree], PyTree]]:
    """Takes the trained leaves out of a model: adapters, or all but a frozen backbone.

    Rounds are then of the part alone, so that what is frozen is neither sent, nor
    clipped, nor noised, and no bound or norm sees it. It has None where the model has
    leaves that are frozen. Collections beside "params", such as batch statistics, are
    trained if a pattern names them.

    Args:
        variables: the whole model, as `federated_averaging`'s `init` takes it.
        loss: of the whole model, as `linen_loss` and `nnx_loss` make it.
        patterns: of the paths of leaves that are trained, as `params/*/lora_*`, where
            `*` is for any characters.

    Returns:
        `(part, loss, whole)`: what rounds train, the loss of it for `local_training`,
        and the function that puts a part back into the model.

    Raises:
        ValueError: if a pattern is that of no leaf, or no parameter is trained.
        TypeError: if the loss is no function of that.
    """
    check_function("(variables, examples, key)", loss=loss)
    variables = array_leaves(variables, "variables")
    paths = pytree.paths(variables)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(x, pattern) for x in paths):
            raise ValueError(
                f"patterns: no leaf is like {pattern!r}; there are {', '.join(paths)}."
            )
    is_trained = [any(fnmatch.fnmatchcase(x, y) for y in patterns) for x in paths]
    leaves, structure = pytree.flatten(variables)

    def part_of(model: PyTree) -> PyTree:
        given, _ = pytree.flatten(model)
        kept = [x if y else None for x, y in zip(given, is_trained, strict=True)]
        return pytree.unflatten(structure, kept)

    def whole(part: PyTree) -> PyTree:
        own = iter(pytree.flatten(part)[0])
        both = zip(leaves, is_trained, strict=True)
        return pytree.unflatten(structure, [next(own) if y else x for x, y in both])

    def loss_of_part(part: PyTree, examples: PyTree, key: jax.Array | None):
        model = whole(part)
        losses, changed = loss(model, examples, key)
        if changed:
            kept = part_of(models.with_collections(model, changed))
            changed = {name: kept[name] for name in changed}
        return losses, changed

    part = part_of(variables)
    models.check_has_parameters(part)
    return part, loss_of_part, whole
