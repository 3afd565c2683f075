"""What a compressor costs: the error it makes, and the bits that it takes coded."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg import _tree
from fedagg._elias_gamma import elias_gamma_bits
from fedagg._types import Output, PyTree, Stage, Update

# A count goes in two parts, so that the sums of many clients fit in 32 bits each.
_PART = 2**14


class DistortionNote(NamedTuple):
    """What a client adds to its message. Summed over the present clients."""

    stage: PyTree
    error: jax.Array  # [] squared distance of the value and what is made of it
    squares: jax.Array  # [] of the value


def with_distortion(stage: Stage, *, name: str = "distortion") -> Stage:
    """Measures what a compressor does to the values of a round.

    Each client decodes its own message as the server does, as if nobody else took part,
    and reports how far that is from the value that the stage was given.

    Reports `{name}` `[]`, the squared errors of all clients over the squares of their
    values: the error that papers call the vNMSE or NMSE. A client whose error is not
    finite is left out, and zero stands for a round without anything to send.

    Args:
        stage: the compressor. What it keeps is public, since clients decode with it,
            and it draws nothing at the server.
        name: what the metric is called.

    Raises:
        ValueError, TypeError: what the stage raises.

    Reference: Vargaftik et al., "DRIVE: One-bit Distributed Mean Estimation", 2021,
        section 2.
    """

    def client(state: PyTree, update: Update, key: jax.Array | None):
        message, note = stage.client(stage.broadcast(state), update, key)
        alone = _tree.widen(_tree.decode(message.value))
        sent = _tree.widen(stage.server(state, alone, note, None).value)
        value = _tree.widen(update.value)
        error = _tree.squared_norm(_tree.subtract(sent, value))
        squares = _tree.squared_norm(value)
        is_finite = jnp.isfinite(error) & jnp.isfinite(squares)
        sizes = _tree.keep(is_finite, (error, squares))
        return message, DistortionNote(note, *sizes)

    def server(
        state: PyTree, total: PyTree, note: DistortionNote, key: jax.Array | None
    ):
        output = stage.server(state, total, note.stage, key)
        # Without anything to send there is no error.
        share = note.error / jnp.where(note.squares > 0.0, note.squares, 1.0)
        return output._replace(metrics=output.metrics | {name: share})

    return Stage(stage.init, lambda state: state, client, server)


def elias_gamma(*, name: str = "elias_gamma") -> Stage:
    """Counts the bits of messages whose integers are coded by `elias_gamma_encode`.

    Put it behind a stage that makes integers: `discretization`, `quantization`, `qsgd`,
    `terngrad`. Each tensor of them is coded by itself, `qsgd`'s and `terngrad`'s as
    multiples of their step; what else is in a value, such as that step, counts as it
    is. The messages themselves stay as they are.

    Reports `{name}/bits` `[]`, the bits of the values of all present clients, without
    their notes, exact as uint32; and `{name}/wraps` `[]`, how often that number went
    past 2**32 and began at zero. For up to 200,000 clients and 2**46 bits.

    Args:
        name: what the metrics are filed under.

    Raises:
        TypeError: in `client`, for integers that int32 does not hold.

    Reference: Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient
        Quantization and Encoding", 2017, section 3.2.
    """

    def bits_of(x: PyTree) -> jax.Array:
        if hasattr(x, "integers"):
            integers, rest = x.integers()
            return elias_gamma_bits(integers) + jnp.uint32(8 * _tree.count_bytes(rest))
        if not _tree.is_code(x) and jnp.issubdtype(x.dtype, jnp.integer):
            return elias_gamma_bits(x)
        return jnp.uint32(8 * _tree.count_bytes(x))

    def client(shared: PyTree, update: Update, key: jax.Array | None):
        del shared, key
        bits = sum(map(bits_of, _tree.parts(update.value)), jnp.uint32(0))
        return update, (bits // _PART, bits % _PART)

    def server(state: PyTree, total: PyTree, note: tuple, key: jax.Array | None):
        del key
        high, low = note
        high = high + low // _PART
        wraps = high // (2**32 // _PART)
        metrics = {f"{name}/bits": high * _PART + low % _PART, f"{name}/wraps": wraps}
        return Output(state, total, metrics)

    return Stage(lambda template: (), lambda state: (), client, server)
