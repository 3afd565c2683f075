"""Values as integers under a secure sum: within a bound, or modulo a power of two."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._bounding.bounds import as_bound
from fedagg._messages.marks import NoisedModulo
from fedagg._messages.payload import parts_of
from fedagg._messages.residues import Residues, is_residues
from fedagg._trees import checks, pytree
from fedagg._trees.keys import split_key
from fedagg._trees.measures import minimum_and_maximum
from fedagg._types import Bound, PyTree

Ends = Bound | float | tuple[Bound | float, Bound | float]


class Values(NamedTuple):
    """An encoding of values as residues, and the decoding of their sum.

    Attributes:
        init: `() -> state`.
        broadcast: `(state) -> shared`, all that clients learn of the state.
        encode: `(shared, value) -> (residues, note, is_finite)`.
        decode: `(state, total) -> value`, from the sum of the residues.
        metrics: `(state, note) -> metrics`, from the sum of the notes.
        update: `(state, note, key) -> state`, likewise.
    """

    init: Callable[[], PyTree]
    broadcast: Callable[[PyTree], PyTree]
    encode: Callable[[PyTree, PyTree], tuple[PyTree, PyTree, jax.Array]]
    decode: Callable[[PyTree, PyTree], PyTree]
    metrics: Callable[[PyTree, PyTree], dict[str, jax.Array]]
    update: Callable[[PyTree, PyTree, jax.Array | None], PyTree]


class Pair(NamedTuple):
    """Something for either end of a bound; nothing for the lower one if it follows."""

    lower: PyTree
    upper: PyTree


class BoundedNote(NamedTuple):
    """What a client reports of its value. Summed over the present clients."""

    bounds: Pair
    below: jax.Array  # [] one if an entry was below the lower end
    above: jax.Array  # [] one if an entry was above the upper end


def within(ends: Ends, bits: int, largest_cohort: int, name: str) -> Values:
    """Values clipped to a range and rounded to steps whose sums never wrap around."""
    most = (2 ** (bits - 1) - 1) // largest_cohort
    spare = max(0, most.bit_length() - 24)
    steps = float(most >> spare << spare)  # which float32 holds
    numbers, lower, upper = _parted(ends)

    def limits(shared: Pair) -> tuple[jax.Array, jax.Array]:
        high = upper.value(shared.upper)
        return (-high if lower is None else -lower.value(shared.lower)), high

    def step(shared: Pair) -> jax.Array:
        """The distance between values; zero if the bound is."""
        return jnp.maximum(*map(jnp.abs, limits(shared))) / steps

    def broadcast(state: Pair) -> Pair:
        low = () if lower is None else lower.broadcast(state.lower)
        return Pair(low, upper.broadcast(state.upper))

    def encode(shared: Pair, value: PyTree):
        _check_modulus(value, None, name)
        low, high = limits(shared)
        smallest, largest = _extremes(value)
        is_finite = jnp.isfinite(smallest) & jnp.isfinite(largest)
        distance = step(shared)
        per_step = jnp.where(distance > 0.0, 1.0 / distance, 0.0)

        def residues(x: jax.Array) -> Residues:
            if jnp.issubdtype(x.dtype, jnp.integer):
                units = _clip_whole(x, numbers, most, name)
            else:
                # By steps too, since a product rounds.
                x = pytree.wide(x)
                near, far, rate = (y.astype(x.dtype) for y in (low, high, per_step))
                away = jnp.round(jnp.clip(x, near, far) * rate)
                away = jnp.where(is_finite, jnp.clip(away, -steps, steps), 0.0)
                units = away.astype(jnp.int32)
            return Residues.of(units, bits, pytree.wide(x).dtype)

        size = jnp.maximum(-smallest, largest) if lower is None else largest
        note = BoundedNote(
            Pair(
                () if lower is None else lower.note(shared.lower, -smallest),
                upper.note(shared.upper, size),
            ),
            (smallest < low).astype(jnp.float32),
            (largest > high).astype(jnp.float32),
        )
        return jax.tree.map(residues, value), note, is_finite

    def decode(state: Pair, total: PyTree) -> PyTree:
        distance = step(broadcast(state))

        def number(x: Residues) -> jax.Array:
            if jnp.issubdtype(x.dtype, jnp.integer):
                return x.signed().astype(x.dtype)
            return x.signed().astype(x.dtype) * distance.astype(x.dtype)

        return jax.tree.map(number, total, is_leaf=is_residues)

    def metrics(state: Pair, note: BoundedNote) -> dict[str, jax.Array]:
        low, high = limits(broadcast(state))
        return {
            f"{name}/lower_threshold": low,
            f"{name}/upper_threshold": high,
            f"{name}/lower_clipped_count": note.below,
            f"{name}/upper_clipped_count": note.above,
        }

    def update(state: Pair, note: BoundedNote, key: jax.Array | None) -> Pair:
        keys = split_key(key, 2)
        learnt = note.bounds
        return Pair(
            () if lower is None else lower.update(state.lower, learnt.lower, keys[0]),
            upper.update(state.upper, learnt.upper, keys[1]),
        )

    def init() -> Pair:
        return Pair(() if lower is None else lower.init(), upper.init())

    return Values(init, broadcast, encode, decode, metrics, update)


def wrapping(bits: int, name: str) -> Values:
    """Integers modulo `2**bits`, as they are."""

    def encode(shared: PyTree, value: PyTree):
        del shared
        checks.check_integers(value, name)
        _check_modulus(value, 2**bits, name)

        def residues(x: jax.Array) -> Residues:
            return Residues.of(pytree.wide(x), bits, pytree.wide(x).dtype)

        return jax.tree.map(residues, value), (), jnp.bool_(True)

    def decode(state: PyTree, total: PyTree) -> PyTree:
        del state
        return jax.tree.map(
            lambda x: x.signed().astype(x.dtype), total, is_leaf=is_residues
        )

    return Values(
        init=lambda: (),
        broadcast=lambda state: state,
        encode=encode,
        decode=decode,
        metrics=lambda state, note: {},
        update=lambda state, note, key: state,
    )


def _check_modulus(value: PyTree, modulus: int | None, name: str) -> None:
    """Raises a ValueError for integers that are meant modulo another number."""
    for _, x in parts_of(value):
        if isinstance(x, NoisedModulo) and modulus != 2**x.modulus_bits:
            ours = "within a bound" if modulus is None else f"modulo {modulus}"
            raise ValueError(
                f"{name} sums {ours}, and the stage in it makes integers to be summed "
                f"modulo {2**x.modulus_bits}: put it in secure_modular_sum with "
                f"bits={x.modulus_bits}."
            )


def _parted(ends: Ends) -> tuple[tuple[float, float] | None, Bound | None, Bound]:
    """Numbers if both ends are; the lower end, negated, if it is one; the upper one."""
    if isinstance(ends, Bound):
        return None, None, ends
    if not isinstance(ends, tuple):
        upper = as_bound(ends)
        return (-float(ends), float(ends)), None, upper
    if len(ends) != 2:
        raise ValueError(f"bound must be one or a pair, got {ends!r}.")
    low, high = ends
    if isinstance(low, Bound) and isinstance(high, Bound):
        return None, low, high
    if isinstance(low, Bound) or isinstance(high, Bound):
        raise ValueError(
            f"bound: a pair is of two numbers or two Bounds, got {ends!r}."
        )
    if not -jnp.inf < float(low) < float(high) < jnp.inf:
        raise ValueError(f"bound must be a pair (lower, upper), got {ends!r}.")
    numbers = float(low), float(high)
    return numbers, _constant(-numbers[0]), _constant(numbers[1])


def _constant(x: float) -> Bound:
    """A number of any sign as a bound that never moves."""
    return as_bound(1.0)._replace(value=lambda shared: jnp.float32(x))


def _extremes(value: PyTree) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest entry, as float32; NaN if one is not finite."""
    ends, floats = [], []
    for _, x in pytree.leaves_with_names(value):
        if x.size and jnp.issubdtype(x.dtype, jnp.integer):
            ends.append(
                (jnp.min(x).astype(jnp.float32), jnp.max(x).astype(jnp.float32))
            )
        elif x.size:
            floats.append(pytree.wide(x).ravel().astype(jnp.float32))
    ends += [minimum_and_maximum(floats)] if floats else []
    if not ends:
        return jnp.float32(0.0), jnp.float32(0.0)
    low, high = map(jnp.stack, zip(*ends, strict=True))
    # As sums, since a minimum over entries may leave NaN out.
    zero = jnp.sum(0.0 * low)
    return jnp.min(low) + zero, jnp.max(high) + zero


def _clip_whole(
    x: jax.Array, numbers: tuple[float, float] | None, most: int, name: str
) -> jax.Array:
    """Integers within numbers, as int32 or uint32."""
    if numbers is None:
        raise TypeError(f"{name}: integers take a bound of numbers, not one learnt.")
    low, high = math.ceil(numbers[0]), math.floor(numbers[1])
    if max(-low, high) > most:
        raise ValueError(
            f"{name}: the sum could wrap around: integers from {low} to "
            f"{high}, where {most} is the largest size for which they cannot. Take "
            "more bits, fewer clients or a smaller bound."
        )
    x = pytree.wide(x)
    info = jnp.iinfo(x.dtype)
    return jnp.clip(x, max(low, int(info.min)), min(high, int(info.max)))
