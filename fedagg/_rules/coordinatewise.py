"""Rules that look at each coordinate apart: order statistics over clients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedagg._rules import network, ordering, selection
from fedagg._rules.geometry import check_cohort, liars_left
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks
from fedagg._trees.blocks import over_blocks
from fedagg._trees.matrix import Layout
from fedagg._trees.shares import Share, rule_of_shares
from fedagg._trees.weights import is_present
from fedagg._types import Output, PyTree, Rule, Update

# `(x, given, liars, weight)`, of `[n, k]`, `[n, k]`, `[k]` and `[n]`, to `[k]`.
_OfColumns = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]

# `(x, weight, f)`, of `[n, k]` and `[n]`, to `[k]`: the same without a sort.
_Quick = Callable[[jax.Array, jax.Array, int], jax.Array]

# Of `[n, k]`, and what else it needs, to `[k]`.
_OfBlock = Callable[..., jax.Array]


@prints_as_its_call
def median(*, weighted: bool = False) -> Rule:
    """The median over clients of each coordinate apart.

    An entry that is NaN or infinite is taken as not given; an even number of entries
    gives the mean of the two in the middle; no entry at all gives zero. As long as
    fewer than half of the clients, or of the weight, send anything they like, each
    coordinate stays in the range of the others'.

    Args:
        weighted: whether half of the clients' weight, and not of their number, is on
            either side. Weights count to a part in 2**29 of their sum, and sums of
            whole numbers up to that are exact. A liar may lie about its weight too.

    Raises:
        TypeError: in `combine`, for a leaf that is not of a float dtype.

    Reference: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal
        Statistical Rates", 2018, definition 1.
    """

    def of_columns(x: jax.Array, given: jax.Array, liars: jax.Array, weight: jax.Array):
        del liars
        if weighted:
            return ordering.weighted_median_of(x, given, weight)
        return ordering.median_of(x, given)

    if weighted:
        return _coordinatewise("median", 0, of_columns, selection.weighted_median)
    return _coordinatewise("median", 0, of_columns, selection.median, network.median)


@prints_as_its_call
def trimmed_mean(f: int, *, weighted: bool = False) -> Rule:
    """The mean of each coordinate without its `f` largest and `f` smallest entries.

    | | the answer |
    | --- | --- |
    | an entry is NaN or infinite | it is left out, as one of the `f` |
    | 2 `f` entries, or fewer | as many are trimmed as leave one or two: the median |
    | no entry | zero |

    Args:
        f: how many clients may lie, fewer than half.
        weighted: whether those that are kept count by their clients' weights. Each
            client is one of those trimmed, whatever its weight. Of entries that are
            equal and not all kept, each counts for a part. A liar may lie about its
            weight too.

    Raises:
        ValueError: if `f` is not a whole number, or in `combine`, if that is half of
            the clients or more.
        TypeError: in `combine`, for a leaf that is not of a float dtype.

    Reference: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal
        Statistical Rates", 2018, definition 2.
    """

    def of_columns(x: jax.Array, given: jax.Array, liars: jax.Array, weight: jax.Array):
        if weighted:
            return ordering.weighted_trimmed_mean_of(x, given, liars, weight)
        return ordering.trimmed_mean_of(x, given, liars)

    name = "trimmed_mean"
    if weighted:
        many = selection.weighted_trimmed_mean
        return _coordinatewise(name, f, of_columns, many)
    few, many = network.trimmed_mean, selection.trimmed_mean
    return _coordinatewise(name, f, of_columns, many, few)


@prints_as_its_call
def mean_around_median(f: int) -> Rule:
    """The mean of each coordinate without the `f` entries farthest from its median.

    Every present client counts the same, whatever its weight. Where entries are equally
    far from the median and not all are to be kept, each counts for a part. An entry
    that is NaN or infinite is left out, as one of the `f`; no entry at all gives zero.

    Args:
        f: how many clients may lie, fewer than half. Where fewer than that are present,
            it is lowered to what they can bear.

    Raises:
        ValueError: if `f` is not a whole number, or in `combine`, if that is half of
            the clients or more.
        TypeError: in `combine`, for a leaf that is not of a float dtype.

    Reference: Xie et al., "Generalized Byzantine-tolerant SGD", 2018, section 4.3.
    """

    def of_columns(x: jax.Array, given: jax.Array, liars: jax.Array, weight: jax.Array):
        del weight
        return ordering.mean_around_median_of(x, given, liars)

    few, many = network.mean_around_median, selection.mean_around_median
    return _coordinatewise("mean_around_median", f, of_columns, many, few)


def _coordinatewise(
    name: str,
    f: int,
    of_columns: _OfColumns,
    many: _Quick,
    few: _Quick | None = None,
) -> Rule:
    """A rule by a quick way for many clients, and for few by another or the same."""
    checks.check_whole(0, f=f)

    def combine(
        state: PyTree, updates: Update, key: jax.Array | None, share: Share
    ) -> Output:
        del key, share  # each coordinate is apart
        checks.check_floating(updates.value, name)
        n = len(updates.weight)
        check_cohort(n, f, name)

        def exactly(x: jax.Array, weight: jax.Array) -> jax.Array:
            present = is_present(weight)
            given = present[:, None] & jnp.isfinite(x)
            number = jnp.sum(given, axis=0, dtype=jnp.int32)
            found = jnp.sum(present, dtype=jnp.int32) - number
            return of_columns(x, given, liars_left(f, number, found), weight)

        layout = Layout.of(updates.value)
        columns = in_columns(
            layout,
            layout.matrices(updates.value),
            (updates.weight,),
            exactly,
            lambda x, weight: many(x, weight, f),
            few and (lambda x, weight: few(x, weight, f)),
        )
        return Output(state, layout.tree(columns), {})

    return rule_of_shares(lambda template: (), combine)


def in_columns(
    layout: Layout,
    matrices: list[jax.Array],
    operands: tuple[jax.Array, ...],
    exactly: _OfBlock,
    many: _OfBlock,
    few: _OfBlock | None = None,
) -> list[jax.Array]:
    """What the quickest way makes of each column `[n]` and the operands: `[k]` each.

    Derivatives are those of `exactly`, which is also what runs where neither of the
    others is quicker.
    """
    n = len(matrices[0])
    by_network = few if n <= network.MOST else None

    def in_blocks(of_block: _OfBlock, matrices: list, operands: tuple) -> list:
        if of_block is by_network and len(layout.shapes) == 1:
            return [of_block(matrices[0], *operands)]  # read once, whole
        return over_blocks(
            lambda x: of_block(x, *operands), matrices, apart=len(layout.shapes) > 1
        )

    def counted(x: jax.Array, *operands: jax.Array) -> jax.Array:
        # Written to a cache, instead of read anew from the whole matrix.
        x = jax.lax.optimization_barrier(x)
        return (many if x.dtype.itemsize <= 4 else exactly)(x, *operands)

    def on_cpu(matrices: list, operands: tuple) -> list:
        return in_blocks(by_network or counted, matrices, operands)

    def elsewhere(matrices: list, operands: tuple) -> list:
        quick = by_network if n <= network.MOST_ELSEWHERE else None
        return in_blocks(quick or exactly, matrices, operands)

    @jax.custom_jvp
    def run(matrices: list, operands: tuple) -> list:
        return jax.lax.platform_dependent(
            matrices, operands, cpu=on_cpu, default=elsewhere
        )

    @run.defjvp
    def derivative(primals: tuple, tangents: tuple) -> tuple[list, list]:
        def by_sorting(matrices: list, operands: tuple) -> list:
            return over_blocks(lambda x: exactly(x, *operands), matrices)

        return jax.jvp(by_sorting, primals, tangents)

    return run(matrices, operands)
