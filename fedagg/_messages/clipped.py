"""What is clipped, or noised, for privacy on its way to the sum."""

from typing import NamedTuple

from fedagg._types import PyTree


class Clipped(NamedTuple):
    """A clipped value on its way to the sum.

    Stages that change values refuse it: a weight or a rounding after the clip would
    give a client more than the noise is made to hide.
    """

    value: PyTree

    @property
    def made(self) -> str:
        return (
            "clipped for the noise that is added to its sum. Put {} before that stage"
        )

    def decode(self) -> PyTree:
        return self.value


class NoisedNote(NamedTuple):
    """A note whose sum is released with noise only, and hidden by it."""

    note: PyTree
