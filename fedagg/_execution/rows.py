"""Follows a client's leaves through a program: kept, scaled, measured, or more.

A small abstract interpreter. A leaf stays lazy as long as it is only masked and scaled:
the leaf, the factors, the masks. Extremes of a lazy leaf follow from those of the leaf
as it came. All else is a step that computes arrays, for which lazy leaves are
materialized. Nothing runs here: the plan that results is what `folding` runs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, primitives

from fedagg._execution.builder import Builder, NotFoldable
from fedagg._execution.plans import Broadcast, Entrywise, LazyLeaf, Number, Plan, Value
from fedagg._execution.program import Program, aval_of
from fedagg._trees.measures import Measures, measure_p


def plan_of(program: Program, *, folds: bool) -> Plan:
    """The steps of a program. If it is to fold, outputs may be lazy leaves.

    Raises:
        NotFoldable: if it is to fold, and an array as large as a leaf is needed.
    """
    builder = Builder(program, folds)
    values = _follow(builder, program.jaxpr, builder.constants, builder.arguments)
    outputs: list[LazyLeaf | Number] = []
    for variable, x in zip(program.jaxpr.outvars, values, strict=True):
        aval = aval_of(variable)
        if not (folds and aval.shape and isinstance(x, LazyLeaf)):
            x = builder.array(x, aval)
        elif aval.dtype != jnp.float32:
            raise NotFoldable
        outputs.append(x)
    return Plan(builder.steps, outputs, builder.measured).without_unused()


def _follow(
    builder: Builder,
    jaxpr: Jaxpr,
    constants: Sequence[Value],
    arguments: Sequence[Value],
) -> list[Value]:
    """The outputs, equation by equation: by the primitive's rule, else by a step."""
    known: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(x: Any) -> Value:
        if isinstance(x, Literal):
            return builder.constant(x.val, aval_of(x))
        return known[x]

    for equation in jaxpr.eqns:
        values = [read(x) for x in equation.invars]
        rule = _RULES.get(equation.primitive)
        outputs = None if rule is None else rule(builder, equation, values)
        if outputs is None:
            outputs = _compute(builder, equation, values)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _compute(
    builder: Builder, equation: JaxprEqn, values: Sequence[Value]
) -> Sequence[Value]:
    """The equation as it stands, as a step."""
    primitive = equation.primitive
    for variable in equation.outvars:
        builder.check_size(aval_of(variable))

    def run(*arrays: jax.Array) -> Sequence[jax.Array]:
        parameters = primitive.get_bind_params(equation.params)
        with equation.ctx.manager:
            results = primitive.bind(*arrays, **parameters)
        return results if primitive.multiple_results else [results]

    pairs = zip(values, equation.invars, strict=True)
    inputs = tuple(builder.array(x, aval_of(variable)) for x, variable in pairs)
    return builder.step(run, inputs, len(equation.outvars), bool(equation.effects))


# A rule returns the outputs, or None where it does not apply.


def _call(builder: Builder, equation: JaxprEqn, values: Sequence[Value]):
    """A function under `jit`, if there is something lazy to be followed into it."""
    if values and all(isinstance(x, int) for x in values):
        return None
    closed = equation.params["jaxpr"]
    variables = closed.jaxpr.constvars
    pairs = zip(closed.consts, variables, strict=True)
    constants = [builder.constant(x, aval_of(variable)) for x, variable in pairs]
    return _follow(builder, closed.jaxpr, constants, values)


def _measure(builder: Builder, equation: JaxprEqn, values: Sequence[Value]):
    rows = [x for x in values if isinstance(x, LazyLeaf)]
    if len(rows) < len(values) or len({x.scaling for x in rows}) > 1:
        return None
    return builder.measures(rows)


def _broadcast(builder: Builder, equation: JaxprEqn, values: Sequence[Value]):
    scalar = builder.scalar(values[0], aval_of(equation.invars[0]))
    return None if scalar is None else [Broadcast(scalar)]


