"""Tree aggregation: the noise of prefix sums, read off the nodes of a binary tree.

Leaf `t` of the tree is round `t`, and a node on level `j` has the noise of the sum of
the `2**j` rounds below it. The sum of all rounds so far is covered by the roots of
complete subtrees, one for each one in the binary number of rounds: rounds 1 to 6 by a
node over 1 to 4 and one over 5 and 6. A round's own noise is the difference to the
prefix before. All of it is integers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._mechanism import Mechanism
from fedagg._messages.marks import NoisedModulo
from fedagg._noise.sum_grid import (
    SumGrid,
    accounted,
    draw_error,
    integer_noise,
    no_noise,
    noised,
)
from fedagg._privacy.noise_source import NoiseSource
from fedagg._privacy.restarts import Restarts
from fedagg._trees import pytree, rowwise
from fedagg._trees.loops import in_steps
from fedagg._types import PyTree


class NoiseTree(NamedTuple):
    """The noise of the last complete node of each level, in steps."""

    leaves: jax.Array  # [] uint32, rounds since the tree was begun
    nodes: PyTree  # [levels, ...] int32


class TreeState(NamedTuple):
    """A tree, and when the next begins."""

    rounds: jax.Array  # [] uint32, modulo the period of restarts
    tree: NoiseTree


def binary_tree_noise(restarts: Restarts, *, efficient: bool = True) -> NoiseSource:
    """Noise that adds up, over the rounds of a tree, to that of a few nodes.

    Args:
        restarts: when a tree ends and another begins.
        efficient: whether a node is averaged with its children, by Honaker.

    Reference: Kairouz et al., "Practical and Private (Deep) Learning without Sampling
        or Shuffling", 2021, section 3 and appendix B.
    """

    def init(template: PyTree) -> TreeState:
        return TreeState(jnp.uint32(0), empty_tree(template, restarts.period))

    def add(state: TreeState, total: NoisedModulo, grid: SumGrid, key: jax.Array):
        tree, noise, deviation = add_leaf(
            state.tree, key, restarts.period, grid.deviation, efficient
        )
        rounds, is_due = restarts.after(state.rounds)
        # A tree of zeros is one without leaves.
        state = TreeState(rounds, pytree.keep(~is_due, tree))
        return state, noised(total, noise), deviation

    def mechanism(noise_multiplier: float, grids: tuple[SumGrid, ...]) -> Mechanism:
        del noise_multiplier
        return Mechanism.tree(accounted(grids), restarts.period)

    # Of so many leaves there are less than twice as many nodes.
    nodes = 2.0 if efficient else 1.0
    return NoiseSource(
        init,
        add,
        mechanism,
        draw_error=lambda grid: nodes * draw_error(grid.deviation),
    )


def empty_tree(template: PyTree, rounds: int) -> NoiseTree:
    """A tree without leaves, with levels for so many."""
    zeros = no_noise(template)
    return NoiseTree(jnp.uint32(0), rowwise.repeat(zeros, rounds.bit_length()))


def add_leaf(
    tree: NoiseTree, key: jax.Array, rounds: int, stddev: float, efficient: bool
) -> tuple[NoiseTree, PyTree, jax.Array]:
    """The tree with another leaf, this round's noise, and its deviation over `stddev`.

    There are levels for `rounds` leaves, as `empty_tree` made them.

    The leaf with binary number `x01...1` (from zero, with `top` trailing ones)
    completes a node on each level up to `top`. Prefixes read roots of complete subtrees
    only, hence of these nodes the one on level `top`, whose left descendants are the
    stored nodes of the levels below. A node's sum `n` is released as `n + z`, where `z`
    is a draw. With `efficient` it is read as what it improves its children by,
    `children + round(a * (n + z - children))` on level `j`, where `a = 1 / (2 - 2**-j)`
    makes the variance the least; in the noise, of which `n` is no part,
    `children + round(a * (z - children))`. How the product is rounded is nobody's
    secret, so that floats will do. Without it, nodes below the top are never read.

    Reference: Honaker, "Efficient Use of Differentially Private Binary Trees", 2015,
        section 3.3.
    """
    levels = rounds.bit_length()
    top = jax.lax.population_count(tree.leaves ^ (tree.leaves + 1)).astype(int) - 1
    variance = jnp.ones(levels)
    if efficient:
        variance = 1.0 / (2.0 - 0.5 ** jnp.arange(levels, dtype=jnp.float32))
    row = rowwise.abstract_row(tree.nodes)

    def drawn(level: jax.Array) -> PyTree:
        if stddev == 0.0:
            return pytree.zeros(row)
        own_key = jax.random.fold_in(key, level.astype(jnp.uint32))
        return integer_noise(stddev, own_key, row)

    def parent(level: jax.Array, below: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        """Of a right node and the left ones before, those a level further up."""
        right, before = below
        level = in_steps(level)
        sibling = rowwise.take(tree.nodes, level - 1)
        before = pytree.add(before, sibling)
        if not efficient:
            return right, before
        children = pytree.add(right, sibling)
        apart = pytree.subtract(drawn(level), children)
        part = pytree.scale(variance[level], jax.tree.map(_as_float, apart))
        return pytree.add(children, jax.tree.map(_as_whole, part)), before

    first = drawn(jnp.int32(0) if efficient else top), pytree.zeros(row)
    node, before = jax.lax.fori_loop(1, top + 1, parent, first)
    noise = pytree.subtract(node, before)
    deviation = jnp.sqrt(_variance(top, variance, efficient))
    nodes = jax.tree.map(lambda x, new: x.at[top].set(new), tree.nodes, node)
    return NoiseTree(tree.leaves + 1, nodes), noise, deviation


def _as_float(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _as_whole(x: jax.Array) -> jax.Array:
    return jnp.round(x).astype(jnp.int32)


def _variance(top: jax.Array, variance: jax.Array, efficient: bool) -> jax.Array:
    """Of a node less the left siblings on its way up, of draws with a variance of one.

    With `efficient` the node is `a` times a sum of draws, each half as much as those
    above it, and of the siblings. The draws add up to `1 + 1/4 + ... + 4**-top`.
    """
    level = jnp.arange(len(variance))
    above = (top - level).astype(jnp.float32)
    if not efficient:
        return 1.0 + jnp.sum((above > 0.0).astype(jnp.float32))
    fresh = 4.0 / 3.0 * (1.0 - 0.25 ** (top + 1).astype(jnp.float32))
    change = variance[top] * 0.5**above / variance - 1.0
    siblings = jnp.where(above > 0.0, change**2 * variance, 0.0)
    return variance[top] ** 2 * fresh + jnp.sum(siblings)
