"""What the server makes of the model and of the clients' aggregated change."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from fedagg._training import models
from fedagg._trees import pytree
from fedagg._trees.kinds import check_kind
from fedagg._types import PyTree


class ServerStep(NamedTuple):
    """A server of `federated_averaging` that does more than an optimizer's step.

    What clients are told may be more than a model, and what they send something else:
    steps to divide by, control variates, many models. A step that takes the aggregated
    change as it is, and nothing more, is written like this::

        ServerStep(
            init=lambda variables: (),
            step=lambda variables, change, metrics, state: (
                jax.tree.map(jnp.add, variables, change),
                state,
            ),
        )

    Attributes:
        init: `(variables) -> state`, what the server keeps and tells nobody.
        step: `(variables, change, metrics, state) -> (variables, state)`. The change is
            the aggregator's value and the metrics are its metrics. In a round with
            nobody what it returns is not used, unless the aggregator is private.
        sent: `(variables) -> template`, what a client sends, as arrays or shapes. None
            is for changes like the variables.
    """

    init: Callable[[PyTree], PyTree]
    step: Callable[[PyTree, PyTree, dict[str, Any], PyTree], tuple[PyTree, PyTree]]
    sent: Callable[[PyTree], PyTree] | None = None

    @classmethod
    def of(cls, optimizer: optax.GradientTransformation) -> "ServerStep":
        """The step of an optimizer, of a model or of the part of variables that is one.

        It takes the change of the parameters, negated, for their gradient. Collections
        beside "params" are moved by their change as it is.

        Raises:
            TypeError: if it is no optimizer of Optax.
        """
        check_kind(optax.GradientTransformation, server_optimizer=optimizer)

        def init(model: PyTree) -> PyTree:
            return optimizer.init(models.split_model(model)[0])

        def step(model: PyTree, change: PyTree, metrics: dict, state: PyTree):
            del metrics
            parameters, collections = models.split_model(model)
            towards, collections_change = models.split_model(change)
            moved, state = optimizer.update(pytree.negative(towards), state, parameters)
            moved = optax.apply_updates(parameters, moved)
            collections = pytree.add(collections, collections_change)
            return models.join_model(moved, collections, model), state

        return cls(init, step)

    def template(self, variables: PyTree) -> PyTree:
        """What a client sends."""
        return variables if self.sent is None else self.sent(variables)
