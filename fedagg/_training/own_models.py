"""The models that a client evaluates: the server's, its own, and after training."""

from collections.abc import Callable
from typing import Any

from fedagg._training.models import in_containers_of
from fedagg._training.population import RememberingWork
from fedagg._trees import pytree
from fedagg._types import PyTree, Update


def own_models(
    variables: PyTree,
    row: Any,
    key: Any,
    after: Callable[..., Any] | RememberingWork | None,
    personal: Callable[[PyTree, PyTree], PyTree] | None,
) -> tuple[Any, dict[str, PyTree]]:
    """A client's held-out examples, and its models by the prefix of their metrics."""
    if after is None and personal is None:
        return row, {"": variables}
    memory = row.get("memory")
    own = variables if personal is None else personal(variables, memory)
    if after is None:
        return row["held_out"], {"": own}
    if isinstance(after, RememberingWork):
        change, _, memory = after.work(variables, row["training"], key, memory)
        trained = _moved(variables, change)
        trained = trained if personal is None else personal(trained, memory)
    else:
        change, _ = after(own, row["training"], key)
        trained = _moved(own, change)
    return row["held_out"], {"before/": own, "after/": trained}


def _moved(model: PyTree, change: Any) -> PyTree:
    change = change.value if isinstance(change, Update) else change
    return pytree.add(model, in_containers_of(change, model))
