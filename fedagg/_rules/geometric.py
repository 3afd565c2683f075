"""Rules that move a point towards the clients, no client with much force."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedagg._rules.geometry import (
    Cohort,
    Geometry,
    count,
    geometry,
    has_room,
    is_clean,
    weighted_sum,
)
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree
from fedagg._trees.matrix import Layout, norms_of
from fedagg._trees.shares import Share, rule_of_shares
from fedagg._trees.squares import squares_along_rows, with_derivatives
from fedagg._trees.weights import in_units, is_present
from fedagg._types import Output, PyTree, Rule, Update


@prints_as_its_call
def geometric_median(
    *,
    weighted: bool = True,
    smoothing: float = 1e-6,
    tolerance: float = 1e-6,
    iterations: int = 1000,
) -> Rule:
    """The point with the smallest weighted sum of distances to the clients.

    It is found by Weiszfeld's iteration, smoothed, as in RFA. As long as less than half
    of the weight is of clients that lie, it stays near the others. The iteration works
    on inner products of clients, so that values are read a few times in all. It has no
    derivative in reverse.

    | | the answer |
    | --- | --- |
    | NaN, an infinity, a norm beyond 2e18 | the client is left out |
    | two clients of equal weight | a point between them |
    | nobody present | zeros |

    Args:
        weighted: whether clients count by their weights; else each counts the same. A
            liar may lie about its weight too.
        smoothing: distances below this are taken as this, in units of the smallest
            distance within which half of the clients are of one.
        tolerance: the last step's length, in the same unit.
        iterations: no more steps than this.

    Raises:
        ValueError: if a number is not positive.
        TypeError: in `combine`, for a leaf that is not of a float dtype.

    Reference: Pillutla et al., "Robust Aggregation for Federated Learning", 2022,
        algorithm 2.
    """
    checks.check_positive(smoothing=smoothing, tolerance=tolerance)
    checks.check_whole(1, iterations=iterations)

    def combine(
        state: PyTree, updates: Update, key: jax.Array | None, share: Share
    ) -> Output:
        del key
        cohort = Cohort.of(updates, "geometric_median", share)
        found = geometry(cohort)
        weight = updates.weight if weighted else jnp.float32(1.0)
        weight = in_units(jnp.where(cohort.given, weight, 0.0)).astype(found.gram.dtype)
        ordered = jnp.sort(found.squares[found.middle])
        unit = jnp.sqrt(ordered[count(cohort.given) // 2])
        usual = (unit > 0.0) & jnp.isfinite(unit)
        unit = jnp.where(usual, unit, jnp.sqrt(_least_positive(found.squares)))

        def pulls(distances: jax.Array) -> jax.Array:
            """The clients' parts of the next point `[n]`."""
            # Relative to the unit, so that nothing overflows.
            pull = weight / jnp.maximum(distances / unit, smoothing)
            total = jnp.sum(pull)
            return pull / jnp.where(total > 0.0, total, 1.0)  # zeros of nobody

        def is_moving(carry: tuple) -> jax.Array:
            step, i = carry[1:]
            return (step > tolerance * unit) & (i < iterations)

        def move(carry: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
            parts, _, i = carry
            new = pulls(_distances(found, parts))
            return new, _length(found, new - parts), i + 1

        start = pulls(unit + jnp.where(cohort.given, _to_middle(found), 0.0))
        first = (start, jnp.full_like(unit, jnp.inf), jnp.int32(0))
        parts, _, _ = jax.lax.while_loop(is_moving, move, first)
        return Output(state, cohort.combined(parts), {})

    return rule_of_shares(lambda template: (), combine)


class ClippingCenter(NamedTuple):
    """Where the next round starts."""

    value: Any  # like the template, in float32 or wider


@prints_as_its_call
def centered_clipping(radius: float, *, iterations: int = 1) -> Rule:
    """The last round's value, moved by the mean of differences clipped to `radius`.

    It starts from zeros. No client moves it by more than `radius / n` an iteration.
    Every present client counts the same, whatever its weight.

    | | the answer |
    | --- | --- |
    | NaN, an infinity, a difference beyond 2e18 | the client counts, moves nothing |
    | nobody present | zeros, and the next round starts from where this one did |

    Args:
        radius: the largest norm of a difference. Positive.
        iterations: how often all clients are clipped around the new value.

    Raises:
        ValueError: if an argument is not positive.
        TypeError: in `combine`, for a leaf that is not of a float dtype.

    Reference: Karimireddy et al., "Learning from History for Byzantine Robust
        Optimization", 2021, algorithm 2.
    """
    checks.check_positive(radius=radius)
    checks.check_whole(1, iterations=iterations)

    def init(template: PyTree) -> ClippingCenter:
        checks.check_floating(template, "centered_clipping")
        return ClippingCenter(pytree.widen(pytree.zeros(template)))

    def combine(
        state: ClippingCenter, updates: Update, key: jax.Array | None, share: Share
    ) -> Output:
        del key
        checks.check_floating(updates.value, "centered_clipping")
        layout = Layout.of(updates.value)
        matrices = layout.matrices(updates.value)
        present = is_present(updates.weight)
        number = jnp.maximum(count(present), 1)

        def moved(center: list[jax.Array]) -> list[jax.Array]:
            def away(x: jax.Array, center: jax.Array) -> jax.Array:
                return with_derivatives(present, x - center[None])

            total = share.add(squares_along_rows(away, matrices, center))
            given = present & has_room(total)
            norms = norms_of(total, given)
            factors = radius / jnp.maximum(norms, radius) / number.astype(norms.dtype)
            stays = 1.0 - jnp.sum(factors)  # of the center
            pulls = weighted_sum(matrices, factors, given, is_clean(total))
            return [
                old * stays.astype(old.dtype) + pull
                for old, pull in zip(center, pulls, strict=True)
            ]

        center = layout.vectors(share.cut(state.value))
        # Clients may send floats of more bits than the template has, or of fewer.
        wide = [jax.eval_shape(pytree.wide, x).dtype for x in matrices]
        center = [x.astype(dtype) for x, dtype in zip(center, wide, strict=True)]
        for _ in range(iterations):
            center = moved(center)
        # Small leaves are cut from what is made, instead of made one by one.
        found = center, pytree.keep(jnp.any(present), center)
        kept, value = map(layout.tree, jax.lax.optimization_barrier(found))
        kept = ClippingCenter(pytree.cast_like(share.join(kept), state.value))
        return Output(kept, value, {})

    return rule_of_shares(init, combine)


def _to_middle(found: Geometry) -> jax.Array:
    return jnp.sqrt(found.squares[found.middle])


def _least_positive(squares: jax.Array) -> jax.Array:
    """The smallest positive one `[]`, or one if there is none."""
    least = jnp.min(jnp.where(squares > 0.0, squares, jnp.inf))
    return jnp.where(jnp.isfinite(least), least, 1.0)


def _distances(found: Geometry, parts: jax.Array) -> jax.Array:
    """From each client to the point that is made of so much of each `[n]`."""
    away = parts[None] - jnp.eye(len(parts), dtype=parts.dtype)  # a row each
    return jnp.sqrt(_square(found, away))


def _length(found: Geometry, parts: jax.Array) -> jax.Array:
    return jnp.sqrt(_square(found, parts[None])[0])


def _square(found: Geometry, parts: jax.Array) -> jax.Array:
    """Squares of the norms of points, a row of parts each."""
    moved = jnp.matmul(parts, found.gram, precision="highest")
    return jnp.maximum(jnp.sum(moved * parts, axis=-1), 0.0)
