"""A function of one client, traced: what it runs is known before it runs."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import (
    ClosedJaxpr,
    Jaxpr,
    Primitive,
    jaxpr_as_fun,
    jaxprs_in_params,
)
from jax.tree_util import Partial

from fedagg._trees import pytree, rowwise
from fedagg._types import PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kept:
    """Part of what a function of one client returns that is stacked, and not summed."""

    value: PyTree


def is_kept(x: Any) -> bool:
    return isinstance(x, Kept)


def aval_of(variable: Any) -> Any:
    """Shape and dtype of a variable, which JAX types as something without either."""
    return variable.aval


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """What a function computes of one client, and of arrays that all clients share.

    It is a function of one client again. It is a pytree of the shared arrays, so that
    `shard_map` can hand them on. The code that it was traced from, a user's work among
    it, has run once, and does not run again, but for `on_a_part`.
    """

    constants: list[jax.Array]  # arrays that the function closed over
    bound: list[jax.Array]  # arrays that were bound to it by `Partial`
    jaxpr: Jaxpr = dataclasses.field(metadata={"static": True})
    structure: Any = dataclasses.field(metadata={"static": True})  # of its result
    # That it was traced from, of the bound arrays and a client.
    source: Callable = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, fn: Callable[[PyTree], PyTree], clients: PyTree) -> "Program":
        """That of a function of one client, for stacked ones; a program as it is."""
        if isinstance(fn, cls):
            return fn
        bound, partial = pytree.flatten(pytree.as_partial(fn))

        def of_both(bound: list, client: PyTree) -> PyTree:
            return pytree.unflatten(partial, bound)(client)

        trace = jax.make_jaxpr(of_both, return_shape=True)
        rows = rowwise.abstract_row(clients)
        # A program runs on the whole mesh and on a part of it alike, and where an axis
        # is explicit it would be typed for one of them.
        mesh = jax.sharding.get_abstract_mesh()
        if jax.sharding.AxisType.Explicit in mesh.axis_types:
            mesh = jax.sharding.AbstractMesh((), ())
        with jax.sharding.use_abstract_mesh(mesh):
            closed, result = trace(pytree.abstract(bound), rows)
        structure = pytree.flatten(result)[1]
        return cls(list(closed.consts), bound, closed.jaxpr, structure, of_both)

    def on_a_part(self, clients: PyTree) -> "Program":
        """The same, with a pair of lists as its result, within a `shard_map`.

        Arrays that the code closed over are typed for the whole mesh if they are on
        one, and so is what was traced with them; then it is traced again, here.
        """
        if not any(jax.typeof(x).sharding.mesh.axis_names for x in self.constants):
            return self
        return Program.of(Partial(self.source, self.bound), clients).parted()

    @property
    def closed(self) -> ClosedJaxpr:
        """A function of the bound arrays and of the client's leaves."""
        return ClosedJaxpr(self.jaxpr, self.constants)

    @property
    def result(self) -> PyTree:
        """Shapes and dtypes of the result."""
        avals = [aval_of(x) for x in self.jaxpr.outvars]
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals]
        return pytree.unflatten(self.structure, shapes)

    @property
    def has_effects(self) -> bool:
        """Whether it calls the host, to print, say, so that it must run just once."""
        return bool(self.jaxpr.effects)

    def runs(self, primitive: Primitive) -> bool:
        """Whether it runs the primitive, in its loops, branches and calls as well."""
        return _runs(self.jaxpr, primitive)

    def largest_array(self) -> int:
        """Bytes of the largest array that it makes on its way."""
        return _largest_array(self.jaxpr)

    def parted(self) -> "Program":
        """The same with a pair of lists as its result: what is summed, and kept."""
        order = self._summed_and_kept()
        outvars = [[self.jaxpr.outvars[i] for i in part] for part in order]
        jaxpr = self.jaxpr.replace(outvars=[*outvars[0], *outvars[1]])
        structure = pytree.flatten(order)[1]
        return dataclasses.replace(self, jaxpr=jaxpr, structure=structure)

    def joined(self, total: list, kept: list) -> PyTree:
        """The result of this program from sums and stacks of what `parted` returns."""
        summed, stacked = self._summed_and_kept()
        found = dict(zip((*summed, *stacked), (*total, *kept), strict=True))
        return pytree.unflatten(self.structure, [found[i] for i in range(len(found))])

    def _summed_and_kept(self) -> tuple[list[int], list[int]]:
        """Positions of the leaves of the result."""
        kept = []
        for _, part in pytree.parts_with_names(self.result, is_kept):
            leaves = pytree.flatten(part)[0] if is_kept(part) else [part]
            kept += [is_kept(part)] * len(leaves)
        positions = range(len(kept))
        return (
            [i for i in positions if not kept[i]],
            [i for i in positions if kept[i]],
        )

    def __call__(self, client: PyTree) -> PyTree:
        leaves, _ = pytree.flatten(client)
        results = jaxpr_as_fun(self.closed)(*self.bound, *leaves)
        return pytree.unflatten(self.structure, results)


def _runs(jaxpr: Jaxpr, primitive: Primitive) -> bool:
    return any(x.primitive is primitive for x in jaxpr.eqns) or any(
        _runs(x, primitive) for x in _inner(jaxpr)
    )


def _largest_array(jaxpr: Jaxpr) -> int:
    made = [aval_of(x) for eqn in jaxpr.eqns for x in eqn.outvars]
    bytes_of = (pytree.count_bytes(x) for x in made if isinstance(x, ShapedArray))
    return max([0, *bytes_of, *map(_largest_array, _inner(jaxpr))])


def _inner(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    """Those of its loops, branches and calls."""
    return (x for eqn in jaxpr.eqns for x in jaxprs_in_params(eqn.params))
