"""Rules that score a client by its distances to those near it."""

import functools

import jax
import jax.numpy as jnp

from fedagg._rules import network, ordering, selection
from fedagg._rules.coordinatewise import in_columns
from fedagg._rules.geometry import Cohort, check_cohort, closest, count, geometry
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks
from fedagg._trees.shares import Share, rule_of_shares
from fedagg._types import Output, PyTree, Rule, Update


@prints_as_its_call
def krum(f: int) -> Rule:
    """The value of the client that has the others nearest to it.

    A client's score is the sum of squares of its distances to the `n - f - 1` others
    nearest to it, of `n` that are present, as in the analysis of Allouah et al.; in
    Blanchard et al. it is one fewer. Of equal scores, the first client's counts.
    Weights have no part. A client with a NaN or an infinity in its value, or with a
    norm beyond 2e18, is taken as one of the `f`. Nobody present gives zeros.

    Args:
        f: how many clients may lie, fewer than half. Where fewer than that are present,
            it is lowered to what they can bear.

    Raises:
        ValueError: if `f` is not a whole number, or in `combine`, if that is half of
            the clients or more.
        TypeError: in `combine`, for a leaf that is not of a float dtype.

    Reference: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant
        Gradient Descent", 2017, section 4; Allouah et al., "Fixing by Mixing: A Recipe
        for Optimal Byzantine ML under Heterogeneity", 2023, appendix 8.1.
    """
    checks.check_whole(0, f=f)

    def combine(
        state: PyTree, updates: Update, key: jax.Array | None, share: Share
    ) -> Output:
        del key
        check_cohort(len(updates.weight), f, "krum")
        cohort = Cohort.of(updates, "krum", share)
        return Output(state, cohort.row(jnp.argsort(_scores(cohort, f))[0]), {})

    return rule_of_shares(lambda template: (), combine)


@prints_as_its_call
def multi_krum(f: int) -> Rule:
    """The mean of the `n - f` clients with the best scores of `krum`.

    What `krum` says of scores, weights, NaN and nobody present holds.

    Args:
        f: how many clients may lie, fewer than half. Where fewer than that are present,
            it is lowered to what they can bear.

    Raises:
        ValueError: if `f` is not a whole number, or in `combine`, if that is half of
            the clients or more.
        TypeError: in `combine`, for a leaf that is not of a float dtype.

    Reference: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant
        Gradient Descent", 2017, section 5.
    """
    checks.check_whole(0, f=f)

    def combine(
        state: PyTree, updates: Update, key: jax.Array | None, share: Share
    ) -> Output:
        del key
        check_cohort(len(updates.weight), f, "multi_krum")
        cohort = Cohort.of(updates, "multi_krum", share)
        best = closest(_scores(cohort, f), count(cohort.given) - cohort.liars(f))
        return Output(state, cohort.mean_of(best), {})

    return rule_of_shares(lambda template: (), combine)


@prints_as_its_call
def bulyan(f: int) -> Rule:
    """The mean around the median of clients that `krum` chooses, one after the other.

    Of `n` clients it chooses `n - 2f`, each by `krum` among those not yet chosen, and
    takes of every coordinate the mean of the `n - 4f` entries nearest to the median of
    these. What `krum` says of scores, weights, NaN and nobody present holds.

    Args:
        f: how many clients may lie, of at least `4f + 3`. Where fewer are present, it
            is lowered to what they can bear.

    Raises:
        ValueError: if `f` is not a whole number, or in `combine`, if there are fewer
            than `4f + 3` clients.
        TypeError: in `combine`, for a leaf that is not of a float dtype.

    Reference: El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in
        Byzantium", 2018, section 4.
    """
    checks.check_whole(0, f=f)

    def combine(
        state: PyTree, updates: Update, key: jax.Array | None, share: Share
    ) -> Output:
        del key
        n = len(updates.weight)
        # One row alone may stand for a round to which nobody came.
        if 1 < n < 4 * f + 3:
            raise ValueError(
                f"bulyan({f}) needs {4 * f + 3} clients or more, of whom {f} may lie; "
                f"got {n}."
            )
        cohort = Cohort.of(updates, "bulyan", share)
        most = jnp.maximum(count(cohort.given) - 3, 0) // 4
        liars = jnp.minimum(cohort.liars(f), most)
        chosen = _one_after_another(cohort, liars)

        def exactly(x: jax.Array, chosen: jax.Array, left_out: jax.Array) -> jax.Array:
            given = jnp.broadcast_to(chosen[:, None] > 0.0, x.shape)
            return ordering.mean_around_median_of(x, given, left_out)

        columns = in_columns(
            cohort.layout,
            cohort.matrices,
            (chosen.astype(jnp.float32), 2 * liars),
            exactly,
            selection.mean_of_nearest,
            functools.partial(network.mean_of_nearest, most=2 * f),
        )
        return Output(state, cohort.layout.tree(columns), {})

    return rule_of_shares(lambda template: (), combine)


def _scores(cohort: Cohort, f: int) -> jax.Array:
    """Means of squares of distances to the nearest others `[n]`, and to itself."""
    near = count(cohort.given) - cohort.liars(f)  # itself included, at distance zero
    squares = jnp.sort(geometry(cohort).squares, axis=1)
    is_near = (jnp.arange(len(squares), dtype=jnp.int32) < near)[None]
    # Divided before they are added, so that large distances do not overflow.
    parts = squares / jnp.maximum(near, 1).astype(squares.dtype)
    scores = jnp.sum(jnp.where(is_near, parts, 0.0), axis=1)
    return jnp.where(cohort.given, scores, jnp.inf)


def _one_after_another(cohort: Cohort, liars: jax.Array) -> jax.Array:
    """Who is chosen `[n]`, if each is the best of those that are left."""
    squares = geometry(cohort).squares
    order = jnp.argsort(squares, axis=1)
    squares = jnp.take_along_axis(squares, order, axis=1)
    number = count(cohort.given) - 2 * liars

    def choose(i: jax.Array, left: jax.Array) -> jax.Array:
        there = left[order]
        near = jnp.cumsum(there, axis=1, dtype=jnp.int32) <= count(left) - liars
        parts = squares / jnp.maximum(count(left), 1).astype(squares.dtype)
        scores = jnp.sum(jnp.where(there & near, parts, 0.0), axis=1)
        best = closest(jnp.where(left, scores, jnp.inf), jnp.int32(1))
        return left & (~best | (i >= number))

    left = jax.lax.fori_loop(
        jnp.int32(0), jnp.int32(len(squares)), choose, cohort.given
    )
    return cohort.given & ~left
