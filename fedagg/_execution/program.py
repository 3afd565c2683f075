"""A function of one client, traced: what it runs is known before it runs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from fedagg._trees import pytree
from fedagg._types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Program:
    """What a function computes of one client, and of arrays that all clients share.

    It is a function of one client again. It is a pytree of the shared arrays, so that
    `shard_map` can hand them on. The code that it was traced from, a user's work among
    it, has run once, and does not run again.
    """

    constants: list[jax.Array]  # arrays that the function closed over
    bound: list[jax.Array]  # arrays that were bound to it by `Partial`
    jaxpr: Jaxpr = dataclasses.field(metadata={"static": True})
    structure: Any = dataclasses.field(metadata={"static": True})  # of its result

    @classmethod
    def of(cls, fn: Callable[[PyTree], PyTree], clients: PyTree) -> "Program":
        """That of a function of one client, for stacked ones; a program as it is."""
        if isinstance(fn, cls):
            return fn
        bound, partial = pytree.flatten(pytree.as_partial(fn))

        def of_both(bound: list, client: PyTree) -> PyTree:
            return pytree.unflatten(partial, bound)(client)

        trace = jax.make_jaxpr(of_both, return_shape=True)
        closed, result = trace(pytree.abstract(bound), pytree.abstract_row(clients))
        structure = pytree.flatten(result)[1]
        return cls(list(closed.consts), bound, closed.jaxpr, structure)

    @property
    def closed(self) -> ClosedJaxpr:
        """A function of the bound arrays and of the client's leaves."""
        return ClosedJaxpr(self.jaxpr, self.constants)

    @property
    def result(self) -> PyTree:
        """Shapes and dtypes of the result."""
        avals = [x.aval for x in self.jaxpr.outvars]
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals]
        return pytree.unflatten(self.structure, shapes)

    @property
    def has_effects(self) -> bool:
        """Whether it calls the host, to print, say, so that it must run just once."""
        return bool(self.jaxpr.effects)

    def __call__(self, client: PyTree) -> PyTree:
        leaves, _ = pytree.flatten(client)
        results = jaxpr_as_fun(self.closed)(*self.bound, *leaves)
        return pytree.unflatten(self.structure, results)
