"""The base class of what travels and is no plain array."""

from typing import ClassVar

import jax

from fedagg._types import PyTree


class Payload:
    """Something that travels in place of an array, or of a tree of arrays.

    A client's value is a tree of arrays and of payloads. A compressor of your own makes
    a payload of each array: a frozen dataclass derived from this one and registered
    with JAX as a pytree, both of which `flax.struct.dataclass` does, with a `decode`.
    Its arrays are what goes on the wire. The stage that makes payloads declares
    `codes` in its `Traits`.

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
        """Its size on the wire, by default that of its arrays as they are."""

        def add(bits: int, x: jax.Array) -> int:
            return bits + 8 * x.size * x.dtype.itemsize

        return jax.tree.reduce(add, self, 0)

    def integers(self) -> tuple[jax.Array, PyTree] | None:
        """The integers in it that an entropy code makes short, and what else travels.

        None, by default, where there are no such integers.
        """
        return None

    def seen(self) -> str:
        """How the server sees it, for `server_view`."""
        return "plain sum" if self.is_added else "in the clear"
