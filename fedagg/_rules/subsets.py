"""Rules that try every subset of clients that may be the honest ones, and are exact."""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._rules.geometry import (
    Cohort,
    Geometry,
    both,
    check_cohort,
    count,
    geometry,
)
from fedagg._rules.spectrum import largest_eigenpair
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks
from fedagg._trees.shares import Share, rule_of_shares
from fedagg._types import Output, PyTree, Rule, Update

_MOST = 200_000  # subsets
_TOGETHER = 2**18  # entries of Gram matrices that are looked at together


@prints_as_its_call
def minimum_diameter(f: int) -> Rule:
    """The mean of those `n - f` clients whose largest distance is the smallest.

    Every subset is tried, so that the cohort is bounded: by 200,000 ways to leave out
    `f` clients or fewer. Of those with the same diameter, which are common, the first
    counts, which has the first clients. Weights have no part. A client with a NaN or an
    infinity in its value, or with a norm beyond 2e18, is taken as one of the `f`.
    Nobody present gives zeros.

    Args:
        f: how many clients may lie, fewer than half. Where fewer than that are present,
            it is lowered to what they can bear.

    Raises:
        ValueError: if `f` is not a whole number, or in `combine`, if that is half of
            the clients or more, or there are too many subsets.
        TypeError: in `combine`, for a leaf that is not of a float dtype.

    Reference: El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in
        Byzantium", 2018, appendix; Rousseeuw, "Multivariate Estimation with High
        Breakdown Point", 1985.
    """

    def size(found: Geometry, kept: jax.Array) -> jax.Array:
        return jnp.max(jnp.where(both(kept), found.squares, 0.0))

    return _best_subset("minimum_diameter", f, size)


@prints_as_its_call
def smea(f: int) -> Rule:
    """The mean of those `n - f` clients whose covariance has the smallest norm.

    That is the smallest maximum eigenvalue averaging: the norm is the largest
    eigenvalue of the covariance. What `minimum_diameter` says of subsets, weights, NaN
    and nobody present holds.

    Args:
        f: how many clients may lie, fewer than half. Where fewer than that are present,
            it is lowered to what they can bear.

    Raises:
        ValueError: if `f` is not a whole number, or in `combine`, if that is half of
            the clients or more, or there are too many subsets.
        TypeError: in `combine`, for a leaf that is not of a float dtype.

    Reference: Allouah et al., "On the Privacy-Robustness-Utility Trilemma in
        Distributed Learning", 2023, section 4.
    """

    def size(found: Geometry, kept: jax.Array) -> jax.Array:
        # Beside zero, a covariance has the eigenvalues of its Gram matrix.
        part = kept.astype(found.gram.dtype)
        part = part / jnp.sum(part)  # never of nobody: some are always kept
        inner = jnp.where(both(kept), found.gram, 0.0)
        to_mean = jnp.matmul(inner, part, precision="highest")
        moved = inner - to_mean[:, None] - to_mean[None] + jnp.sum(part * to_mean)
        moved = jnp.where(both(kept), moved, 0.0)
        return largest_eigenpair(moved)[0]

    return _best_subset("smea", f, size)


def _best_subset(
    name: str,
    f: int,
    size: Callable[[Geometry, jax.Array], jax.Array],
) -> Rule:
    """The mean of the subset with the smallest size, the first of equals."""
    checks.check_whole(0, f=f)

    def combine(
        state: PyTree, updates: Update, key: jax.Array | None, share: Share
    ) -> Output:
        del key
        n = len(updates.weight)
        check_cohort(n, f, name)
        left_out = jnp.asarray(_left_out(n, f, name))  # [s, n]
        cohort = Cohort.of(updates, name, share)
        # Those given come first, and all but the last `f` subsets' are of them.
        order = jnp.argsort(~cohort.given)
        rank, number = jnp.argsort(order), count(cohort.given)
        found, liars = geometry(cohort), cohort.liars(f)

        def size_without(out: jax.Array) -> jax.Array:
            out = out[rank]
            fits = (count(out) == liars) & ~jnp.any(out & ~cohort.given)
            of_kept = size(found, cohort.given & ~out | (number == 0))
            return jnp.where(fits, of_kept, jnp.inf)

        together = max(_TOGETHER // n**2, 1)
        sizes = jax.lax.map(size_without, left_out, batch_size=together)
        best = left_out[jnp.argmin(sizes)][rank]
        return Output(state, cohort.mean_of(~best), {})

    return rule_of_shares(lambda template: (), combine)


def _left_out(n: int, f: int, name: str) -> np.ndarray:
    """All ways to leave out up to `f` of `n`, as rows of flags.

    Of ways to leave out as many, that comes first which keeps the first clients.
    """
    f = min(f, (n - 1) // 2)
    subsets = sum(math.comb(n, k) for k in range(f + 1))
    if subsets > _MOST:
        raise ValueError(
            f"{name}({f}) tries every subset of clients: of {n} there are {subsets:,}, "
            f"and at most {_MOST:,} are tried. Take smaller cohorts, or another rule."
        )
    out = np.ones((subsets, n), bool)
    kept = itertools.chain.from_iterable(
        itertools.combinations(range(n), n - k) for k in range(f + 1)
    )
    for row, places in zip(out, kept, strict=True):
        row[list(places)] = False
    return out
