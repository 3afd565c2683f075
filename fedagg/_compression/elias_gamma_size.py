"""How many bits the integers of a round take when they are entropy-coded."""

import jax
import jax.numpy as jnp

from fedagg._compression.elias_gamma import elias_gamma_bits
from fedagg._trees import pytree
from fedagg._types import Output, PyTree, Stage, Update

# A count goes in two parts, so that the sums of many clients fit in 32 bits each.
_PART = 2**14


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
            return elias_gamma_bits(integers) + jnp.uint32(8 * pytree.count_bytes(rest))
        if not pytree.is_code(x) and jnp.issubdtype(x.dtype, jnp.integer):
            return elias_gamma_bits(x)
        return jnp.uint32(8 * pytree.count_bytes(x))

    def client(shared: PyTree, update: Update, key: jax.Array | None):
        del shared, key
        bits = sum(map(bits_of, pytree.parts(update.value)), jnp.uint32(0))
        return update, (bits // _PART, bits % _PART)

    def server(state: PyTree, total: PyTree, note: tuple, key: jax.Array | None):
        del key
        high, low = note
        high = high + low // _PART
        wraps = high // (2**32 // _PART)
        metrics = {f"{name}/bits": high * _PART + low % _PART, f"{name}/wraps": wraps}
        return Output(state, total, metrics)

    return Stage(lambda template: (), lambda state: (), client, server)
