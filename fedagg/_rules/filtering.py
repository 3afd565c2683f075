"""A rule that filters clients out along the direction in which they differ most."""

import jax
import jax.numpy as jnp

from fedagg._rules.geometry import Cohort, check_cohort, count, geometry
from fedagg._rules.spectrum import largest_eigenpair
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks
from fedagg._trees.shares import Share, rule_of_shares
from fedagg._types import Output, PyTree, Rule, Update

_LOST = 0.01  # the part of what they have that those left lose at least, but for one
_MOST = 1000  # steps


@prints_as_its_call
def caf(f: int) -> Rule:
    """The mean of what is left of clients where their covariance was smallest.

    Every client begins with one. Time and again those far from the mean, along the
    direction of the largest variance, lose in proportion to the square of how far, the
    farthest all, until no more than `n - 2f` is left. Of all these means it takes that
    with the smallest largest variance: the covariance-bound agnostic filter. Who has
    lost all still counts as the farthest. Where the others would then lose less than a
    hundredth, so many steps are made at once that one of them loses as much, which
    changes the value by a few thousandths of its norm. Where many variances are nearly
    equal, rounding decides which is reduced first, and two or three digits are sure.

    Weights have no part. A client with a NaN or an infinity in its value, or with a
    norm beyond 2e18, begins with nothing. Nobody present gives zeros.

    Args:
        f: how many clients may lie, fewer than half. Where fewer than that are present,
            it is lowered to what they can bear.

    Raises:
        ValueError: if `f` is not a whole number, or in `combine`, if that is half of
            the clients or more.
        TypeError: in `combine`, for a leaf that is not of a float dtype.

    Reference: Allouah et al., "Towards Trustworthy Federated Learning with Untrusted
        Participants", 2025, algorithm 2.
    """
    checks.check_whole(0, f=f)

    def combine(
        state: PyTree, updates: Update, key: jax.Array | None, share: Share
    ) -> Output:
        del key
        check_cohort(len(updates.weight), f, "caf")
        cohort = Cohort.of(updates, "caf", share)
        gram = geometry(cohort).gram
        found = count(cohort.present) - count(cohort.given)
        liars = cohort.liars(f)
        enough = count(cohort.given) - 2 * liars - jnp.minimum(found, f)
        enough = jnp.maximum(enough, 0)

        def is_long(carry: tuple) -> jax.Array:
            left, i = carry[0], carry[-1]
            return (jnp.sum(left) > enough.astype(left.dtype)) & (i < _MOST)

        def filtered(carry: tuple) -> tuple[jax.Array, ...]:
            left, best, least, i = carry
            parts = left / jnp.sum(left)
            variance, along = _largest_variance(gram, parts)
            is_best = variance < least
            best, least = (
                jnp.where(is_best, parts, best),
                jnp.where(is_best, variance, least),
            )
            square = jnp.where(cohort.given, jnp.square(along), 0.0)
            largest, of_left = (
                jnp.max(square),
                jnp.max(square, where=left > 0.0, initial=0),
            )
            # Where nobody left differs from the mean, all are the farthest.
            largest = jnp.where(of_left > 0.0, largest, 0.0)
            # Beside one who has lost all, and is far out, a step would change nothing.
            steps = jnp.maximum(_LOST * largest / of_left, 1.0)
            # The quotient of two equal numbers need not be one.
            is_less = square < largest
            lost = jnp.where(is_less, square / largest, 0.0)
            kept = jnp.where(is_less, jnp.exp(steps * jnp.log1p(-lost)), 0.0)
            return left * kept, best, least, i + 1

        begin = cohort.given.astype(gram.dtype)
        everyone = begin / jnp.maximum(jnp.sum(begin), 1.0)
        infinite = jnp.full((), jnp.inf, gram.dtype)
        first = (begin, everyone, infinite, jnp.int32(0))
        best = jax.lax.while_loop(is_long, filtered, first)[1]
        return Output(state, cohort.combined(best), {})

    return rule_of_shares(lambda template: (), combine)


def _largest_variance(gram: jax.Array, parts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest variance `[]`, and where clients are along it `[n]`, to a factor."""
    to_mean = jnp.matmul(gram, parts, precision="highest")
    moved = gram - to_mean[:, None] - to_mean[None] + jnp.sum(parts * to_mean)
    roots = jnp.sqrt(parts)
    # Beside zero, a covariance has the eigenvalues of this Gram matrix. Scaled, so that
    # squares of large numbers do not overflow.
    unit = jnp.maximum(jnp.max(jnp.abs(moved)), jnp.finfo(moved.dtype).tiny)
    moved = moved / unit
    value, vector = largest_eigenpair(roots[:, None] * moved * roots[None])
    along = jnp.matmul(moved, roots * vector, precision="highest")
    return value * unit, along
