"""The worst scale of an attack, for a rule that the adversary knows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree, rowwise
from fedagg._trees.keys import split_key
from fedagg._trees.kinds import check_function, check_kind
from fedagg._types import PyTree, Rule, Update
from fedagg.attacks._attacks import Attack

_SMALLEST = 1e-4  # of the scales tried, as a part of the largest
_ROUNDS = 3  # at most, of scales beside the best


@prints_as_its_call
def optimized(
    attack: Callable[[jax.Array], Attack],
    rule: Rule,
    *,
    largest: float = 100.0,
    evaluations: int = 120,
) -> Attack:
    """An attack whose scale takes the rule farthest from the honest mean.

    Three quarters of the evaluations try scales of both signs, from `largest` down to
    a ten-thousandth, evenly by their logarithm: the harm may fall at once where a rule
    begins to leave liars out. The others search beside the best in three rounds, each
    nearer to it: of 120, to a part in a thousand of a scale. Scales that give NaN are
    passed over. The rule starts from its first state.

    Args:
        attack: one of a scale: `inner_product_manipulation`, `a_little_is_enough`.
        rule: what the adversary knows to be used.
        largest: the largest scale tried. Positive.
        evaluations: how often the rule is tried at most.

    Raises:
        ValueError: if `largest` is not positive, or `evaluations` is below four.
        TypeError: if `attack` is no function of a scale, or `rule` no rule.

    Reference: Shejwalkar and Houmansadr, "Manipulating the Byzantine: Optimizing Model
        Poisoning Attacks and Defenses for Federated Learning", 2021, section IV.
    """
    check_function("(scale)", attack=attack)
    check_kind(Rule, rule=rule)
    checks.check_positive(largest=largest)
    checks.check_whole(4, evaluations=evaluations)
    half = max(3 * evaluations // 8, 1)  # of a sign

    def made(honest: PyTree, liars: int, key: jax.Array | None = None) -> PyTree:
        attack_key, rule_key = split_key(key, 2)
        n = checks.count_clients(honest, "honest")
        state = rule.init(rowwise.abstract_row(honest))
        mean = jax.tree.map(lambda x: jnp.mean(pytree.wide(x), axis=0), honest)

        def harm(scale: jax.Array) -> jax.Array:
            malicious = attack(scale)(honest, liars, _again(attack_key))
            updates = Update(
                rowwise.append_rows(honest, malicious),
                jnp.ones(n + liars, jnp.float32),
            )
            value = rule.combine(state, updates, _again(rule_key)).value
            distance = pytree.norm(pytree.subtract(pytree.widen(value), mean))
            return jnp.where(jnp.isnan(distance), -1.0, distance)

        # Of one, the largest.
        exponents = jnp.linspace(0.0, jnp.log(_SMALLEST), half, dtype=jnp.float32)[::-1]
        scales = largest * jnp.exp(exponents)
        scales = jnp.concatenate([scales, -scales])
        harms = jax.lax.map(harm, scales)
        best = jnp.argmax(harms)
        # As far as the next one tried, on either side.
        step = exponents[1] - exponents[0] if half > 1 else jnp.float32(1.0)
        left = evaluations - 2 * half
        rounds = min(_ROUNDS, left)
        number = left // rounds
        # Without both ends, which have been tried.
        beside = jnp.linspace(-1.0, 1.0, number + 2, dtype=jnp.float32)[1:-1]

        def nearer(carry: tuple, step: jax.Array) -> tuple[tuple, None]:
            best, most = carry
            scales = jnp.clip(best * jnp.exp(step * beside), -largest, largest)
            harms = jax.lax.map(harm, scales)
            at = jnp.argmax(harms)
            is_worse = harms[at] > most
            found = jnp.where(is_worse, scales[at], best), jnp.maximum(harms[at], most)
            return found, None

        # What is between two of one round is the step of the next.
        between = 2.0 / (number + 1)
        steps = step * between ** jnp.arange(rounds, dtype=jnp.float32)
        (best, _), _ = jax.lax.scan(nearer, (scales[best], harms[best]), steps)
        return attack(best)(honest, liars, _again(attack_key))

    return made


def _again(key: jax.Array | None) -> jax.Array | None:
    """The same key: all scales are tried with the same draws."""
    return None if key is None else jax.random.clone(key)
