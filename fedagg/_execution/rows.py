"""Reads what a function does to one client's leaves: keep, scale, measure, or more.

The function is evaluated as a jaxpr. Keeping and scaling of leaves are noted down, and
leaves are measured as they came, the measures scaled after. For everything else that
touches a leaf it is written out, if it may be. `_folding` makes sums of it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from fedagg._execution.program import Program
from fedagg._trees.measures import Measures
from fedagg._trees.reductions import measure_clients

# What rows are made of: products and sums in float32 are exact to float32's rounding.
_DTYPES = (jnp.float32, jnp.bfloat16)


class NotFoldable(Exception):
    """The function does more to a leaf than to keep, scale and measure it."""


class Row(NamedTuple):
    """A client's leaf times all factors, in this order; zero unless `kept` holds."""

    leaf: int
    factors: tuple[jax.Array, ...] = ()  # each []
    kept: tuple[jax.Array, ...] = ()  # each [] bool

    def scaling(self) -> tuple:
        """Equal for rows that are kept and scaled by the same."""
        return tuple(map(_same, self.factors)), tuple(map(_same, self.kept))

    def is_kept(self) -> jax.Array:
        return jnp.all(jnp.stack([jnp.bool_(True), *self.kept]))

    def factor(self) -> jax.Array:
        return math.prod(self.factors, start=jnp.float32(1.0))

    def of(self, leaf: jax.Array) -> jax.Array:
        """The row's entries, in float32."""
        entries = math.prod(self.factors, start=leaf.astype(jnp.float32))
        return jnp.where(self.is_kept(), entries, 0.0) if self.kept else entries


class _Entries(NamedTuple):
    """A row's entries, each as `what` says, to be reduced."""

    row: Row
    what: str  # "absolute" or "square"


class _Spread(NamedTuple):
    """A scalar as an array of some shape."""

    value: Any  # []


class Client:
    """Evaluates a program for one of `n` clients, under `vmap` or one at a time.

    `measured` has what was measured of leaves together before. `writes` says whether
    leaves may be written out; if not, `evaluate` returns rows.
    """

    def __init__(
        self,
        leaves: Sequence[jax.Array],
        n: int,
        measured: Mapping[tuple[int, ...], Measures] | None = None,
        *,
        writes: bool,
    ):
        self.leaves, self.n, self.writes = leaves, n, writes
        self.measured = dict(measured or {})
        self.written: dict[tuple, tuple[jax.Array, Row]] = {}

    def evaluate(self, program: Program) -> list[Row | jax.Array]:
        """The outputs: scalars, rows of float32, and what else may be written out.

        Raises:
            NotFoldable: if nothing may be, and something else is needed.
        """
        arguments = [
            *program.bound,
            *(Row(i) if x.dtype in _DTYPES else x for i, x in enumerate(self.leaves)),
        ]
        # A look at the shapes first: to evaluate a training in vain is not cheap.
        known = {(), *(x.shape for x in self.leaves if x.dtype in _DTYPES)}
        if not self.writes and (
            any(x.ndim and x.dtype not in _DTYPES for x in self.leaves)
            or not known.issuperset(x.shape for x in program.outputs)
        ):
            raise NotFoldable
        values = self._run(program.closed, arguments)
        for i, (x, aval) in enumerate(zip(values, program.outputs, strict=True)):
            if aval.shape == () or self.writes:
                values[i] = self._array(x, aval)
            elif not isinstance(x, Row) or aval.dtype != jnp.float32:
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
            if parameters["name"] == "fedagg_measure" and _are_alike(values):
                return list(self._measure(values))
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
            case reduce, _Entries() as x if is_wide and (
                len(parameters.get("axes", ())) == avals[0].ndim
            ):
                if (reduce, x.what) == ("reduce_max", "absolute"):
                    return [self._measure([x.row]).size()]
                if (reduce, x.what) == ("reduce_sum", "square"):
                    return [self._measure([x.row]).squares]
                if (reduce, x.what) == ("reduce_sum", "absolute"):
                    whole = Row(x.row.leaf).of(self.leaves[x.row.leaf])
                    size = jnp.sum(jnp.abs(whole)) * jnp.abs(x.row.factor())
                    return [jnp.where(x.row.is_kept(), size, 0.0)]
        values = [self._array(x, a) for x, a in zip(values, avals, strict=True)]
        parameters = equation.primitive.get_bind_params(parameters)
        result = equation.primitive.bind(*values, **parameters)
        return list(result) if equation.primitive.multiple_results else [result]

    def _is_number(self, x: Any) -> bool:
        if isinstance(x, Row):
            return self.leaves[x.leaf].ndim == 0
        return isinstance(x, _Spread) or (
            not isinstance(x, _Entries) and jnp.ndim(x) == 0
        )

    def _number(self, x: Any) -> Any:
        """A scalar `[]` from what `_is_number`."""
        if isinstance(x, _Spread):
            return x.value
        return self._written(x) if isinstance(x, Row) else x

    def _written(self, row: Row) -> jax.Array:
        """The row's entries; the same object each time, for `scaling`."""
        key = row.leaf, row.scaling()
        if key not in self.written:  # with the row, which keeps what the key is made of
            self.written[key] = row.of(self.leaves[row.leaf]), row
        return self.written[key][0]

    def _array(self, x: Any, aval: Any) -> jax.Array:
        """The array that an equation asks for."""
        if isinstance(x, _Entries) or (isinstance(x, Row) and not self._is_number(x)):
            if not self.writes:
                raise NotFoldable
            entries = self._written(x if isinstance(x, Row) else x.row)
            if isinstance(x, _Entries):
                entries = {"square": jnp.square, "absolute": jnp.abs}[x.what](entries)
            return entries.reshape(aval.shape).astype(aval.dtype)
        if isinstance(x, (Row, _Spread)):
            x = jnp.broadcast_to(jnp.asarray(self._number(x), aval.dtype), aval.shape)
        return x

    def _measure(self, rows: list[Row]) -> Measures:
        """Measures of leaves as they came, then scaled."""
        group = tuple(x.leaf for x in rows)
        if group not in self.measured:
            leaves = [self.leaves[i] for i in group]
            self.measured[group] = measure_clients(leaves, self.n)
        low, high, squares = self.measured[group]
        factor, is_kept = rows[0].factor(), rows[0].is_kept()
        ends = low * factor, high * factor
        up = factor >= 0.0
        measures = Measures(
            jnp.where(up, *ends), jnp.where(up, *ends[::-1]), squares * factor * factor
        )
        return Measures(*(jnp.where(is_kept, x, 0.0) for x in measures))


def _are_alike(values: list) -> bool:
    """Whether all are rows that are kept and scaled by the same."""
    are_rows = all(isinstance(x, Row) for x in values)
    return are_rows and len({x.scaling() for x in values}) == 1


def _same(x: Any) -> Any:
    """Equal for the same number: by value where tracing knows it."""
    return id(x) if isinstance(x, jax.Array) else float(x)


def _is_zero(x: Any) -> bool:
    """Whether this is known to be zero while tracing."""
    x = x.value if isinstance(x, _Spread) else x
    known = not isinstance(x, (Row, _Entries, jax.core.Tracer))
    return known and jnp.ndim(x) == 0 and float(x) == 0.0
