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

from fedagg._reductions import MEASURES, reduce_together

# What rows are made of: products and sums in float32 are exact to float32's rounding.
_DTYPES = (jnp.float32, jnp.bfloat16)


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


class _Spread(NamedTuple):
    """A scalar as an array of some shape."""

    value: Any  # []


class Client:
    """Evaluates a jaxpr for one client, to be put under `vmap` over all `n`."""

    def __init__(self, leaves: tuple[jax.Array, ...], n: int):
        self.leaves = leaves
        self.n = n
        self.measured: dict[tuple, jax.Array] = {}
        self.numbers: dict[tuple, tuple[jax.Array, Row]] = {}

    def evaluate(
        self, jaxpr: ClosedJaxpr, outputs: list[jax.ShapeDtypeStruct]
    ) -> list[Row | jax.Array]:
        """The outputs, as these say: float32 leaves, kept and scaled, and scalars.

        Raises:
            NotFoldable: if there is another output.
        """
        arguments = [
            Row((i,)) if x.dtype in _DTYPES else x for i, x in enumerate(self.leaves)
        ]
        # A look at the shapes first: to evaluate a training in vain is not cheap.
        known = {(), *(x.shape for x in self.leaves if x.dtype in _DTYPES)}
        if any(x.ndim and x.dtype not in _DTYPES for x in self.leaves) or (
            not known.issuperset(x.shape for x in outputs)
        ):
            raise NotFoldable
        values = self._run(jaxpr, arguments)
        for i, (x, aval) in enumerate(zip(values, outputs, strict=True)):
            if aval.shape == ():
                values[i] = self._array(x, aval)
            elif (
                not isinstance(x, Row) or len(x.leaves) > 1 or aval.dtype != jnp.float32
            ):
                raise NotFoldable
        return values

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
        avals = [x.aval for x in equation.invars]
        is_wide = avals and avals[0].dtype == jnp.float32  # else it rounds
        if name in ("jit", "pjit"):
            return self._run(parameters["jaxpr"], values)
        match name, *values:
            case "broadcast_in_dim", x if self._is_number(x):
                return [_Spread(self._number(x))]
            case "convert_element_type", x if _is_zero(x):
                return [_Spread(np.zeros((), parameters["new_dtype"]))]
            case "convert_element_type", Row() as x if (
                parameters["new_dtype"] == jnp.float32
            ):
                return [x]
            case "reshape", Row() as x:
                return [x]
            case "concatenate", Row() as x, *_ if all(
                isinstance(y, Row) and y.scaling() == x.scaling() for y in values
            ):
                return [x._replace(leaves=sum((y.leaves for y in values), ()))]
            case "mul", Row() as x, y if is_wide and self._is_number(y):
                return [x._replace(factors=(*x.factors, self._number(y)))]
            case "mul", y, Row() as x if is_wide and self._is_number(y):
                return [x._replace(factors=(*x.factors, self._number(y)))]
            case "select_n", which, zero, Row() as x if self._is_number(
                which
            ) and _is_zero(zero):
                return [x._replace(kept=(*x.kept, self._number(which)))]
            case "abs", Row() as x:
                return [_Entries(x, "absolute")]
            case "square" | "integer_pow", Row() as x if is_wide and (
                parameters.get("y", 2) == 2
            ):
                return [_Entries(x, "square")]
            case "ne", Row() as x, Row() as y if x is y:
                return [_Entries(x, "is nan")]
            case reduce, _Entries() as x if (reduce, x.what) in MEASURES and (
                len(parameters["axes"]) == avals[0].ndim
                and (is_wide or x.what == "is nan")
            ):
                return [self._measure(reduce, x)]
        values = [self._array(x, a) for x, a in zip(values, avals, strict=True)]
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
        key = x.leaves, x.scaling()
        if key not in self.numbers:  # the same object each time, for `scaling`
            number = self.leaves[x.leaves[0]].astype(jnp.float32)
            if x.factors or x.kept:
                number = jnp.where(x.is_kept(), x.factor() * number, 0.0)
            self.numbers[key] = number, x  # which keeps what the key is made of
        return self.numbers[key][0]

    def _array(self, x: Any, aval: Any) -> jax.Array:
        """The array that an equation asks for, unless that is a row."""
        if not isinstance(x, (Row, _Entries, _Spread)):
            return x
        if not self._is_number(x):
            raise NotFoldable
        return jnp.broadcast_to(jnp.asarray(self._number(x), aval.dtype), aval.shape)

    def _measure(self, reduce: str, entries: _Entries) -> jax.Array:
        """One of `MEASURES`, taken of the leaves as they came, then scaled."""
        row, what = entries
        if (row.leaves, reduce, what) not in self.measured:
            for measure, number in reduce_together(
                (reduce, what), [self.leaves[i] for i in row.leaves], self.n
            ).items():
                self.measured[row.leaves, *measure] = number
        size, factor = self.measured[row.leaves, reduce, what], jnp.abs(row.factor())
        if what == "is nan":
            return row.is_kept() & (size | jnp.isnan(factor))
        size *= jnp.square(factor) if what == "square" else factor
        return jnp.where(row.is_kept(), size, 0.0)


def _same(x: Any) -> Any:
    """Equal for the same number: by value where tracing knows it."""
    return id(x) if isinstance(x, jax.Array) else float(x)


def _is_zero(x: Any) -> bool:
    """Whether this is known to be zero while tracing."""
    x = x.value if isinstance(x, _Spread) else x
    known = not isinstance(x, (Row, _Entries, jax.core.Tracer))
    return known and jnp.ndim(x) == 0 and float(x) == 0.0
