"""Reads what a function does to one client's leaves: keep, scale, measure, or more.

The function is evaluated as a jaxpr in which the client's leaves stand for themselves.
Keeping and scaling are noted down, a norm is taken of the leaf as it came and scaled
after, and everything else that touches a leaf is an error. `_folding` makes sums of it.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

# Leaves of up to so many bytes, all clients together, are handled as one: an operation
# of its own costs more than a copy.
_SMALL = 2**16


class NotFoldable(Exception):
    """The function does more to a leaf than to keep, scale and measure it."""


class Row(NamedTuple):
    """Leaves of a client end to end, times all factors; zero unless all `kept` hold."""

    leaves: tuple[int, ...]
    factors: tuple[jax.Array, ...] = ()  # each []
    kept: tuple[jax.Array, ...] = ()  # each [] bool

    def scaling(self) -> tuple:
        """Equal for rows that are kept and scaled by the same."""
        return tuple(map(_same, self.factors)), tuple(map(_same, self.kept))

    def is_kept(self) -> jax.Array:
        return jnp.all(jnp.stack([jnp.bool_(True), *self.kept]))

    def factor(self) -> jax.Array:
        return math.prod(self.factors, start=jnp.float32(1.0))


class _Entries(NamedTuple):
    """A row's entries, each as `what` says, to be reduced."""

    row: Row
    what: str  # "absolute", "square" or "is nan"


_MEASURES = {
    ("reduce_max", "absolute"),
    ("reduce_sum", "absolute"),
    ("reduce_sum", "square"),
    ("reduce_or", "is nan"),
}


class _Spread(NamedTuple):
    """A scalar as an array of some shape."""

    value: Any  # []


def pack(sizes: list[int], n: int) -> list[list[int]]:
    """Positions of leaves of `n` clients, those of the small ones together."""
    small = [i for i, size in enumerate(sizes) if 4 * n * size <= _SMALL]
    large = [[i] for i in range(len(sizes)) if i not in small]
    return [*large, small] if small else large


def concatenate(arrays: list[jax.Array]) -> jax.Array:
    """Along the last axis; one array alone is not copied."""
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis=-1)


