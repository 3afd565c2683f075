"""Puts other operations in the place of some of a function's own, where it helps.

The function is traced, and equations of its jaxpr, also those of the loops, branches
and calls in it, are replaced by what a rule makes of them. That runs on CPUs. On other
backends the equation runs as it was: which of the two is decided when a program is
lowered, so that one that is exported for several backends holds the right one for each.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend.core import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Primitive,
    jaxpr_as_fun,
    jaxprs_in_params,
    primitives,
)

from fedagg._trees import pytree

# What computes an equation's result from its arrays; None to leave it as it is.
Rule = Callable[[JaxprEqn], Callable[..., jax.Array] | None]


def rewritten_on_cpus(
    fn: Callable[..., Any], rules: Mapping[Primitive, Rule]
) -> Callable[..., Any]:
    """The same function of pytrees of arrays, with each primitive's rule applied.

    A derivative of the result is that of what the rules made, so take it before.
    """

    def rewritten(*arguments: Any) -> Any:
        trace = jax.make_jaxpr(fn, return_shape=True)
        closed, shapes = trace(*arguments)
        leaves, _ = pytree.flatten(arguments)
        _, structure = pytree.flatten(shapes)
        results = jaxpr_as_fun(_Rewriting(rules).of(closed))(*leaves)
        return pytree.unflatten(structure, results)

    return rewritten


class _Rewriting:
    """Rewrites jaxprs, each once, so that calls of the same one stay that."""

    def __init__(self, rules: Mapping[Primitive, Rule]):
        self.rules = rules
        self.done: dict[Any, Any] = {}

    def of(self, x: Any) -> Any:
        """A jaxpr rewritten, the same object if there is nothing to rewrite in it."""
        if not _is_jaxpr(x):
            return x
        if x not in self.done:
            # In newer versions of JAX the two are one class.
            jaxpr = x.jaxpr if isinstance(x, ClosedJaxpr) else x
            equations = [self._equation(y) for y in jaxpr.eqns]
            if all(a is b for a, b in zip(equations, jaxpr.eqns, strict=True)):
                self.done[x] = x
            else:
                new = jaxpr.replace(eqns=equations)
                self.done[x] = new if jaxpr is x else x.replace(jaxpr=new)
        return self.done[x]

    def _equation(self, equation: JaxprEqn) -> JaxprEqn:
        if any(self.of(x) is not x for x in jaxprs_in_params(equation.params)):
            params = jax.tree.map(self.of, equation.params, is_leaf=_is_jaxpr)
            return equation.replace(params=params)
        rule = self.rules.get(equation.primitive)
        fn = None if rule is None else rule(equation)
        return equation if fn is None else _in_place_of(equation, fn)


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, (Jaxpr, ClosedJaxpr))


def _in_place_of(equation: JaxprEqn, fn: Callable[..., jax.Array]) -> JaxprEqn:
    """One that runs `fn` on a CPU, and what it was elsewhere."""

    def as_it_was(*arrays: jax.Array) -> jax.Array:
        return equation.primitive.bind(*arrays, **equation.params)

    def either(*arrays: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(*arrays, cpu=fn, default=as_it_was)

    with equation.ctx.manager:
        closed = jax.make_jaxpr(either)(*(x.aval for x in equation.invars))
    params = {"call_jaxpr": closed}
    return equation.replace(primitive=primitives.closed_call_p, params=params)
