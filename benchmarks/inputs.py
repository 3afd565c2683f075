"""What the clients sent: the same random numbers, as trees of three kinds."""

import itertools
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


def make_update(client: jax.Array, parameters: int) -> jax.Array:
    """A client's random normal update as `[d]` float32.

    Norms are near 0.5, 0.8, 1.25 and 2, so that a bound of 1 clips half of the clients.
    One client in 16 has an entry of 100, which zeroing takes out.
    """
    key = jax.random.fold_in(jax.random.key(0), client)
    norm = jnp.array([0.5, 0.8, 1.25, 2.0])[client % 4]
    x = jax.random.normal(key, (parameters,), jnp.float32)
    x = x * (norm / math.sqrt(parameters))
    middle = parameters // 2
    return x.at[middle].set(jnp.where(client % 16 == 0, 100.0, x[middle]))


def make_stack(size: Size) -> jax.Array:
    """All updates as one array `[n, d]` float32."""
    make = jax.vmap(lambda client: make_update(client, size.parameters))
    return jax.jit(make)(jnp.arange(size.clients, dtype=jnp.int32))


def make_tree(size: Size, leaves: int, dtype: jax.typing.DTypeLike) -> PyTree:
    """All updates as a tree, made one by one: nothing else of their size is held."""

    def one(client: jax.Array) -> PyTree:
        return _cut_traced(make_update(client, size.parameters).astype(dtype), leaves)

    clients = jnp.arange(size.clients, dtype=jnp.int32)
    return jax.jit(lambda clients: jax.lax.map(one, clients))(clients)


def make_weights(size: Size) -> jax.Array:
    """Whole numbers from 1 to 7, `[n]` float32."""
    return 1.0 + jnp.arange(size.clients, dtype=jnp.float32) % 7


def as_tree(stack: jax.Array, leaves: int) -> PyTree:
    """The columns of a stack cut into `leaves` leaves `[n, ...]`, each its own copy."""
    return jax.jit(jax.vmap(lambda row: _cut_traced(row, leaves)))(stack)


def cut(row: Any, leaves: int) -> PyTree:
    """One client's parameters `[d]`, of NumPy or JAX, as a tree of `leaves` leaves."""
    return {
        name: row[start : start + math.prod(shape)].reshape(shape)
        for name, (start, shape) in _places(len(row), leaves).items()
    }


def _cut_traced(row: jax.Array, leaves: int) -> PyTree:
    """The same, quicker to compile: of unknown starts, slices of a size are alike."""
    names, places = zip(*_places(len(row), leaves).items(), strict=True)
    starts, shapes = zip(*places, strict=True)
    starts = jax.lax.optimization_barrier([jnp.int32(start) for start in starts])
    slices = [
        jax.lax.dynamic_slice(row, (start,), (math.prod(shape),)).reshape(shape)
        for start, shape in zip(starts, shapes, strict=True)
    ]
    return dict(zip(names, slices, strict=True))


def ends(parameters: int, leaves: int) -> list[int]:
    """Per leaf the column after its last."""
    return [start + math.prod(x) for start, x in _places(parameters, leaves).values()]


def _places(parameters: int, leaves: int) -> dict[str, tuple[int, Shape]]:
    """Per leaf where it starts, and its shape."""
    shapes = TREES[leaves](parameters)
    ends = list(itertools.accumulate(map(math.prod, shapes)))
    assert len(shapes) == leaves and ends[-1] == parameters
    return {
        f"leaf{i:03}": (end - math.prod(shape), shape)
        for i, (end, shape) in enumerate(zip(ends, shapes, strict=True))
    }


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
