"""How many bits the integers of a round take when they are entropy-coded."""

import jax
import jax.numpy as jnp

from fedagg._compression.elias_gamma import elias_gamma_bits
from fedagg._messages.payload import inside, is_payload, parts_of
from fedagg._sentence import prints_as_its_call
from fedagg._trees import pytree
from fedagg._types import PyTree, Stage, Traits, Update

# A count goes in two parts, so that the sums of many clients fit in 32 bits each.
_PART = 2**14


@prints_as_its_call
def elias_gamma(*, name: str = "elias_gamma") -> Stage:
    """Counts the bits of messages whose integers are coded by `elias_gamma_encode`.

    Put it after a stage that makes integers: `discretization`, `quantization`, `qsgd`,
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
        if not is_payload(x):
            whole = jnp.issubdtype(x.dtype, jnp.integer)
            return elias_gamma_bits(x) if whole else jnp.uint32(8 * x.nbytes)
        if x.marks:
            return sum((bits_of(y) for _, y in inside(x)), jnp.uint32(0))
        coded = x.integers()
        if coded is None:
            return jnp.uint32(x.bits())
        integers, rest = coded
        return elias_gamma_bits(integers) + jnp.uint32(8 * pytree.count_bytes(rest))

    def client(update: Update, key: jax.Array | None):
        del key
        parts = parts_of(update.value)
        bits = sum((bits_of(x) for _, x in parts), jnp.uint32(0))
        return update, (bits // _PART, bits % _PART)

    def server(total: PyTree, note: tuple, key: jax.Array | None):
        del key
        high, low = note
        high = high + low // _PART
        wraps = high // (2**32 // _PART)
        metrics = {f"{name}/bits": high * _PART + low % _PART, f"{name}/wraps": wraps}
        return total, metrics

    return Stage.stateless(client, server, Traits(name, only_reads=True, tells=True))
