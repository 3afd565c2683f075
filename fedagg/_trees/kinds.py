"""Checks of arguments that are no numbers: stages, rules, rounds, functions.

Each error says what was expected, what was got, and what to write instead.
"""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedagg._aggregator import Aggregator
from fedagg._sentence import as_written
from fedagg._types import Bound, PyTree, Rule, Stage

_EXPECTED = {
    Stage: "a Stage, as clipping(1.0) or chain(*stages) returns it",
    Rule: "a Rule, as median() returns it",
    Aggregator: "an Aggregator, as aggregator(*stages) or a recipe returns it",
    jax.sharding.Mesh: "a mesh, as jax.make_mesh((devices,), ('clients',)) returns it",
    optax.GradientTransformation: "an optimizer of Optax, as optax.sgd(0.1) returns it",
}

_INSTEAD = {
    (Stage, Aggregator): "An aggregator is a whole round: give the stages of it.",
    (Stage, Rule): "A rule takes the place of the sum: combining(rule, *stages).",
    (Stage, Bound): "A bound is an argument of a stage: clipping(bound).",
    (Stage, list): "Give the stages without the list, or as one: chain(*stages).",
    (Stage, tuple): "Give the stages without the tuple, or as one: chain(*stages).",
    (Rule, Stage): "The rule comes first, and stages after it: combining(rule, stage).",
    (Rule, Aggregator): "Give the rule itself, and the stages after it.",
    (Aggregator, list): "Make one of stages: chain(*stages), or aggregator(*stages).",
    (Aggregator, Stage): "Make a round of the stage: aggregator(stage).",
    (Aggregator, Rule): "Make a round of the rule: combining(rule).",
    (Aggregator, optax.GradientTransformation): "The optimizer is another argument.",
    (optax.GradientTransformation, Aggregator): "The aggregator is another argument.",
    (optax.GradientTransformation, float): "For a learning rate: optax.sgd(rate).",
    (optax.GradientTransformation, int): "For a learning rate: optax.sgd(rate).",
}


def check_kind(kind: type, **arguments: Any) -> None:
    """Raises a TypeError for an argument that is not of one of the kinds above."""
    for argument, got in arguments.items():
        if not isinstance(got, kind):
            raise TypeError(
                f"{argument}: expected {_EXPECTED[kind]}, got {described(got)}."
                f"{instead(kind, got)}"
            )


def instead(kind: type, got: Any) -> str:
    """What to write in place of something that is of another kind."""
    if inspect.isroutine(got):
        # What a factory made is named for its call.
        is_made = "(" in got.__qualname__
        return "" if is_made else f" If that makes one, call it: {got.__name__}(...)."
    advice = [
        text
        for (expected, other), text in _INSTEAD.items()
        if expected is kind and isinstance(got, other)
    ]
    return f" {advice[0]}" if advice else ""


def check_function(takes: str, **arguments: Any) -> None:
    """Raises a TypeError for what is no function of such arguments.

    `takes` is how they are written: "(row, key)", and "(row, ...)" for any number. A
    callable that does not say what it takes is taken at its word.
    """
    count = takes.count(",") + 1
    for argument, got in arguments.items():
        expected = f"{argument}: expected a function {takes}"
        if not callable(got):
            raise TypeError(f"{expected}, got {described(got)}.")
        if "..." in takes:
            continue
        try:
            signature = inspect.signature(got, follow_wrapped=False)
        except (TypeError, ValueError):
            continue
        try:
            signature.bind(*[None] * count)
        except TypeError:
            raise TypeError(
                f"{expected}, got {described(got)}, which takes {signature}."
            ) from None


def check_work(work: Any, memory: PyTree) -> None:
    """Raises a TypeError for what is no work of a client, with a memory or without."""
    takes = "(row, key)" if memory is None else "(row, key, memory)"
    check_function(takes, work=work)


def described(x: Any) -> str:
    """Something that an error speaks of, in a few words."""
    if isinstance(x, functools.partial):
        x = x.func
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return f"random keys {x.dtype}{list(x.shape)}"
    if isinstance(x, (np.ndarray, jax.Array)) and jnp.ndim(x):
        return f"an array {x.dtype}{list(x.shape)}"
    if isinstance(x, jax.core.Tracer):
        return f"a traced {x.dtype}[]"
    if inspect.isroutine(x):
        return f"the function {x.__qualname__}"
    if isinstance(x, (dict, set)):
        return f"a {type(x).__name__}"
    written = as_written(x)
    return written if len(written) <= 100 else f"a {type(x).__name__}"


def types_of(made: Any) -> str:
    """What a function returned, by its types."""
    if isinstance(made, tuple):
        return f"({', '.join(type(x).__name__ for x in made)})"
    return f"a {type(made).__name__}"


def of_dtype(x: Any) -> str:
    """The dtype of an array that an error speaks of; of anything else nothing."""
    return f" of dtype {x.dtype}" if isinstance(x, np.ndarray) else ""


def array_leaves(tree: PyTree, name: str) -> PyTree:
    """The tree with arrays as leaves: numbers of Python become scalars.

    Raises:
        TypeError: with the name, for a leaf that is neither.
    """

    def as_array(path: Any, x: Any) -> Any:
        if isinstance(x, (bool, int, float, complex)):
            return jnp.asarray(x)
        arrays = jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic
        if isinstance(x, arrays) and is_numeric(x.dtype):
            return x
        where = jax.tree_util.keystr(path) or "the only leaf"
        raise TypeError(
            f"{name}: expected arrays of numbers as leaves; {where} is "
            f"{described(x)}{of_dtype(x)}."
        )

    return jax.tree.map_with_path(as_array, tree)


def floats_of(sent: PyTree, template: PyTree) -> PyTree:
    """Integers that stand for the floats of a template, as the floats that they are.

    What a rule is given has to be of floats, and points of a grid come as integers.
    Without a template, which is None, nothing is known of them.
    """
    of_floats = jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jnp.floating), template)
    if template is None or not jax.tree.all(of_floats):
        return sent

    def as_float(x: jax.Array) -> jax.Array:
        is_whole = jnp.issubdtype(x.dtype, jnp.integer)
        return x.astype(jnp.float32) if is_whole else x

    return jax.tree.map(as_float, sent)


def is_numeric(dtype: np.dtype) -> bool:
    """Whether it is one of numbers, or of bools."""
    return jnp.issubdtype(dtype, jnp.number) or dtype == np.bool_
