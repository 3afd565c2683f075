"""The base class of what travels and is no plain array."""

from typing import ClassVar

import jax

from fedagg._types import PyTree


class Payload:
    """A coded message: what travels in place of an array, or of a tree of arrays.

    A client's value is a tree of arrays and of payloads. A compressor of your own makes
    a payload of each array: a frozen dataclass derived from this one and registered
    with JAX as a pytree, both of which `flax.struct.dataclass` does, with a `decode`.
    Its arrays are what goes on the wire. The stage that makes payloads declares
    `codes` in its `Traits`. This one sends signs, and the mean size of an entry::

        @flax.struct.dataclass
        class Signs(Payload):
            signs: jax.Array  # int8
            size: jax.Array  # []

            def decode(self) -> jax.Array:
                return self.size * self.signs.astype(jnp.float32)

        def signs() -> Stage:
            def coded(x):
                x = x.astype(jnp.float32)
                return Signs(jnp.sign(x).astype(jnp.int8), jnp.mean(jnp.abs(x)))

            def client(update, key):
                return update._replace(value=jax.tree.map(coded, update.value)), ()

            return Stage.stateless(client, traits=Traits("signs", codes=True))

        aggregator(mean(), signs())

    Attributes:
        is_added: whether the server adds it leaf by leaf as it is, without decoding;
            the stage that made it then gets the sum.
        is_noised: whether what is released of the sum is noised for privacy.
        marks: the field that it is but a mark on, if it travels as what it holds.
    """

    is_added: ClassVar[bool] = False
    is_noised: ClassVar[bool] = False
    marks: ClassVar[str] = ""

    def decode(self) -> PyTree:
        """What the server adds for this client, arrays of a float or integer dtype."""
        if not self.is_added:
            raise NotImplementedError(
                f"{type(self).__name__} is not added as it is, and needs a decode() "
                "that returns the array which it stands for."
            )
        return self

    def bits(self) -> int:
        """Its size on the wire: by default, that of what it holds, added up."""

        def add(bits: int, x: jax.Array | Payload) -> int:
            if isinstance(x, Payload):
                return bits + x.bits()
            return bits + 8 * x.size * x.dtype.itemsize

        def is_held(x: PyTree) -> bool:
            return x is not self and isinstance(x, Payload)

        return jax.tree.reduce(add, self, 0, is_leaf=is_held)

    def integers(self) -> tuple[jax.Array, PyTree] | None:
        """The integers in it that an entropy code makes short, and what else travels.

        None, by default, where there are no such integers.
        """
        return None

    def seen(self) -> str:
        """How the server sees it, for `server_view`."""
        return "plain sum" if self.is_added else "in the clear"
