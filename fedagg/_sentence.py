"""What functions make prints as the call that made it."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from fedagg._aggregator import Aggregator
from fedagg._types import Stage

P = ParamSpec("P")
R = TypeVar("R")


def prints_as_its_call(factory: Callable[P, R]) -> Callable[P, R]:
    """The same factory, whose results print as the call that made them."""
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> R:
        made = factory(*args, **kwargs)
        given = [*map(_argument, args)]
        for name, x in kwargs.items():
            parameter = signature.parameters.get(name)
            if parameter is None or not _is_default(x, parameter.default):
                given.append(f"{name}={_argument(x)}")
        return with_sentence(made, f"{factory.__name__}({', '.join(given)})")

    return make


def _is_default(x: Any, default: Any) -> bool:
    return (
        x is default
        or (isinstance(x, (bool, int, float, str)) and type(x) is type(default))
        and x == default
    )


def _argument(x: Any) -> str:
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
