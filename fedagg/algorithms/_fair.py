"""Weights from losses: q-FedAvg and agnostic averaging, for those who fare worst."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import fedagg
from fedagg.algorithms._parts import (
    check_population,
    check_weighs,
    counted_training,
    loss_at,
    parameters_of,
    scaled,
    two_keys,
    with_parameters,
)

_LEAST = 1e-10  # of a loss, whose power would be infinite at zero


def q_fedavg(
    loss: Any,
    optimizer: optax.GradientTransformation,
    aggregator: fedagg.Aggregator,
    *,
    q: float,
    lipschitz: float,
    server_optimizer: optax.GradientTransformation | None = None,
    **options: Any,
) -> fedagg.Aggregator:
    """Minimizes the mean of the clients' losses to the power of `q + 1`.

    The larger `q`, the more those count whose loss is large; `q=0` is FedAvg with all
    clients alike. A client's weight comes from its loss and its change; that which is
    given to `next` says who is present.

    | state | |
    | --- | --- |
    | `state.variables` | the model, as in `federated_averaging` |
    | a client's memory | none |

    A client goes through its examples once more than in FedAvg, and sends as much.
    Batch statistics are averaged with the same weights. A loss counts from 1e-10 up.

    Args:
        loss: as `local_training` takes it, of values that are not negative.
        optimizer: of clients.
        aggregator: with a `mean` that weighs, and room for weights above one.
        q: zero or more.
        lipschitz: L in the paper, one over the clients' learning rate. Positive.
        server_optimizer: from Optax. None is `optax.sgd(1.0)`.
        **options: of `local_training`: `batch_size`, `epochs` and others.

    Raises:
        ValueError: for an aggregator without weights, and numbers out of range.
        TypeError: if an argument is of another type.

    Reference: Li et al., "Fair Resource Allocation in Federated Learning", 2020,
        algorithm 2.
    """
    check_weighs(aggregator, "q_fedavg")
    if not (q >= 0.0 and lipschitz > 0.0):
        raise ValueError(f"expected q >= 0 and lipschitz > 0, got {q=}, {lipschitz=}.")
    train = counted_training(loss, optimizer, **options)

    def work(model: Any, row: Any, key: Any) -> Any:
        key, other = two_keys(key)
        at_start = jnp.maximum(loss_at(loss, model, row, other), _LEAST)
        change, metrics, steps = train(model, row, key)
        moved = parameters_of(change)
        squares = optax.tree.norm(moved, squared=True).astype(jnp.float32)
        power = at_start**q
        h = q * power / at_start * lipschitz**2 * squares + lipschitz * power
        moved = scaled(power * lipschitz / h, moved)
        # A client without examples is absent; of one whose loss is not finite the
        # aggregator is to hear.
        h = jnp.where(jnp.isfinite(h), h, 1.0)
        weight = jnp.where(steps > 0.0, h, 0.0)
        return fedagg.Update(with_parameters(change, moved), weight), metrics

    return fedagg.federated_averaging(
        work, server_optimizer or optax.sgd(1.0), aggregator
    )


def agnostic(
    loss: Any,
    optimizer: optax.GradientTransformation,
    aggregator: fedagg.Aggregator,
    *,
    groups: int,
    rate: float = 0.1,
    server_optimizer: optax.GradientTransformation | None = None,
    **options: Any,
) -> fedagg.Aggregator:
    """Minimizes the loss of the worst mixture of groups, or of clients.

    Client data are a pair `(client_data, groups)`, `[n]` integers: a group is a kind of
    phone, a language, or each client by itself. The model's step weighs a client by its
    group's part of the mixture; then the mixture moves towards groups whose clients had
    larger losses, by a factor of `exp(rate * loss)`. The weights given to `next` say
    who is present. Groups of whom nobody came keep their parts.

    | state | |
    | --- | --- |
    | `state.variables` | `{"model", "mixture"}`, as is the value of a round |
    | a client's memory | none |

    A client goes through its examples once more than in FedAvg and sends, beside the
    change, two numbers for each group, zero but for its own: a secure sum hides them.

    Args:
        loss: as `local_training` takes it.
        optimizer: of clients.
        aggregator: with a `mean` that weighs.
        groups: how many there are.
        rate: of the mixture. Positive.
        server_optimizer: from Optax. None is `optax.sgd(1.0)`.
        **options: of `local_training`: `batch_size`, `epochs` and others.

    Raises:
        ValueError: for an aggregator without weights, and numbers out of range.
        TypeError: if an argument is of another type.

    Reference: Mohri et al., "Agnostic Federated Learning", 2019, section 4; with steps
        of the mixture as in Ro et al., "Communication-Efficient Agnostic Federated
        Averaging", 2021, algorithm 1.
    """
    check_weighs(aggregator, "agnostic")
    check_population(groups, "groups")
    if not rate > 0.0:
        raise ValueError(f"rate must be positive, got {rate=}.")
    server = fedagg.ServerStep.of(server_optimizer or optax.sgd(1.0))
    train = counted_training(loss, optimizer, **options)

    def work(variables: Any, row_and_group: Any, key: Any) -> Any:
        row, group = row_and_group
        model, mixture = variables["model"], variables["mixture"]
        key, other = two_keys(key)
        change, metrics, steps = train(model, row, key)
        own = jax.nn.one_hot(group, groups)
        losses = own * loss_at(loss, model, row, other)
        # Of an unknown group nothing is known, and of no examples nothing is learnt.
        weight = jnp.where(steps > 0.0, jnp.vdot(own, mixture), 0.0)
        sent = {"model": change, "losses": losses, "counts": own}
        return fedagg.Update(sent, weight), metrics

    def step(variables: Any, change: Any, metrics: Any, state: Any) -> Any:
        model, state = server.step(variables["model"], change["model"], {}, state)
        is_there = change["counts"] > 0.0
        losses = change["losses"] / jnp.where(is_there, change["counts"], 1.0)
        mixture = _moved(variables["mixture"], rate * losses, is_there)
        return {"model": model, "mixture": mixture}, state

    def init(variables: Any) -> Any:
        return server.init(variables["model"])

    def sent(variables: Any) -> Any:
        mixture = variables["mixture"]
        return {"model": variables["model"], "losses": mixture, "counts": mixture}

    training = fedagg.federated_averaging(
        work, fedagg.ServerStep(init, step, sent), aggregator
    )
    return training._replace(
        init=lambda model: training.init(
            {"model": model, "mixture": jnp.full(groups, 1.0 / groups)}
        )
    )


def _moved(mixture: jax.Array, by: jax.Array, is_there: jax.Array) -> jax.Array:
    """A mixture times `exp(by)` where somebody was, whose parts keep their sum."""
    there = jnp.where(is_there, mixture, 0.0)
    # The largest comes to one, so that nothing overflows.
    largest = jnp.max(jnp.where(is_there, by, -jnp.inf))
    moved = jnp.where(is_there, there * jnp.exp(by - largest), 0.0)
    total = jnp.sum(moved)
    moved *= jnp.sum(there) / jnp.where(total > 0.0, total, 1.0)
    return jnp.where(is_there, moved, mixture)