def _reshape(builder: Builder, equation: JaxprEqn, values: Sequence[Value]):
    return values[:1] if isinstance(values[0], (LazyLeaf, Broadcast)) else None


def _convert(builder: Builder, equation: JaxprEqn, values: Sequence[Value]):
    dtype = equation.params["new_dtype"]
    if isinstance(values[0], LazyLeaf) and dtype == jnp.float32:
        return values
    if builder.is_zero(values[0]):
        return [Broadcast(builder.constant(0, jax.ShapeDtypeStruct((), dtype)))]
    return None


def _multiply(builder: Builder, equation: JaxprEqn, values: Sequence[Value]):
    if not _is_wide(equation):
        return None
    first, second = zip(values, [aval_of(x) for x in equation.invars], strict=True)
    shape = aval_of(equation.outvars[0]).shape
    for (x, is_of), (y, aval) in [(first, second), (second, first)]:
        if isinstance(x, LazyLeaf) and is_of.shape == shape:
            scalar = builder.scalar(y, aval)
            if scalar is not None:
                return [x._replace(factors=(*x.factors, scalar))]
    return None


def _select(builder: Builder, equation: JaxprEqn, values: Sequence[Value]):
    """Keeps a leaf where a condition holds, with zero elsewhere."""
    if len(values) != 3 or aval_of(equation.invars[0]).dtype != jnp.bool_:
        return None
    which, zero, x = values
    if isinstance(x, LazyLeaf) and builder.is_zero(zero):
        mask = builder.scalar(which, aval_of(equation.invars[0]))
        return None if mask is None else [x._replace(masks=(*x.masks, mask))]
    return None


def _entrywise(fn: Callable[[jax.Array], jax.Array]):
    def rule(builder: Builder, equation: JaxprEqn, values: Sequence[Value]):
        is_square = equation.params.get("y", 2) == 2
        if isinstance(values[0], LazyLeaf) and is_square and _is_wide(equation):
            return [Entrywise(values[0], fn)]
        return None

    return rule


def _sum(builder: Builder, equation: JaxprEqn, values: Sequence[Value]):
    entries = values[0]
    if not isinstance(entries, Entrywise) or not _is_whole(equation):
        return None
    if entries.fn is jnp.square and not entries.leaf.factors:
        _, _, squares = builder.measures([entries.leaf])
        return [squares]
    return [builder.sum(entries.fn, [entries.leaf])]


def _maximum(builder: Builder, equation: JaxprEqn, values: Sequence[Value]):
    entries = values[0]
    if not isinstance(entries, Entrywise) or not _is_whole(equation):
        return None
    if entries.fn is not jnp.abs:
        return None
    low, high, _ = builder.measures([entries.leaf])
    return builder.cached(("size", low, high), _size, (low, high))


def _size(low: jax.Array, high: jax.Array) -> list[jax.Array]:
    return [Measures(low, high, low).size()]


def _is_whole(equation: JaxprEqn) -> bool:
    """Whether this reduces all entries, in float32."""
    all_axes = len(equation.params["axes"]) == aval_of(equation.invars[0]).ndim
    return all_axes and _is_wide(equation)


def _is_wide(equation: JaxprEqn) -> bool:
    """Whether it computes in float32: what is narrower rounds."""
    return aval_of(equation.invars[0]).dtype == jnp.float32


_RULES = {
    measure_p: _measure,
    primitives.jit_p: _call,
    primitives.broadcast_in_dim_p: _broadcast,
    primitives.reshape_p: _reshape,
    primitives.convert_element_type_p: _convert,
    primitives.mul_p: _multiply,
    primitives.select_n_p: _select,
    primitives.abs_p: _entrywise(jnp.abs),
    primitives.square_p: _entrywise(jnp.square),
    primitives.integer_pow_p: _entrywise(jnp.square),
    primitives.reduce_sum_p: _sum,
    primitives.reduce_max_p: _maximum,
}
