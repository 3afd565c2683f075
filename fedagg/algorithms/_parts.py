"""What algorithms share: gradients and losses, steps counted, parts of trees."""

import fnmatch
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fedagg

PyTree = Any

# Stream of a second key, beside that which training uses up.
_OTHER = 2**32 - 4

# The collection in which a client counts its steps.
_STEPS = "fedagg_steps"


def path_of(path: Any) -> str:
    """A leaf's path as one writes it, `params/head/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their paths."""
    leaves = {}

    def remember(path: Any, x: Any) -> None:
        leaves[path_of(path)] = x

    jax.tree.map_with_path(remember, tree)
    return leaves


def parameters_of(model: PyTree) -> PyTree:
    """The parameters: of collections what is under "params", else all."""
    is_dict = isinstance(model, Mapping) and "params" in model
    return model["params"] if is_dict else model


def alike(tree: PyTree, model: PyTree) -> PyTree:
    """The leaves of a tree in the containers of a model, which has the same paths."""
    leaves = named(tree)
    return jax.tree.map_with_path(lambda path, x: leaves[path_of(path)], model)


def with_parameters(model: PyTree, parameters: PyTree) -> PyTree:
    """The same collections, with other parameters."""
    if parameters_of(model) is model:
        return parameters
    return alike({**model, "params": parameters}, model)


def two_keys(key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """The key, for training, and one that is independent of it, for something else."""
    return key, None if key is None else jax.random.fold_in(key, _OTHER)


def collections_of(model: PyTree) -> dict[str, PyTree]:
    """The collections beside the parameters, none of a model that has none."""
    if parameters_of(model) is model:
        return {}
    return {name: x for name, x in model.items() if name != "params"}


def with_collections(model: PyTree, collections: Mapping[str, PyTree]) -> PyTree:
    """The model with other collections, of which there may be none."""
    return alike({**model, **collections}, model) if collections else model


def scaled(factor: jax.Array, tree: PyTree) -> PyTree:
    """The tree times a number, in the tree's own dtypes."""
    return jax.tree.map(lambda x: factor.astype(x.dtype) * x, tree)


def shifted(shift: Callable[[PyTree], PyTree]) -> optax.GradientTransformation:
    """Adds `shift(parameters)` to the gradient."""
    return optax.stateless(lambda gradient, at: optax.tree.add(gradient, shift(at)))


def counted_training(
    loss: Callable[..., Any], optimizer: optax.GradientTransformation, **options: Any
) -> Callable[..., tuple[PyTree, dict[str, jax.Array], jax.Array]]:
    """`local_training` that says as a third result how many steps the client took."""

    def work(model: PyTree, row: PyTree, key: Any):
        is_plain = parameters_of(model) is model

        def without_steps(variables: PyTree) -> PyTree:
            if is_plain:
                return variables["params"]
            rest = {name: x for name, x in variables.items() if name != _STEPS}
            return alike(rest, model)

        def counting(variables: PyTree, examples: PyTree, key: Any):
            losses, changed = loss(without_steps(variables), examples, key)
            return losses, {**changed, _STEPS: variables[_STEPS] + 1.0}

        train = fedagg.local_training(counting, optimizer, **options)
        collections = {"params": model} if is_plain else model
        start = {**collections, _STEPS: jnp.float32(0.0)}
        change, metrics = train(start, row, key)
        return without_steps(change), metrics, change[_STEPS]

    return work


def loss_at(loss: Callable[..., Any], model: PyTree, row: PyTree, key: Any):
    """The mean loss of a client's examples `[]`; NaN without examples."""
    return gradient_at(loss, model, row, key)[1]


def gradient_at(
    loss: Callable[..., Any], model: PyTree, row: PyTree, key: Any
) -> tuple[PyTree, jax.Array]:
    """The gradient of the mean loss over all of a client's examples, and that loss."""
    one_step = fedagg.local_training(loss, optax.sgd(1.0))
    change, metrics = one_step(model, row, key)
    gradient = jax.tree.map(jnp.negative, parameters_of(change))
    return gradient, metrics["training/loss"]


def weight_metric(aggregator: Any, algorithm: str) -> str:
    """The name of the metric that counts who is in the aggregator's mean.

    Raises:
        ValueError: if it reports none.
    """
    stage = _stage_of(aggregator)
    if stage is None or not stage.traits.weight:
        raise ValueError(
            f"{algorithm} needs to know how many clients are in a mean, which "
            f"{aggregator} does not report: give an aggregator of stages with mean(). "
            "A rule has no mean, and noise is divided by a public number."
        )
    return stage.traits.weight


def check_sums(aggregator: Any, algorithm: str) -> None:
    """Raises a ValueError if a rule combines the clients, and not a sum."""
    _stage_of(aggregator)  # for its error
    if aggregator.rule:
        raise ValueError(
            f"{algorithm} divides sums by how many clients are in them, and "
            f"{aggregator} takes none: give an aggregator of stages, with mean()."
        )


def check_weighs(aggregator: Any, algorithm: str) -> None:
    """Raises a ValueError if the aggregator does not take the weights of clients."""
    stage = _stage_of(aggregator)
    if stage is None or not (stage.traits.weighs and stage.traits.divides):
        raise ValueError(
            f"{algorithm} weighs clients by what they computed, and {aggregator} takes "
            "no weights: give an aggregator of stages with mean()."
        )


def parts_of(tree: PyTree, patterns: Sequence[str]) -> tuple[PyTree, PyTree]:
    """The leaves whose paths match no pattern, and the others, each with None beside.

    Raises:
        ValueError: if one of the two has no leaf.
    """
    names = [*named(tree)]

    def is_named(path: Any) -> bool:
        return any(fnmatch.fnmatchcase(path_of(path), x) for x in patterns)

    chosen = jax.tree.map_with_path(lambda path, x: is_named(path), tree)
    if not 0 < jax.tree.reduce(operator.add, chosen, 0) < len(names):
        raise ValueError(
            f"expected patterns of some leaves and not of all, got {list(patterns)}; "
            f"there are {', '.join(names)}."
        )
    return (
        jax.tree.map(lambda x, c: None if c else x, tree, chosen),
        jax.tree.map(lambda x, c: x if c else None, tree, chosen),
    )


def joined(one: PyTree, other: PyTree) -> PyTree:
    """The tree of two that `parts_of` made."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, one, other, is_leaf=lambda x: x is None
    )


def moving(
    optimizer: optax.GradientTransformation, model: PyTree, part: PyTree
) -> optax.GradientTransformation:
    """The optimizer, which leaves the parameters where `part` has None as they are."""

    def zeroed(update: PyTree, at: PyTree) -> PyTree:
        whole = with_parameters(model, update)
        kept = jax.tree.map(
            lambda x, y: jnp.zeros_like(y) if x is None else y,
            part,
            whole,
            is_leaf=lambda x: x is None,
        )
        return parameters_of(kept)

    return optax.chain(optimizer, optax.stateless(zeroed))


def _stage_of(aggregator: Any) -> fedagg.Stage | None:
    if not isinstance(aggregator, fedagg.Aggregator):
        raise TypeError(
            "aggregator: expected an Aggregator, as fedagg.aggregator(fedagg.mean()) "
            f"returns it, got a {type(aggregator).__name__}."
        )
    return aggregator.stage


def check_population(count: int, name: str = "clients") -> None:
    """Raises a ValueError for what is no positive integer."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{name} must be a positive integer, got {name}={count!r}.")
