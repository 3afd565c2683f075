"""A binary tree of Gaussian noise over rounds, in buffers of a fixed size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._privacy.normal import normal
from fedagg._trees import pytree, rowwise
from fedagg._types import PyTree


class NoiseTree(NamedTuple):
    """The nodes that later rounds still read, of noise with a deviation of one."""

    leaves: jax.Array  # [] uint32, rounds since the tree was begun
    nodes: PyTree  # [depth, ...], one node a level


def planted(template: PyTree, rounds: int) -> NoiseTree:
    """A tree without leaves, which has room for so many."""
    zeros = pytree.widen(pytree.zeros(template))
    return NoiseTree(jnp.uint32(0), rowwise.repeat(zeros, rounds.bit_length()))


def restarted(tree: NoiseTree, due: jax.Array) -> NoiseTree:
    """A tree without leaves where it is due, else the same."""
    return pytree.keep(~due, tree)


def grown(
    tree: NoiseTree, key: jax.Array, rounds: int, efficient: bool
) -> tuple[NoiseTree, PyTree, jax.Array]:
    """The tree with another leaf, the change in the noise of its sum, its deviation.

    There is room for `rounds` leaves, as `planted` made it.

    A leaf completes as many parents as its number has ones at the end, and later rounds
    read the topmost of them only. So that is all that is drawn: `N(0, 1)`; or with
    `efficient` the average of children `(left + right) / 2` plus `N(0, 1)`, level after
    level, in which the fresh parts add up to a variance of `1 + 1/4 + ... + 4**-top`.
    To read a node on level `j` is then to divide it by its variance, `2 - 2**-j`.

    Reference: Honaker, "Efficient Use of Differentially Private Binary Trees", 2015,
        section 3.3.
    """
    depth = rounds.bit_length()
    top = jax.lax.population_count(tree.leaves ^ (tree.leaves + 1)).astype(int) - 1
    level = jnp.arange(depth)
    left = (level < top).astype(jnp.float32)  # nodes whose right sibling is complete
    if efficient:
        variance = 2.0 - 0.5 ** level.astype(jnp.float32)
        fresh = jnp.sqrt(4.0 / 3.0 * (1.0 - 0.25 ** (top + 1).astype(jnp.float32)))
        merged = left * 0.5 ** (top - level).astype(jnp.float32)
    else:
        variance, fresh, merged = jnp.ones(depth), jnp.float32(1.0), jnp.zeros(depth)
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
