"""Gaussian noise at each client, for those who do not trust the server."""

import math

import jax
import jax.numpy as jnp

from fedagg._noise.sum_grid import ROUNDED, SumGrid, integer_noise, noised
from fedagg._privacy.private import check_clip, check_multiplier, clipped
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree
from fedagg._trees.keys import key_of_round
from fedagg._types import Output, PyTree, Stage, Traits, Update


@prints_as_its_call
def local_gaussian_noise(
    noise_multiplier: float, clip: float, *, name: str = "local_gaussian_noise"
) -> Stage:
    """Noises each client's value before it is sent.

    The value is scaled down to an L2 norm of at most `clip`, and gets noise
    `N(0, (clip * noise_multiplier) ** 2)` on each entry: with `noise_multiplier_for`
    and `neighbors="replace_one"`, which is what local privacy asks for, the message by
    itself is private, whoever sees it. What comes after is post-processing, `mean` and
    compressors included.

    | guarantee | |
    | --- | --- |
    | protected | a client's value in a round; `epsilon` composes rounds |
    | relation | "replace_one", by `epsilon`: `guarantee` knows nothing of it |
    | against | all, the server too, whoever sees the client's message |
    | sampling | none |
    | outside | weights, who takes part, metrics of the work; a key that is known |

    Noise in floats would tell by its lowest bits, and here each message is seen
    (Mironov 2012). So a message is of integers: the value in steps, as in
    `gaussian_noise`, and the discrete Gaussian, which rounds Gaussian noise of the
    deviation asked for. It is sent in float32, as steps times an integer, and its exact
    norm was at most `clip`. Draws are of their law to `2**-79` an entry, in total
    variation, which `epsilon` leaves out. The key is the client's own, secret and
    fresh, `secret_key()`: of it, each round draws from another.

    A value with a NaN or an infinite norm counts as zero, and is noised. In a mean of
    `n` clients the noise of an entry has a deviation of
    `clip * noise_multiplier / sqrt(n)`, which is `sqrt(n)` times that
    of `gaussian_noise` with the same multiplier.

    Reports `{name}/stddev` `[]`, the noise's in an entry of a client's value.

    Args:
        noise_multiplier: standard deviation of the noise, in units of `clip`.
        clip: the largest norm, over all leaves of a value together. Positive.
        name: what the metric is filed under.

    Raises:
        ValueError: if an argument is out of range; in `client`, without a key, and if a
            clip has too few steps for the entries.
        TypeError: if `clip` is a `Bound`; in `client`, for a leaf that is not of a
            float dtype.

    Reference: Duchi, Jordan and Wainwright, "Local Privacy and Statistical Minimax
        Rates", 2013, section 2; Canonne, Kamath and Steinke, "The Discrete Gaussian for
        Differential Privacy", 2020, theorem 4; Mironov, "On Significance of the Least
        Significant Bits for Differential Privacy", 2012.
    """
    check_multiplier(noise_multiplier)
    check_clip(clip=clip)
    grid, deviation = SumGrid(2.0**24, 0.0), 0.0
    if noise_multiplier > 0.0:
        grid = SumGrid.of(noise_multiplier, 1.0)
        # A little more noise than was asked for rounds Gaussian noise of just that.
        deviation = math.hypot(grid.deviation, ROUNDED)
    step = clip / grid.steps

    def client(rounds: jax.Array, update: Update, key: jax.Array | None):
        key = key_of_round(checks.check_key(key, name, "noise"), rounds)
        whole = clipped(update, jnp.float32(clip), grid, None, name)[0].value
        noise = pytree.zeros(whole.value)
        if deviation > 0.0:
            noise = integer_noise(deviation, key, noise)
        value = pytree.scale(jnp.float32(step), noised(whole, noise))
        value = pytree.cast_like(value, pytree.widen(update.value))
        return update._replace(value=value), ()

    def server(rounds: jax.Array, total: PyTree, note: PyTree, key: jax.Array | None):
        del note, key
        stddev = jnp.float32(clip * noise_multiplier)
        return Output(rounds + 1, total, {f"{name}/stddev": stddev})

    return Stage(
        lambda template: jnp.uint32(0),
        lambda rounds: rounds,
        client,
        server,
        Traits(name, is_bound=True),
    )
