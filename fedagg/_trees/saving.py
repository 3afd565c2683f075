"""How Flax saves what is ours, which it is told when the first state is made.

Importing Flax takes long, and not everybody who imports fedagg has a use for it.
"""

from collections.abc import Callable
from typing import Any

_WAITING: list[tuple[type, Callable[[Any], Any], Callable[[Any, Any], Any]]] = []


def saved(
    kind: type, to_state: Callable[[Any], Any], from_state: Callable[[Any, Any], Any]
) -> None:
    """Has a type saved by what `to_state` makes of it, and restored by `from_state`."""
    _WAITING.append((kind, to_state, from_state))


def tell_flax() -> None:
    """Tells Flax of all types that it was not told of yet."""
    if _WAITING:
        import flax.serialization

        while _WAITING:
            flax.serialization.register_serialization_state(*_WAITING.pop())
