"""Rounds with and without a canary, a client whose value an auditor chose.

A trial is a run of rounds with a fresh key. What is kept of each round is the released
value, read along a direction, and the metrics.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._aggregator import Aggregator
from fedagg._privacy.samplers import Sampler
from fedagg._trees import pytree
from fedagg._trees.template import Template
from fedagg._types import PyTree

# By what the canary's value is multiplied where it is not itself, and its weight there.
_OTHERWISE = {"add_or_remove": (1.0, 0.0), "zero_out": (0.0, 1.0)}
_OTHERWISE |= {"replace_one": (-1.0, 1.0)}
_DENSE = 256  # of so many entries, noise is looked at in all directions
_LEAVES = 4  # of so many leaves, a canary is in one entry
_BATCH = 2**19  # entries of the trials that are run side by side


class Subject(NamedTuple):
    """What is audited."""

    aggregator: Aggregator
    template: PyTree
    others: PyTree  # [n, ...], the clients that are there in any case, or None
    rounds: int
    neighbors: str
    sampler: Sampler

    @property
    def otherwise(self) -> float:
        """What is there of the canary where it is not itself, in its own value."""
        factor, weight = _OTHERWISE[self.neighbors]
        return factor * weight

    @property
    def chance(self) -> float:
        """That of the canary to be in a round, of all together."""
        return self.sampler.rate / self.sampler.separation

    def clients(self) -> int:
        """How many the sampler draws the canary from."""
        size, rate = self.sampler.size, self.sampler.rate
        if size is None:
            return 1
        return round(size / rate) if rate < 1.0 else size * self.sampler.separation


class Canary(NamedTuple):
    """What the canary sends, and how what is released is read."""

    value: jax.Array  # [size]
    signs: jax.Array  # [rounds]
    reading: jax.Array  # [size]


class Noise(NamedTuple):
    """Second moments of what is released without the canary."""

    variance: np.ndarray  # [size], over rounds
    entries: np.ndarray  # [size, size], likewise, or [0, 0] where there are many
    rounds: np.ndarray  # [rounds, rounds], over entries


def noise_of(subject: Subject, pairs: int, key: jax.Array) -> Noise:
    """The noise, from differences between so many pairs of trials."""
    size = Template.of(subject.template).size
    nothing = Canary(jnp.zeros(size), jnp.ones(subject.rounds), jnp.zeros(size))
    batch = min(_batch(size), pairs)
    keys = jax.random.split(key, (-(-pairs // batch), 2 * batch))

    def values(key: jax.Array) -> jax.Array:
        return _trial(subject, nothing, jnp.bool_(False), key)[0]

    def add(sums: PyTree, keys: jax.Array):
        one, other = jnp.split(jax.vmap(values)(keys), 2)
        x = jnp.nan_to_num(one - other)  # [batch, rounds, size]
        gram = jnp.einsum("bri,brj->ij", x, x) if size <= _DENSE else jnp.zeros((0, 0))
        new = jnp.sum(x * x, (0, 1)), gram, jnp.einsum("bri,bsi->rs", x, x)
        return pytree.add(sums, new), ()

    dense = size if size <= _DENSE else 0
    start = (size,), (dense, dense), (subject.rounds, subject.rounds)
    sums, _ = jax.lax.scan(add, tuple(map(jnp.zeros, start)), keys)
    variance, gram, rounds = (np.asarray(x, np.float64) for x in sums)
    count = 2.0 * len(keys) * batch
    return Noise(
        variance / (count * subject.rounds),
        gram / (count * subject.rounds),
        rounds / (count * max(1, size)),
    )


def canaries(
    subject: Subject, noise: Noise, norm: float, key: jax.Array
) -> dict[str, Canary]:
    """Canaries in all entries, and where there is the least noise."""
    size = noise.variance.size
    signs = np.asarray(jax.random.rademacher(key, (size,), jnp.float32))
    found = {"all entries": signs / np.sqrt(size)}
    start, least = 0, []
    for name, leaf in pytree.leaves_with_names(subject.template):
        of_leaf = noise.variance[start : start + int(np.prod(np.shape(leaf)))]
        if of_leaf.size:
            at = int(np.argmin(of_leaf))
            least.append((of_leaf[at], start + at, f"entry {at} of {name}"))
        start += of_leaf.size
    for _, at, name in sorted(least)[:_LEAVES]:
        found[name] = np.eye(1, size, at)[0]
    if noise.entries.size:
        found["the least noised direction"] = np.linalg.eigh(noise.entries)[1][:, 0]
    floor = 1e-6 * np.max(noise.variance, initial=0.0)
    weight = 1.0 / (noise.variance + floor) if floor > 0.0 else np.ones(size)
    pattern = jnp.asarray(_signs(noise.rounds), jnp.float32)
    made = {}
    for name, direction in found.items():
        is_dense = name == "all entries"
        reading = direction * weight / np.max(weight) if is_dense else direction
        # The sum is read where numbers are about one.
        value, reading = norm * direction, reading / np.linalg.norm(reading)
        made[name] = Canary(
            jnp.asarray(value, jnp.float32), pattern, jnp.asarray(reading, jnp.float32)
        )
    return made


def _signs(noise: np.ndarray) -> np.ndarray:
    """The signs over rounds that stand out most of such noise, each flip tried."""
    scale = np.max(np.diag(noise), initial=0.0)
    rounds = len(noise)
    if scale == 0.0:
        return np.ones(rounds)
    inverse = np.linalg.inv(noise / scale + 1e-6 * np.eye(rounds))
    first = np.sign(np.linalg.eigh(inverse)[1][:, -1])
    best = np.where(first == 0.0, 1.0, first)
    if np.ones(rounds) @ inverse @ np.ones(rounds) >= 0.9 * best @ inverse @ best:
        best = np.ones(rounds)
    for _ in range(rounds):
        for i in range(rounds):
            other = np.where(np.arange(rounds) == i, -best, best)
            if other @ inverse @ other > 1.1 * best @ inverse @ best:
                best = other
    return best


def readings(
    subject: Subject, canaries: list[Canary], trials: int, key: jax.Array
) -> np.ndarray:
    """What is read in trials `[canaries, 2, trials, rounds, 1 + metrics]`.

    Without the canary comes first. All trials have keys of their own.
    """
    stacked = rows_of(canaries)
    kinds, size = len(canaries), canaries[0].value.size
    index = jnp.arange(2 * kinds * trials, dtype=jnp.int32)

    def trial(given: tuple[jax.Array, jax.Array]) -> jax.Array:
        index, key = given
        of_kind = index // (2 * trials)
        canary = Canary(*(x[of_kind] for x in stacked))
        values, metrics = _trial(subject, canary, index // trials % 2 == 1, key)
        read = jnp.matmul(values, canary.reading, precision="highest")
        return jnp.concatenate([read[:, None], metrics], axis=1)

    keys = jax.random.split(key, len(index))
    found = jax.lax.map(trial, (index, keys), batch_size=min(_batch(size), len(index)))
    found = np.asarray(found, np.float64)
    return np.nan_to_num(found.reshape(kinds, 2, trials, *found.shape[1:]))


def rows_of(canaries: list[Canary]) -> Canary:
    return Canary(*(jnp.stack(x) for x in zip(*canaries, strict=True)))


def _batch(size: int) -> int:
    """A power of two, so that it divides what is mostly asked for."""
    return 2 ** max(0, min(10, (_BATCH // max(1, size)).bit_length() - 1))


def _trial(
    subject: Subject, canary: Canary, is_there: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What rounds release: values `[rounds, size]`, and metrics `[rounds, metrics]`."""
    form = Template.of(subject.template)
    sampler = subject.sampler
    start_key, draw_key = (jax.random.fold_in(key, 2**32 - x) for x in (1, 2))
    factor, weight = (
        jnp.where(is_there, 1.0, jnp.float32(x)) for x in _OTHERWISE[subject.neighbors]
    )

    def round(carry: tuple[PyTree, PyTree], given: tuple[jax.Array, jax.Array]):
        (state, drawn), (index, sign) = carry, given
        drawn, cohort = sampler.next(drawn, draw_key)
        is_drawn = jnp.any((cohort.rows == 0) & (cohort.weights > 0.0))
        own = jnp.where(is_drawn, sign * factor, 0.0)
        # In cohorts of one size somebody else is there, who holds zeros.
        in_place = 0.0 if sampler.size is None else 1.0
        here = jnp.where(is_drawn, weight, in_place)
        row = form.unravel(own * canary.value)
        row = pytree.cast_like(row, form.abstract())
        rows, weights = _with_others(subject.others, row, here)
        # JAX's check of reuse takes a batch of keys that are scanned over for reused.
        own_key = jax.random.fold_in(key, index)
        output = subject.aggregator.next(state, rows, weights, own_key)
        metrics: Any = [jnp.float32(x) for _, x in sorted(output.metrics.items())]
        metrics = jnp.stack(metrics) if metrics else jnp.zeros((0,))
        read = form.ravel(output.value, "value"), metrics
        return (output.state, drawn), read

    state = subject.aggregator.init(subject.template)
    drawn = sampler.init(subject.clients(), start_key)
    indices = jnp.arange(subject.rounds, dtype=jnp.uint32)
    return jax.lax.scan(round, (state, drawn), (indices, canary.signs))[1]


def _with_others(others: PyTree, row: PyTree, weight: jax.Array) -> Any:
    """The canary's row after those of the others, each of a weight of one."""
    rows = jax.tree.map(lambda x: x[None], row)
    if others is None:
        return rows, weight[None]
    rows = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), others, rows)
    ones = jnp.ones(pytree.shapes(others)[0][0])
    return rows, jnp.append(ones, weight)
