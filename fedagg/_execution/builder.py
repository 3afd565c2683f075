"""Builds a plan: numbers arrays, and materializes what is lazy where it is needed."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedagg._execution.plans import (
    Broadcast,
    Entrywise,
    LazyLeaf,
    Number,
    Step,
    Value,
    combine,
    entries,
)
from fedagg._execution.program import Program, aval_of
from fedagg._trees.measures import measure

# Leaves that may stay lazy: their products in float32 are exact to its rounding.
_LAZY = (jnp.float32, jnp.bfloat16)

_SMALL = 16  # entries of an array that all clients, a million, may have at once


class NotFoldable(Exception):
    """The function does more to a leaf than to keep, scale and measure it."""


class Builder:
    """Collects steps. Methods return the numbers of the arrays that they compute.

    Where the plan is to fold, they raise `NotFoldable` for an array as large as a leaf.
    """

    def __init__(self, program: Program, folds: bool):
        count = len(program.constants)
        avals = [aval_of(x) for x in program.jaxpr.invars]
        self.folds, self.count = folds, count + len(avals)
        self.first_leaf = count + len(program.bound)
        self.leaves = avals[len(program.bound) :]
        self.constants: list[Value] = list(range(count))
        self.arguments: list[Value] = list(range(count, self.first_leaf))
        self.steps: list[Step] = []
        self.measured: dict[tuple[int, ...], tuple[Number, ...]] = {}
        self._known: dict[Number, np.ndarray] = {}  # values of constants
        self._cache: dict[Any, tuple[Number, ...]] = {}
        for i, x in enumerate(self.leaves):
            is_lazy = x.dtype in _LAZY
            if folds and not is_lazy and math.prod(x.shape) > 1:
                raise NotFoldable
            self.arguments.append(LazyLeaf(i) if is_lazy else self.first_leaf + i)

    def step(
        self, run: Callable, inputs: tuple[Number, ...], count: int, effects: bool
    ) -> tuple[Number, ...]:
        """Adds a step of so many outputs."""
        outputs = tuple(range(self.count, self.count + count))
        self.count += count
        self.steps.append(Step(run, inputs, outputs, effects))
        return outputs

    def cached(
        self, key: Any, run: Callable, inputs: tuple[Number, ...], count: int = 1
    ) -> tuple[Number, ...]:
        """The same, but one step for each key."""
        if key not in self._cache:
            self._cache[key] = self.step(run, inputs, count, effects=False)
        return self._cache[key]

    def constant(self, value: Any, aval: Any) -> Number:
        """An array that is known while tracing."""
        if aval.shape:
            return self.step(lambda: [value], (), 1, effects=False)[0]
        value = np.asarray(value, aval.dtype)
        key = value.dtype, value.tobytes()
        (number,) = self.cached(key, lambda: [value], ())
        self._known[number] = value
        return number

    def is_zero(self, x: Value) -> bool:
        """Whether this is known to be zero throughout."""
        number = x.scalar if isinstance(x, Broadcast) else x
        return number in self._known and self._known[number] == 0

    def scalar(self, x: Value, aval: Any) -> Number | None:
        """A scalar, perhaps one that is broadcast; None if this is none."""
        if isinstance(x, Broadcast):
            return x.scalar
        return None if aval.shape else self.array(x, aval)

    def array(self, x: Value, aval: Any) -> Number:
        """The array that an equation asks for."""
        if isinstance(x, int):
            return x
        size = math.prod(aval.shape)
        if self.folds and size > (_SMALL if isinstance(x, Broadcast) else 1):
            raise NotFoldable
        key = x, aval.shape, aval.dtype
        if isinstance(x, Broadcast):

            def spread(scalar: jax.Array) -> list[jax.Array]:
                return [jnp.full(aval.shape, scalar, aval.dtype)]

            return self.cached(key, spread, (x.scalar,))[0]
        if isinstance(x, Entrywise):
            fn, x = x.fn, x.leaf
            return self.reduced(key, lambda e: fn(e).reshape(aval.shape), x)
        leaf = self.leaves[x.leaf]
        if x == LazyLeaf(x.leaf) and (leaf.shape, leaf.dtype) == key[1:]:
            return self.first_leaf + x.leaf
        return self.reduced(key, lambda e: e.reshape(aval.shape).astype(aval.dtype), x)

    def check_size(self, aval: Any) -> None:
        """Raises NotFoldable if too large for all clients at once."""
        if self.folds and math.prod(aval.shape) > _SMALL:
            raise NotFoldable

    def reduced(self, key: Any, fn: Callable, x: LazyLeaf) -> Number:
        """A function of a lazy leaf's entries."""
        factors, is_kept = self.scaling(x)

        def run(leaf: jax.Array, is_kept: jax.Array, *factors: jax.Array):
            return [fn(entries(leaf, factors, is_kept if x.masks else None))]

        inputs = self.first_leaf + x.leaf, is_kept, *factors
        return self.cached(key, run, inputs)[0]

    def scaling(self, x: LazyLeaf) -> tuple[tuple[Number, ...], Number]:
        """The factors, one each where not kept, and whether all masks hold."""
        count = len(x.factors)

        def run(*inputs: jax.Array) -> list[jax.Array]:
            factors, is_kept = combine(inputs[:count], inputs[count:])
            return [*factors, is_kept]

        key = "scaling", x.scaling
        *factors, is_kept = self.cached(key, run, x.factors + x.masks, count + 1)
        return tuple(factors), is_kept

    def measures(self, rows: list[LazyLeaf]) -> tuple[Number, ...]:
        """Measures of lazy leaves of one scaling together."""
        group, first = tuple(x.leaf for x in rows), rows[0]
        inputs = tuple(self.first_leaf + i for i in group)
        raw = self.cached(group, lambda *leaves: measure(list(leaves)), inputs, 3)
        self.measured[group] = raw
        if not first.factors and not first.masks:
            return raw
        factors, is_kept = self.scaling(first)

        def run(is_kept: jax.Array, *more: jax.Array) -> list[jax.Array]:
            low, high, squares = (jnp.where(is_kept, x, 0.0) for x in more[:3])
            for x in more[3:]:
                ends = low * x, high * x
                low, high = (jnp.where(x >= 0.0, *y) for y in (ends, ends[::-1]))
            return [low, high, squares]

        key = "measures", group, first.scaling
        low, high, squares = self.cached(key, run, (is_kept, *raw, *factors), 3)
        if first.factors:
            # Those of the leaf as it came may overflow where these do not.
            squares = self.squares(rows)
        return low, high, squares

    def squares(self, rows: list[LazyLeaf]) -> Number:
        """The sum of squares of lazy leaves of one scaling, as exact as a measure."""
        factors, is_kept = self.scaling(rows[0])
        count = len(factors)

        def run(is_kept: jax.Array, *more: jax.Array) -> list[jax.Array]:
            masks = is_kept if rows[0].masks else None
            leaves = [entries(x, more[:count], masks) for x in more[count:]]
            return [measure(leaves).squares]

        leaves = tuple(self.first_leaf + x.leaf for x in rows)
        return self.cached(("squares", *rows), run, (is_kept, *factors, *leaves))[0]

    def sum(self, fn: Callable[[jax.Array], jax.Array], rows: list[LazyLeaf]) -> Number:
        """The sum of a function over all entries of lazy leaves."""
        parts = tuple(
            self.reduced(("sum", fn, x), lambda e: jnp.sum(fn(e)), x) for x in rows
        )

        def add(*parts: jax.Array) -> list[jax.Array]:
            return [functools.reduce(jnp.add, parts)]

        return self.cached(("sums", parts), add, parts)[0]
