"""What the clients sent: the same random numbers, as trees of three kinds."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any
Shape = tuple[int, ...]


class Size(NamedTuple):
    clients: int
    parameters: int

    def __str__(self) -> str:
        return f"{self.clients} x {self.parameters:,}"


def make_stack(size: Size) -> jax.Array:
    """Random normal updates as one array `[n, d]` float32.

    Norms are near 0.5, 0.8, 1.25 and 2, so that a bound of 1 clips half of the clients.
    One client in 16 has an entry of 100, which zeroing takes out.
    """
    n, d = size

    @jax.jit
    def make() -> jax.Array:
        x = jax.random.normal(jax.random.key(0), (n, d), jnp.float32)
        norms = jnp.tile(jnp.array([0.5, 0.8, 1.25, 2.0]), -(-n // 4))[:n]
        x = x * (norms / math.sqrt(d))[:, None]
        return x.at[::16, d // 2].set(100.0)

    return make()


def make_weights(size: Size) -> jax.Array:
    """Whole numbers from 1 to 7, `[n]` float32."""
    return 1.0 + jnp.arange(size.clients, dtype=jnp.float32) % 7


def as_tree(stack: jax.Array, leaves: int) -> PyTree:
    """The columns of a stack cut into `leaves` leaves `[n, ...]`, each its own copy."""
    n, d = stack.shape
    shapes = TREES[leaves](d)
    assert len(shapes) == leaves and sum(map(math.prod, shapes)) == d

    @jax.jit
    def cut(stack: jax.Array) -> PyTree:
        tree, start = {}, 0
        for i, shape in enumerate(shapes):
            end = start + math.prod(shape)
            tree[f"leaf{i:03}"] = stack[:, start:end].reshape(n, *shape)
            start = end
        return tree

    return cut(stack)


def as_vector(tree: PyTree) -> jax.Array:
    """One client's tree as `[d]`, in the order of the stack's columns."""
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])


def _vector(d: int) -> list[Shape]:
    return [(d,)]


def _small_cnn(d: int) -> list[Shape]:
    """A convolution and two dense layers; the first of these has most parameters."""
    convolution: list[Shape] = [(3, 3, 8, 16), (16,)]
    head: list[Shape] = [(64, 10), (10,)]
    left = d - sum(map(math.prod, convolution + head))
    features = (left - 64) // 64
    return [*convolution, (features, 64), (left - features * 64,), *head]


def _transformer(d: int) -> list[Shape]:
    """Twelve blocks of twelve leaves with six tenths of `d`, and an embedding."""
    width = 2
    while 12 * _block_size(width + 2) <= 0.6 * d:
        width += 2
    outside: list[Shape] = [(8, width), (width,), (width,), (width, 10)]
    left = d - 12 * _block_size(width) - sum(map(math.prod, outside))
    symbols = (left - 1) // width
    embedding, bias = (symbols, width), (left - symbols * width,)
    return [embedding, *12 * _block(width), *outside, bias]


def _block(width: int) -> list[Shape]:
    heads, hidden = 2, 4 * width
    attention = [*3 * [(width, heads, width // heads)], (heads, width // heads, width)]
    dense = [(width, hidden), (hidden,), (hidden, width), (width,)]
    return [*attention, *dense, *4 * [(width,)]]


def _block_size(width: int) -> int:
    return sum(map(math.prod, _block(width)))


TREES: dict[int, Callable[[int], list[Shape]]] = {
    1: _vector,
    6: _small_cnn,
    150: _transformer,
}
