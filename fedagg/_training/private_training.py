"""Client work that hides single examples: each step is a private round over them.

This is DP-SGD: the aggregator clips and noises gradients of examples, as it does the
changes of clients elsewhere.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from fedagg._aggregator import Aggregator
from fedagg._privacy.samplers import Sampler
from fedagg._sentence import prints_as_its_call
from fedagg._training.checked import checked_losses, checked_row
from fedagg._training.federated_averaging import ClientWork
from fedagg._training.gradient import value_and_grad
from fedagg._training.local_training import Loss
from fedagg._training.models import split_model, with_parameters
from fedagg._trees import checks, pytree, rowwise
from fedagg._trees.keys import as_key
from fedagg._trees.kinds import check_function, check_kind, described
from fedagg._types import PyTree


@prints_as_its_call
def private_training(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    aggregator: Aggregator,
    sampler: Sampler,
    *,
    steps: int,
) -> ClientWork:
    """Makes client work that trains with noise, such that single examples are hidden.

    In each step the sampler draws some of the client's examples, the aggregator makes
    one gradient of theirs, and the optimizer follows it. This is DP-SGD with a clip of
    one, in batches of some 64 examples of clients with a thousand or so, of which 16
    are side by side; and its epsilon in ten rounds::

        def loss(mean, examples, key):
            return jnp.sum((examples - mean[None]) ** 2, axis=1), {}

        examples = aggregator(gaussian_noise(1.1, 1.0, 64), sum_over=in_chunks(16))
        sampler = poisson(64 / 1000)
        work = private_training(loss, optax.sgd(0.1), examples, sampler, steps=50)
        plan = {"neighbors": "add_or_remove", "participation": sampler}
        guarantee(examples, jnp.zeros(3), 50 * 10, 1e-5, **plan, accountant="rdp")

    | guarantee | |
    | --- | --- |
    | protected | one example of a client, over all steps of the rounds it is in |
    | relation | those of the aggregator, of examples for clients |
    | against | who sees all that the client sends; the server, too |
    | sampling | `poisson` |
    | outside | weights that count examples; a key that is known; an example twice |

    What the client sends follows from noised gradients alone: also the steps are as
    many for each client, with few examples or none. A client whose number of examples
    is secret has a weight that does not tell of it. Noise is integers, drawn from the
    client's key, and a gradient that is not finite counts as zero, as `gaussian_noise`
    says. Collections stay as they are: batch statistics have no noise, and a loss that
    returns some is refused. The learnt clip of an aggregator begins anew in each round.

    Reports the aggregator's metrics, means over the steps; so `training/loss` `[]`, the
    mean loss of sampled examples, if it has `noised_metrics(..., {"training/loss": 5})`
    before it.

    Args:
        loss: as `local_training` takes it. It is given one example at a time, `[1]`.
        optimizer: from Optax. It starts anew with each client and round.
        aggregator: of gradients, with noise that is drawn anew in each step.
        sampler: of examples, `poisson`.
        steps: of each client in a round.

    Raises:
        TypeError: if an argument is of another type; in the work, as `local_training`.
        ValueError: if the aggregator is not private, or its noise cancels over steps;
            if the sampler is another one, or `steps` no positive integer; in the work,
            without a key, and for a loss that returns collections.

    Reference: Abadi et al., "Deep Learning with Differential Privacy", 2016, algorithm
        1.
    """
    check_function("(variables, examples, key)", loss=loss)
    check_kind(optax.GradientTransformation, optimizer=optimizer)
    check_kind(Aggregator, aggregator=aggregator)
    _check_private(aggregator)
    _check_sampler(sampler)
    checks.check_whole(1, steps=steps)

    def mean_loss(parameters: PyTree, variables: PyTree, example: PyTree, key: Any):
        model = with_parameters(variables, parameters)
        losses, changed = checked_losses(loss(model, example, key), (1,))
        if changed:
            raise ValueError(
                f"loss: returned the collection {[*changed][0]!r}, which has no noise. "
                "Return losses, {}, and normalize by something else than a batch."
            )
        return losses[0], None

    def of_example(
        parameters: PyTree, variables: PyTree, example: PyTree, key: Any
    ) -> tuple[PyTree, dict[str, jax.Array]]:
        alone = rowwise.repeat(example, 1)
        given = parameters, variables, alone, key
        (value, _), gradient = value_and_grad(mean_loss)(*given)
        return gradient, {"training/loss": value.astype(jnp.float32)}

    def work(variables: PyTree, row: Any, key: jax.Array | None):
        key = checks.check_key(as_key(key), "private_training", "examples and noise")
        turns_key, draws_key, noise_key = jax.random.split(key, 3)
        examples, place, mask = checked_row(row)
        start, _ = split_model(variables)
        checks.check_floating(start, "private_training")

        def step(carry: PyTree, number: jax.Array) -> tuple[PyTree, dict]:
            parameters, optimizer_state, state, draws = carry
            draws, (drawn, present) = sampler.next(draws, draws_key)
            # A client without examples may be said to begin after the last.
            last = rowwise.count_rows(examples) - 1
            batch = rowwise.take(examples, jnp.minimum(place + drawn, last))
            state, gradient, metrics = aggregator.next(
                *(state, batch, present * mask[drawn].astype(present.dtype)),
                jax.random.fold_in(noise_key, number),
                work=Partial(of_example, parameters, variables),
            )
            change, optimizer_state = optimizer.update(
                pytree.cast_like(gradient, parameters), optimizer_state, parameters
            )
            parameters = optax.apply_updates(parameters, change)
            return (parameters, optimizer_state, state, draws), metrics

        draws = sampler.init(mask.shape[0], turns_key)
        first = start, optimizer.init(start), aggregator.init(start), draws
        numbers = jnp.arange(steps, dtype=jnp.uint32)
        (end, *_), metrics = jax.lax.scan(step, first, numbers)
        change = pytree.subtract(with_parameters(variables, end), variables)
        return change, {name: jnp.mean(x) for name, x in metrics.items()}

    return work


def _check_private(aggregator: Aggregator) -> None:
    traits = None if aggregator.stage is None else aggregator.stage.traits
    if traits is None or not traits.is_private:
        raise ValueError(
            "aggregator: expected one with noise, as aggregator(gaussian_noise(1.0, "
            f"1.0, 64)), got {described(aggregator)}. Without noise: local_training."
        )
    for mechanism in traits.mechanisms:
        if mechanism.bands != 1:
            raise ValueError(
                f"aggregator: {mechanism!r} cancels over steps, and each round of a "
                "client begins anew, so that no guarantee composes. Give "
                "gaussian_noise, whose noise is drawn anew in each step."
            )


def _check_sampler(sampler: Sampler) -> None:
    if not isinstance(sampler, Sampler):
        raise TypeError(
            "sampler: expected a Sampler, as poisson(0.01) returns it, got "
            f"{described(sampler)}."
        )
    if not sampler.by_client or sampler.separation > 1:
        raise ValueError(
            f"sampler: expected poisson, which draws each example by itself in each "
            f"step, got {sampler}. A client has fewer examples than its row has room "
            "for, and turns would begin anew in each round."
        )
