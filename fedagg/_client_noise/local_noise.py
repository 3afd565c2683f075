"""Gaussian noise at each client, for those who do not trust the server."""

import jax
import jax.numpy as jnp

from fedagg._privacy.noise_source import with_noise
from fedagg._privacy.normal import normal
from fedagg._privacy.private import check_clip, check_multiplier, clip_value
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks
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
    | outside | weights, who takes part, metrics of the work, low bits of floats |

    The exact norm is at most `clip`: what the norm in float32 may be wrong by is taken
    off. The key is the client's own, secret and fresh, `secret_key()`: of it, each
    round draws from another. Noise is in float32, on a grid and up to 5.4 deviations,
    which is left out of account: here each message is seen, and its lowest bits may
    tell of the value (Mironov 2012). Integers have no such bits: those of `skellam`,
    under a secure sum, or of `gaussian_noise`, at the server.

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
        ValueError: if an argument is out of range; in `client`, without a key.
        TypeError: if `clip` is a `Bound`; in `client`, for a leaf that is not of a
            float dtype.

    Reference: Duchi, Jordan and Wainwright, "Local Privacy and Statistical Minimax
        Rates", 2013, section 2.
    """
    check_multiplier(noise_multiplier)
    check_clip(clip=clip)
    stddev = clip * noise_multiplier

    def client(rounds: jax.Array, update: Update, key: jax.Array | None):
        value = clip_value(update.value, clip, name)
        key = key_of_round(checks.check_key(key, name, "noise"), rounds)
        value = with_noise(value, jnp.float32(stddev), normal(key, value))
        return update._replace(value=value), ()

    def server(rounds: jax.Array, total: PyTree, note: PyTree, key: jax.Array | None):
        del note, key
        return Output(rounds + 1, total, {f"{name}/stddev": jnp.float32(stddev)})

    return Stage(
        lambda template: jnp.uint32(0),
        lambda rounds: rounds,
        client,
        server,
        Traits(name, is_bound=True),
    )
