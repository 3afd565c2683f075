"""What brings clients closer to each other before a rule: a rule made of a rule."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedagg._rules.geometry import Cohort, check_cohort, closest, count, geometry
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree
from fedagg._trees.kinds import check_kind
from fedagg._trees.matrix import Layout
from fedagg._trees.reductions import added
from fedagg._trees.shares import Share, mixed_before
from fedagg._trees.weights import in_units, is_present
from fedagg._types import Output, PyTree, Rule, Update


@prints_as_its_call
def nearest_neighbor_mixing(f: int, rule: Rule) -> Rule:
    """A rule of clients of which each is the mean of the `n - f` nearest to it.

    With it, `krum`, `median` and others are optimal where clients differ. A client is
    one of those nearest to itself, and of equally near ones the first count. It keeps
    its weight, which has no part in the means. A client with a NaN or an infinity in
    its value, or with a norm beyond 2e18, is taken as one of the `f`, and is absent for
    the rule.

    Args:
        f: how many clients may lie, fewer than half. Where fewer than that are present,
            it is lowered to what they can bear.
        rule: combines the means.

    Raises:
        ValueError: if `f` is not a whole number, or in `combine`, if that is half of
            the clients or more.
        TypeError: if `rule` is of another type; in `combine`, for a leaf that is not of
            a float dtype.

    Reference: Allouah et al., "Fixing by Mixing: A Recipe for Optimal Byzantine ML
        under Heterogeneity", 2023, algorithm 2.
    """
    checks.check_whole(0, f=f)
    check_kind(Rule, rule=rule)

    def mix(updates: Update, key: jax.Array | None, share: Share):
        check_cohort(len(updates.weight), f, "nearest_neighbor_mixing")
        cohort = Cohort.of(updates, "nearest_neighbor_mixing", share)
        number = count(cohort.given) - cohort.liars(f)
        near = closest(geometry(cohort).squares, number) & cohort.given[None]
        parts = near.astype(cohort.norms.dtype)
        parts /= jnp.maximum(number, 1).astype(parts.dtype)
        weight = jnp.where(cohort.given, updates.weight, 0.0)
        return Update(cohort.combined(parts), weight), key

    return mixed_before(rule, mix)


@prints_as_its_call
def bucketing(size: int, rule: Rule) -> Rule:
    """A rule of means over buckets of `size` clients, put together by chance.

    Means differ less than clients do. A client that lies spoils one bucket, so that
    `rule` needs to bear as many liars as before, among fewer. The present clients are
    dealt to the buckets; the last one may have fewer, and one without any is absent.
    Every client counts the same in a mean, whatever its weight, and the bucket's weight
    is the sum of its clients'. NaN and infinity are left to `rule`.

    Args:
        size: clients in a bucket. One changes nothing but the order.
        rule: combines the means.

    Raises:
        ValueError: if `size` is not a positive integer; in `next`, without a key.
        TypeError: if `rule` is of another type; in `combine`, for a leaf that is not of
            a float dtype.

    Reference: Karimireddy et al., "Byzantine-Robust Learning on Heterogeneous Datasets
        via Bucketing", 2022, algorithm 1.
    """
    checks.check_whole(1, size=size)
    check_kind(Rule, rule=rule)

    def mix(updates: Update, key: jax.Array | None, share: Share):
        del share
        checks.check_floating(updates.value, "bucketing")
        key = checks.check_key(key, "bucketing", "buckets")
        deal_key, rule_key = jax.random.split(key)
        n = len(updates.weight)
        buckets = -(-n // size)
        present = is_present(updates.weight)
        places = _dealt(deal_key, present)
        filled = jnp.arange(buckets * size, dtype=jnp.int32).reshape(
            buckets, size
        ) < count(present)
        number = jnp.maximum(jnp.sum(filled, axis=1, dtype=jnp.int32), 1)
        places = jnp.pad(places, (0, buckets * size - n)).reshape(buckets, size)

        def means(x: jax.Array) -> jax.Array:
            # Of one client of each bucket after the other: nothing is put in order.
            rows = [pytree.wide(x[places[:, i]]) for i in range(size)]
            share = number[:, None].astype(rows[0].dtype)
            return added(
                [
                    jnp.where(filled[:, i, None], row / share, 0.0)
                    for i, row in enumerate(rows)
                ]
            )

        layout = Layout.of(updates.value)
        columns = [means(x) for x in layout.matrices(updates.value)]
        weight = in_units(updates.weight)[places]
        weight = jnp.sum(jnp.where(filled, weight, 0.0), axis=1)
        return Update(layout.tree(columns), weight), rule_key

    return mixed_before(_of_buckets(size, rule), mix)


@prints_as_its_call
def adaptive_robust_clipping(f: int, rule: Rule) -> Rule:
    """A rule of clients whose longest `2 f (n - f) / n` are clipped to the next norm.

    How many are clipped is rounded down. Weights have no part. A client with a NaN or
    an infinity in its value, or with a norm beyond 2e18, is longer than any other, and
    is left to `rule` as it is.

    Args:
        f: how many clients may lie, fewer than half. Where fewer than that are present,
            it is lowered to what they can bear.
        rule: combines what is clipped.

    Raises:
        ValueError: if `f` is not a whole number, or in `combine`, if that is half of
            the clients or more.
        TypeError: if `rule` is of another type; in `combine`, for a leaf that is not of
            a float dtype.

    Reference: Allouah et al., "Adaptive Gradient Clipping for Robust Federated
        Learning", 2025, algorithm 2.
    """
    checks.check_whole(0, f=f)
    check_kind(Rule, rule=rule)

    def mix(updates: Update, key: jax.Array | None, share: Share):
        check_cohort(len(updates.weight), f, "adaptive_robust_clipping")
        cohort = Cohort.of(updates, "adaptive_robust_clipping", share)
        number = jnp.maximum(count(cohort.present), 1)
        liars = jnp.minimum(f, (number - 1) // 2)
        clipped = 2 * liars * (number - liars) // number
        bound = jnp.sort(cohort.norms)[number - clipped - 1]
        # Infinite where more clients have no norm than are clipped.
        is_long = cohort.given & (cohort.norms > bound)
        factors = bound / jnp.where(is_long, cohort.norms, 1.0)
        factors = jnp.where(is_long, factors, 1.0)

        value = jax.vmap(pytree.scale)(factors, updates.value)
        return updates._replace(value=value), key

    return mixed_before(rule, mix)


def _of_buckets(size: int, rule: Rule) -> Rule:
    """The rule, whose errors say that what it counts are buckets."""

    def of(combine: Callable[..., Output]) -> Callable[..., Output]:
        def of_buckets(state: PyTree, updates: Update, *more: Any) -> Output:
            try:
                return combine(state, updates, *more)
            except ValueError as error:
                raise ValueError(
                    f"{error} These are the buckets of bucketing({size}, {rule})."
                ) from None

        return of_buckets

    of_share = rule.combine_share
    return rule._replace(
        combine=of(rule.combine),
        combine_share=None if of_share is None else of(of_share),
    )


def _dealt(key: jax.Array, present: jax.Array) -> jax.Array:
    """A random order of clients, those present first `[n]`.

    The draw of a client goes by its place among those present, so that absent ones
    change nothing.
    """
    each = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), (), "uint32"))
    draws = each(jnp.cumsum(present, dtype=jnp.uint32))
    return jnp.lexsort((draws, ~present))
