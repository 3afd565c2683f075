"""Tree aggregation: the noise of prefix sums, read off the nodes of a binary tree.

Leaf `t` of the tree is round `t`, and a node on level `j` has the noise of the sum of
the `2**j` rounds below it. The sum of all rounds so far is covered by the roots of
complete subtrees, one for each one in the binary number of rounds: rounds 1 to 6 by a
node over 1 to 4 and one over 5 and 6. A round's own noise is the difference to the
prefix before.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._mechanism import Mechanism
from fedagg._messages.marks import NoisedModulo
from fedagg._privacy.noise_source import NoiseSource
from fedagg._privacy.normal import normal
from fedagg._privacy.restarts import Restarts
from fedagg._privacy.sum_grid import SumGrid, noised, rounded
from fedagg._trees import pytree, rowwise
from fedagg._types import PyTree


class NoiseTree(NamedTuple):
    """The last complete node of each level, with noise of a deviation of one."""

    leaves: jax.Array  # [] uint32, rounds since the tree was begun
    nodes: PyTree  # [levels, ...]


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
        tree, noise, deviation = add_leaf(state.tree, key, restarts.period, efficient)
        rounds, is_due = restarts.after(state.rounds)
        # A tree of zeros is one without leaves.
        state = TreeState(rounds, pytree.keep(~is_due, tree))
        return state, noised(total, rounded(noise, grid.deviation)), deviation

    return NoiseSource(init, add, lambda z, grids: Mechanism.tree(z, restarts.period))


def empty_tree(template: PyTree, rounds: int) -> NoiseTree:
    """A tree without leaves, with levels for so many."""
    zeros = pytree.widen(pytree.zeros(template))
    return NoiseTree(jnp.uint32(0), rowwise.repeat(zeros, rounds.bit_length()))


def add_leaf(
    tree: NoiseTree, key: jax.Array, rounds: int, efficient: bool
) -> tuple[NoiseTree, PyTree, jax.Array]:
    """The tree with another leaf, this round's noise, and its deviation.

    There are levels for `rounds` leaves, as `empty_tree` made them.

    The leaf with binary number `x01...1` (from zero, with `top` trailing ones)
    completes a node on each level up to `top`. Prefixes read roots of complete subtrees
    only, hence of these nodes the one on level `top`, whose left descendants are the
    stored nodes of the levels below. So that is all that is drawn: `N(0, 1)`; or with
    `efficient` the average of children `(left + right) / 2` plus `N(0, 1)`, level after
    level, in which the fresh parts add up to a variance of `1 + 1/4 + ... + 4**-top`.
    To read a node on level `j` is then to divide it by its variance, `2 - 2**-j`.

    Reference: Honaker, "Efficient Use of Differentially Private Binary Trees", 2015,
        section 3.3.
    """
    levels = rounds.bit_length()
    top = jax.lax.population_count(tree.leaves ^ (tree.leaves + 1)).astype(int) - 1
    level = jnp.arange(levels)
    left = (level < top).astype(jnp.float32)  # nodes whose right sibling is complete
    if efficient:
        variance = 2.0 - 0.5 ** level.astype(jnp.float32)
        fresh = jnp.sqrt(4.0 / 3.0 * (1.0 - 0.25 ** (top + 1).astype(jnp.float32)))
        merged = left * 0.5 ** (top - level).astype(jnp.float32)
    else:
        variance, fresh, merged = jnp.ones(levels), jnp.float32(1.0), jnp.zeros(levels)
    read = 1.0 / variance

    change = read[top] * merged - left * read
    both = jnp.stack([merged, change])
    weighted = jax.tree.map(
        lambda x: jnp.tensordot(both.astype(x.dtype), x, axes=1, precision="highest"),
        tree.nodes,
    )
    drawn = pytree.scale(fresh, normal(key, rowwise.take(tree.nodes, top)))
    node = pytree.add(drawn, rowwise.take(weighted, jnp.int32(0)))
    noise = pytree.add(
        pytree.scale(read[top], drawn), rowwise.take(weighted, jnp.int32(1))
    )
    deviation = jnp.sqrt((read[top] * fresh) ** 2 + jnp.sum(change**2 * variance))
    nodes = jax.tree.map(lambda x, new: x.at[top].set(new), tree.nodes, node)
    return NoiseTree(tree.leaves + 1, nodes), noise, deviation
