"""What functions make prints as the call that made it, with plain numbers in it.

A number of NumPy or JAX, `np.float32(0.5)`, is taken for one of Python where an option
is due, so that it neither prints its dtype nor brings it into a round.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._aggregator import Aggregator
from fedagg._types import Stage

P = ParamSpec("P")
R = TypeVar("R")

_OF_ONE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def prints_as_its_call(factory: Callable[P, R]) -> Callable[P, R]:
    """The same factory, whose results print as the call that made them.

    It is given plain numbers, and refuses what is no bool or no string where its
    annotation asks for one.
    """
    signature = inspect.signature(factory)
    free: Callable[..., R] = factory  # of what it is given, once that is plain
    positional = [x.name for x in signature.parameters.values() if x.kind in _OF_ONE]

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> R:
        given_in_order = [_plain(x) for x in args]
        given_by_name = {name: _plain(x) for name, x in kwargs.items()}
        named = dict(zip(positional, given_in_order, strict=False)) | given_by_name
        for name, x in named.items():
            if name in signature.parameters:
                _check(name, x, signature.parameters[name].annotation)
        made = free(*given_in_order, **given_by_name)
        given = [*map(as_written, given_in_order)]
        for name, x in given_by_name.items():
            parameter = signature.parameters.get(name)
            if parameter is None or not _is_default(x, parameter.default):
                given.append(f"{name}={as_written(x)}")
        return with_sentence(made, f"{factory.__name__}({', '.join(given)})")

    vars(make)["__signature__"] = signature
    return make


def _plain(x: Any) -> Any:
    """A number of NumPy or JAX as one of Python; anything else as it is."""
    is_array = isinstance(x, (np.generic, np.ndarray, jax.Array))
    if not is_array or isinstance(x, jax.core.Tracer) or x.ndim:
        return x
    is_number = jnp.issubdtype(x.dtype, jnp.number) or x.dtype == np.bool_
    return x.item() if is_number else x


def _check(name: str, x: Any, kind: Any) -> None:
    """Raises a TypeError for what is no flag or no string where one is due."""
    if kind is bool and not isinstance(x, bool):
        raise TypeError(f"{name} must be True or False, got {name}={as_written(x)}.")
    if kind is str and not isinstance(x, str):
        raise TypeError(f"{name} must be a string, got {name}={as_written(x)}.")


def _is_default(x: Any, default: Any) -> bool:
    return (
        x is default
        or (isinstance(x, (bool, int, float, str)) and type(x) is type(default))
        and x == default
    )


def as_written(x: Any) -> str:
    """An argument as a reader would write it; of a function, its name."""
    if inspect.isroutine(x):
        return x.__qualname__
    return repr(x)


def with_sentence(made: Any, sentence: str) -> Any:
    """The same stage, bound, rule, aggregator or function, which prints like this."""
    if isinstance(made, Stage):
        return made._replace(traits=made.traits._replace(sentence=sentence))
    if inspect.isfunction(made):  # a way to sum, or the work of a client
        made.__qualname__ = sentence
        return made
    if isinstance(made, Aggregator):
        made.sentence = sentence
        return made
    return made._replace(sentence=sentence)
