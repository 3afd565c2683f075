"""Examples of many clients in one table, in which a client is two integers."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._trees import pytree, rowwise
from fedagg._trees.datasets import listed, sizes_of
from fedagg._types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ClientTable:
    """The examples of many clients, one after the other, and where each one's are.

    A cohort is `table[numbers]`: the same examples, with the places of these clients.
    In a round it stands for their data, wherever that is in the tree given to `next`,
    and a client's row is the table with its own place. So nothing is copied, whatever
    the sizes of clients, and a client costs what it has: `in_chunks(size)`
    puts clients of like size side by side, `across(mesh)` balances devices by their
    examples. One that is absent counts as one without examples. In a private round one
    whose number comes twice counts once, with its first row.

    `local_training` takes such a row in place of `(examples, mask)`, with the same
    draws and results. For work of your own, `padded()` is `(examples, mask)`, with the
    same shapes for every client.

    Attributes:
        examples: leaves `[total, ...]`. Each device has all of them.
        starts: `[n]` integers, the place of each client's first; of a row `[]`.
        sizes: `[n]` integers, how many each has, the weights to average with; of a row
            `[]`.
        largest: the most that a client of the whole table has.
    """

    examples: PyTree
    starts: Any
    sizes: Any
    largest: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, datasets: Sequence[PyTree], *, on_host: bool = False) -> "ClientTable":
        """The table of all clients' data sets.

        Args:
            datasets: for each of `n` clients a pytree of arrays `[m_i, ...]`, its
                examples. A client may have none.
            on_host: whether examples stay NumPy arrays, for data that do not fit the
                device, of which `gathered` copies a cohort's.

        Raises:
            ValueError: if there is no client, no example at all, clients' trees or the
                shapes of their examples differ, or leaves of a client disagree on the
                number of its examples.
            TypeError: if `datasets` is no sequence, or for leaves that are no numbers.
        """
        datasets = listed(datasets)
        sizes = sizes_of(datasets)
        examples = jax.tree.map(lambda *leaves: np.concatenate(leaves), *datasets)
        starts = np.cumsum(sizes) - sizes
        if not on_host:
            examples = jax.tree.map(jnp.asarray, examples)
        return cls(
            examples, starts.astype(np.int32), sizes.astype(np.int32), int(sizes.max())
        )

    def __len__(self) -> int:
        """The number of clients."""
        return len(self.starts)

    def __getitem__(self, numbers: Any) -> "ClientTable":
        """Some of the clients, or one of them: the same examples, and fewer places.

        Raises:
            IndexError: for a number that no client has, unless numbers are traced.
        """
        places = self.starts, self.sizes
        if isinstance(numbers, jax.core.Tracer):
            places = jax.tree.map(jnp.asarray, places)
        elif not isinstance(numbers, slice):
            numbers = np.asarray(numbers)
        starts, sizes = rowwise.take(places, numbers)
        return dataclasses.replace(self, starts=starts, sizes=sizes)

    def gathered(self, numbers: Any) -> "ClientTable":
        """A cohort's own table, with copies of its examples alone, as NumPy arrays.

        For examples on the host, `np.memmap` among them. The copy has as many examples
        as the next power of two, so that rounds are compiled for few shapes.

        Args:
            numbers: of the clients, integers `[n]`. Each is copied once.

        Raises:
            IndexError: for a number that no client has.
        """
        numbers = np.arange(len(self))[numbers]
        _, first, again = np.unique(numbers, return_index=True, return_inverse=True)
        own = np.sort(first)
        starts, sizes = (np.asarray(x)[numbers[own]] for x in (self.starts, self.sizes))
        total = int(sizes.sum())
        places = np.cumsum(sizes) - sizes
        shift = np.repeat(starts - places, sizes)
        rows = np.zeros(1 << (max(total, 1) - 1).bit_length(), np.int64)
        rows[:total] = np.arange(total) + shift
        examples = jax.tree.map(lambda x: np.asarray(x)[rows], self.examples)
        places, sizes = (x[np.searchsorted(own, first[again])] for x in (places, sizes))
        return dataclasses.replace(
            self, examples=examples, starts=places.astype(np.int32), sizes=sizes
        )

    def padded(self) -> tuple[PyTree, jax.Array]:
        """Examples `[largest, ...]`, filled up with zeros, and which there are.

        For several clients, `[n, largest, ...]`, as `pad_clients` has them.
        """
        starts, sizes = jnp.asarray(self.starts), jnp.asarray(self.sizes)
        places = jnp.arange(self.largest, dtype=jnp.int32)
        shape = *starts.shape, self.largest
        places = jnp.broadcast_to(places, shape)
        mask = places < jnp.broadcast_to(sizes[..., None], shape)
        examples = jax.tree.map(jnp.asarray, self.examples)
        last = rowwise.count_rows(examples) - 1
        positions = jnp.broadcast_to(starts[..., None], shape) + places
        rows = rowwise.take(examples, jnp.minimum(positions, last))

        def keep(x: jax.Array) -> jax.Array:
            more = (1,) * (x.ndim - mask.ndim)
            return jnp.where(mask.reshape(*mask.shape, *more), x, jnp.zeros_like(x))

        return jax.tree.map(keep, rows), mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Places:
    """A table without its examples, which all clients share."""

    starts: jax.Array
    sizes: jax.Array
    largest: int = dataclasses.field(metadata={"static": True})


def map_data(
    of_table: Callable[["ClientTable"], Any],
    of_array: Callable[[Any], Any],
    client_data: PyTree,
) -> PyTree:
    """Client data with what is made of each table, and of each other array."""
    return jax.tree.map(
        lambda x: of_table(x) if _is_table(x) else of_array(x),
        client_data,
        is_leaf=_is_table,
    )


def apart(tree: PyTree) -> tuple[PyTree, list[PyTree]]:
    """The tree with places for tables, and the examples of each table."""
    examples = []

    def places(table: ClientTable) -> Places:
        examples.append(jax.tree.map(jnp.asarray, table.examples))
        return Places(
            jnp.asarray(table.starts), jnp.asarray(table.sizes), table.largest
        )

    return pytree.map_parts(places, tree, _is_table), examples


def together(tree: PyTree, examples: list[PyTree]) -> PyTree:
    """The inverse of `apart`, of one client's row as well."""
    left = iter(examples)

    def table(places: Places) -> ClientTable:
        return ClientTable(next(left), places.starts, places.sizes, places.largest)

    return pytree.map_parts(table, tree, _is_places)


def without_examples_of_absent(tree: PyTree, present: jax.Array) -> PyTree:
    """The tree with size zero wherever a client `[n]` is absent."""

    def keep(places: Places) -> Places:
        sizes = jnp.where(present, places.sizes, 0)
        return dataclasses.replace(places, sizes=sizes)

    return pytree.map_parts(keep, tree, _is_places)


def examples_of_each(tree: PyTree) -> jax.Array | None:
    """How many examples each client has `[n]`, if there is a table that tells."""
    parts = pytree.parts_with_names(tree, _is_places)
    sizes = [x.sizes for _, x in parts if _is_places(x)]
    return sum(sizes[1:], sizes[0]) if sizes else None


def _is_table(x: Any) -> bool:
    return isinstance(x, ClientTable)


def _is_places(x: Any) -> bool:
    return isinstance(x, Places)
