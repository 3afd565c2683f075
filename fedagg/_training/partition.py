"""One data set in many clients' hands: by a key of its own, or as drawn."""

import math
from typing import Any

import jax
import numpy as np

from fedagg._trees import checks
from fedagg._trees.keys import as_key
from fedagg._trees.table import ClientTable
from fedagg._types import PyTree


def partition(
    examples: PyTree, owners: Any, clients: int | None = None, *, on_host: bool = False
) -> ClientTable:
    """The table of a data set whose examples belong to clients.

    By a key that the data have, such as who wrote or said it, or as drawn: the owners
    that `by_label`, `by_shards` or `by_quantity` return. A client has its examples in
    the order in which they were given. Drawn owners are for all examples, those held
    out too, so that what a client is tried on is like what it has: draw once, and make
    a table of either part with its owners, since two draws have nothing in common::

        table = partition(jnp.arange(4), ["puck", "anna", "puck", "zoe"])
        assert table.sizes.tolist() == [1, 2, 1]

    Args:
        examples: a tree of arrays `[m, ...]`.
        owners: `[m]`, whose each example is: numbers of clients, or with `clients=None`
            anything that NumPy sorts, such as names.
        clients: how many there are; some may have no example. None makes one of each
            distinct owner, in ascending order.
        on_host: as in `ClientTable.of`.

    Raises:
        ValueError: if owners are no `[m]`, or not from 0 to `clients - 1`; as
            `ClientTable.of` does.
        TypeError: if owners are no integers, and there is `clients`.
    """
    owners = np.asarray(owners)
    if clients is None:
        _, owners = np.unique(owners, return_inverse=True)
        count = int(owners.max(initial=-1)) + 1
    else:
        checks.check_whole(1, clients=clients)
        if not np.issubdtype(owners.dtype, np.integer):
            raise TypeError(
                f"owners: expected numbers of clients, got dtype {owners.dtype}. For "
                "other keys: clients=None."
            )
        count = int(clients)
    m = checks.count_clients(examples, "examples")
    if owners.shape != (m,):
        raise ValueError(
            f"owners: expected one for each example, ({m},), got {owners.shape}."
        )
    if owners.min() < 0 or owners.max() >= count:
        raise ValueError(
            f"owners: expected 0 to {count - 1}, since {clients=}; got "
            f"{owners.min()} to {owners.max()}."
        )
    order = np.argsort(owners, kind="stable")
    ends = np.cumsum(np.bincount(owners, minlength=count))[:-1]
    parts = np.split(order, ends)
    arrays = jax.tree.map(np.asarray, examples)
    datasets = [jax.tree.map(lambda x, own=own: x[own], arrays) for own in parts]
    return ClientTable.of(datasets, on_host=on_host)


def by_label(
    labels: Any, clients: int, concentration: float, key: jax.Array
) -> np.ndarray:
    """Owners `[m]` such that clients have few labels: each label's shares are drawn.

    For each label a draw from a symmetric Dirichlet distribution says what share of its
    examples each client has. Clients differ in size as well, and some may have nothing.

    Args:
        labels: `[m]`, of the examples.
        clients: how many there are.
        concentration: the Dirichlet's: 0.1 for clients of a label or two, 100 for
            nearly equal ones, infinite for equal ones. Positive.
        key: for the draws.

    Raises:
        ValueError: if an argument is out of range, or labels are no `[m]`.

    Reference: Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural
        Networks", 2019, section 4.
    """
    labels = _checked_labels(labels)
    checks.check_whole(1, clients=clients)
    checks.check_above_zero(concentration=concentration)
    owners = np.zeros(len(labels), np.int32)
    names, of = np.unique(labels, return_inverse=True)
    random = _generator(key)
    for number in range(len(names)):
        (places,) = np.nonzero(of == number)
        owners[places] = _drawn(len(places), clients, concentration, random)
    return owners


def by_shards(
    labels: Any, clients: int, shards_per_client: int, key: jax.Array
) -> np.ndarray:
    """Owners `[m]` such that clients have a few runs of examples sorted by label.

    The examples, sorted by label, are cut into shards of equal size, to one example,
    and each client has so many of them, drawn without replacement.

    Args:
        labels: `[m]`, of the examples.
        clients: how many there are.
        shards_per_client: of which most have one label.
        key: for the draws.

    Raises:
        ValueError: if an argument is out of range, there are fewer examples than
            shards, or labels are no `[m]`.

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
        Decentralized Data", 2017, section 3.
    """
    labels = _checked_labels(labels)
    checks.check_whole(1, clients=clients, shards_per_client=shards_per_client)
    shards = clients * shards_per_client
    if shards > len(labels):
        raise ValueError(f"got {len(labels)} examples for {shards} shards.")
    random = _generator(key)
    mixed = random.permutation(len(labels))
    ordered = mixed[np.argsort(labels[mixed], kind="stable")]
    shard = np.arange(len(labels)) * shards // len(labels)
    owner = random.permutation(shards) % clients
    owners = np.zeros(len(labels), np.int32)
    owners[ordered] = owner[shard]
    return owners


def by_quantity(
    examples: int, clients: int, concentration: float, key: jax.Array
) -> np.ndarray:
    """Owners `[m]` such that clients are alike but in how many examples they have.

    A draw from a symmetric Dirichlet distribution says what share each client has.

    Args:
        examples: how many there are.
        clients: likewise.
        concentration: the Dirichlet's, infinite for clients of equal size, as IID data
            are mostly made. Positive.
        key: for the draws.

    Raises:
        ValueError: if an argument is out of range.

    Reference: Li et al., "Federated Learning on Non-IID Data Silos: An Experimental
        Study", 2022, section 3.
    """
    checks.check_whole(1, examples=examples, clients=clients)
    checks.check_above_zero(concentration=concentration)
    return _drawn(examples, clients, concentration, _generator(key))


def _drawn(
    examples: int, clients: int, concentration: float, random: np.random.Generator
) -> np.ndarray:
    shares = np.full(clients, 1.0 / clients)
    if concentration < math.inf:
        shares = random.dirichlet(np.full(clients, float(concentration)))
    ends = np.rint(np.cumsum(shares) / shares.sum() * examples)
    order = random.permutation(examples)
    return np.searchsorted(ends, order, side="right").astype(np.int32)


def _generator(key: jax.Array) -> np.random.Generator:
    """One of NumPy, which compiles nothing, by what the key holds."""
    key = checks.check_key(as_key(key), "partition", "owners")
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _checked_labels(labels: Any) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"labels: expected one for each example, [m], got {list(labels.shape)}."
        )
    return labels