class Client:
    """Evaluates a jaxpr for one client, to be put under `vmap` over all `n`."""

    def __init__(self, leaves: tuple[jax.Array, ...], n: int):
        self.leaves = leaves
        self.n = n
        self.measured: dict[tuple, jax.Array] = {}
        self.numbers: dict[tuple, tuple[jax.Array, Row]] = {}

    def evaluate(
        self, jaxpr: ClosedJaxpr, shapes: list[tuple[int, ...]]
    ) -> list[Row | jax.Array]:
        """The outputs, of these shapes: leaves, kept and scaled, and scalars.

        Raises:
            NotFoldable: if there is another output.
        """
        arguments = [
            Row((i,)) if x.dtype == jnp.float32 else x
            for i, x in enumerate(self.leaves)
        ]
        # A look at the shapes first: to evaluate a training in vain is not cheap.
        known = {(), *(x.shape for x in self.leaves if x.dtype == jnp.float32)}
        if any(x.ndim and x.dtype != jnp.float32 for x in self.leaves) or (
            not known.issuperset(shapes)
        ):
            raise NotFoldable
        outputs = self._run(jaxpr, arguments)
        for i, (x, shape) in enumerate(zip(outputs, shapes, strict=True)):
            if shape == ():
                outputs[i] = self._array(x, shape)
            elif not isinstance(x, Row) or len(x.leaves) > 1:
                raise NotFoldable
        return outputs

    def _run(self, closed: ClosedJaxpr, arguments: list) -> list:
        known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        known.update(zip(closed.jaxpr.invars, arguments, strict=True))

        def read(x: Any) -> Any:
            return x.val if isinstance(x, Literal) else known[x]

        for equation in closed.jaxpr.eqns:
            outputs = self._apply(equation, [read(x) for x in equation.invars])
            known.update(zip(equation.outvars, outputs, strict=True))
        return [read(x) for x in closed.jaxpr.outvars]

    def _apply(self, equation: Any, values: list) -> list:
        """One equation: what is known of rows, else as it stands."""
        name, parameters = equation.primitive.name, equation.params
        if name in ("jit", "pjit"):
            return self._run(parameters["jaxpr"], values)
        match name, *values:
            case "broadcast_in_dim", x if self._is_number(x):
                return [_Spread(self._number(x))]
            case "convert_element_type", x if _is_zero(x):
                return [_Spread(np.zeros((), parameters["new_dtype"]))]
            case "reshape", Row() as x:
                return [x]
            case "concatenate", Row() as x, *_ if all(
                isinstance(y, Row) and y.scaling() == x.scaling() for y in values
            ):
                return [x._replace(leaves=sum((y.leaves for y in values), ()))]
            case "mul", Row() as x, y if self._is_number(y):
                return [x._replace(factors=(*x.factors, self._number(y)))]
            case "mul", y, Row() as x if self._is_number(y):
                return [x._replace(factors=(*x.factors, self._number(y)))]
            case "select_n", which, zero, Row() as x if self._is_number(
                which
            ) and _is_zero(zero):
                return [x._replace(kept=(*x.kept, self._number(which)))]
            case "abs", Row() as x:
                return [_Entries(x, "absolute")]
            case "square" | "integer_pow", Row() as x if parameters.get("y", 2) == 2:
                return [_Entries(x, "square")]
            case "ne", Row() as x, Row() as y if x is y:
                return [_Entries(x, "is nan")]
            case reduce, _Entries() as x if (reduce, x.what) in _MEASURES and len(
                parameters["axes"]
            ) == equation.invars[0].aval.ndim:
                return [self._measure(reduce, x)]
        shapes = [x.aval.shape for x in equation.invars]
        values = [self._array(x, s) for x, s in zip(values, shapes, strict=True)]
        parameters = equation.primitive.get_bind_params(parameters)
        result = equation.primitive.bind(*values, **parameters)
        return list(result) if equation.primitive.multiple_results else [result]

    def _is_number(self, x: Any) -> bool:
        if isinstance(x, Row):
            return len(x.leaves) == 1 and self.leaves[x.leaves[0]].ndim == 0
        return isinstance(x, _Spread) or (
            not isinstance(x, _Entries) and jnp.ndim(x) == 0
        )

    def _number(self, x: Any) -> Any:
        """A scalar `[]` from what `_is_number`."""
        if isinstance(x, _Spread):
            return x.value
        if not isinstance(x, Row):
            return x
        leaf = self.leaves[x.leaves[0]]
        if not (x.factors or x.kept):
            return leaf
        key = x.leaves, x.scaling()
        if key not in self.numbers:  # the same object each time, for `scaling`
            number = jnp.where(x.is_kept(), x.factor() * leaf, 0.0)
            self.numbers[key] = number, x  # which keeps what the key is made of
        return self.numbers[key][0]

    def _array(self, x: Any, shape: tuple[int, ...]) -> jax.Array:
        """The array that an equation asks for, unless that is a row."""
        if not isinstance(x, (Row, _Entries, _Spread)):
            return x
        if not self._is_number(x):
            raise NotFoldable
        return jnp.broadcast_to(self._number(x), shape)

    def _measure(self, reduce: str, entries: _Entries) -> jax.Array:
        """One of `_MEASURES`, taken of the leaves as they came, then scaled."""
        row, what = entries
        if (row.leaves, reduce, what) not in self.measured:
            vectors = [self.leaves[i].ravel() for i in row.leaves]
            packs = pack([x.size for x in vectors], self.n)
            packed = [concatenate([vectors[i] for i in pack]) for pack in packs]
            if reduce == "reduce_sum":
                power = 2 if what == "square" else 1
                sums = jnp.stack([jnp.sum(jnp.abs(x) ** power) for x in packed])
                self.measured[row.leaves, reduce, what] = jnp.sum(sums)
            else:
                both = [_largest_and_squares(x) for x in packed]
                largest, squares = map(jnp.stack, zip(*both, strict=True))
                has_nan = jnp.any(jnp.isnan(largest))
                self.measured[row.leaves, "reduce_or", "is nan"] = has_nan
                self.measured[row.leaves, "reduce_max", "absolute"] = jnp.max(largest)
                self.measured[row.leaves, "reduce_sum", "square"] = jnp.sum(squares)
        size, factor = self.measured[row.leaves, reduce, what], jnp.abs(row.factor())
        if what == "is nan":
            return row.is_kept() & (size | jnp.isnan(factor))
        size *= jnp.square(factor) if what == "square" else factor
        return jnp.where(row.is_kept(), size, 0.0)


@jax.custom_jvp
def _largest_and_squares(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest absolute value and the sum of squares of `x` `[d]`, in one pass.

    As integers, the bits of absolute values compare as the values do, with NaN on top.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & 0x7FFFFFFF
    largest, squares = jax.lax.reduce(
        (bits, x * x),
        (jnp.int32(0), jnp.float32(0.0)),
        lambda a, b: (jnp.maximum(a[0], b[0]), a[1] + b[1]),
        (0,),
    )
    return jax.lax.bitcast_convert_type(largest, jnp.float32), squares


@_largest_and_squares.defjvp
def _(primals: tuple, tangents: tuple):
    return jax.jvp(
        lambda x: (jnp.max(jnp.abs(x)), jnp.sum(jnp.square(x))), primals, tangents
    )


def _same(x: Any) -> Any:
    """Equal for the same number: by value where tracing knows it."""
    return id(x) if isinstance(x, jax.Array) else float(x)


def _is_zero(x: Any) -> bool:
    """Whether this is known to be zero while tracing."""
    x = x.value if isinstance(x, _Spread) else x
    known = not isinstance(x, (Row, _Entries, jax.core.Tracer))
    return known and jnp.ndim(x) == 0 and float(x) == 0.0
