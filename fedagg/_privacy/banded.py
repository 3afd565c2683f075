"""Banded matrix factorization: noise that cancels over the rounds a client rests.

`banded_noise(1.0, 0.5, 100, bands=10, rounds=500)` is the mechanism of Choquette-Choo
et al. 2023; with one band it is `gaussian_noise`.
"""

import jax
import numpy as np

from fedagg._privacy.private import check_clip, check_multiplier
from fedagg._privacy.private_mean import private_mean
from fedagg._privacy.toeplitz import column_noise
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks
from fedagg._types import Stage


@prints_as_its_call
def banded_noise(
    noise_multiplier: float,
    clip: float,
    clients_per_round: float,
    *,
    bands: int,
    rounds: int,
    name: str = "banded_noise",
) -> Stage:
    """A mean whose noise cancels over the rounds that a client rests.

    Noise `inverse(C) @ draws`, for the banded Toeplitz matrix `C` that makes the errors
    of sums over rounds the smallest on average, as `jax-privacy` finds it. Its columns
    have a norm of one: a client which is in rounds at least `bands` apart pays for each
    what it pays for one of `gaussian_noise` with the same multiplier, while sums over
    rounds have less noise. With a `cyclic` sampler of a period of at least `bands` the
    draw amplifies that; for `separated` clients it holds without. Noise of another
    column is `toeplitz_noise`.

    | guarantee | |
    | --- | --- |
    | protected | a client, with all that it holds, over all rounds together |
    | relation | "zero_out", "replace_one"; "add_or_remove" but for a fixed size |
    | against | all who see what comes out; not the server, with its sums and state |
    | sampling | none, `cyclic` of a period of `bands` or more, `separated` |
    | outside | a key that is known; a client in two rows, or behind two clients |

    Sums and noise are integers, as in `gaussian_noise`, with `C` in units of `2**-12`
    of its first entry. What rounding may add to what a client moves, less than
    `sqrt(d * (bands - 1))` steps of `d` entries, is taken off its clip.

    Noise stays at the server. The state holds `bands - 1` values like the template in
    int32, and must be kept as secret as the sums. Clients count once, whatever their
    weight; who is protected from whom, NaN, absent clients, the denominator, the key,
    and what does not go with this are as in `gaussian_noise`.

    Reports `{name}/clip` `[]` and `{name}/noised_norm` `[]`, the norm of the noised
    mean.

    Args:
        noise_multiplier: standard deviation of a draw, in units of `clip`.
        clip: the largest norm, over all leaves of a value together. Positive.
        clients_per_round: the denominator, a number that is known beforehand.
        bands: rounds over which noise is correlated, at most those that clients rest.
            One is independent noise.
        rounds: what the matrix is made best for. More or fewer are as private.
        name: what the metrics are filed under.

    Raises:
        ValueError: if a number is out of range; in `server`, without a key.
        TypeError: if `clip` is a `Bound`; in `client`, for a leaf that is not of a
            float dtype.
        ImportError: if `jax-privacy` is not there.

    Reference: Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A
        Unified Approach to Private Training", 2023, section 4 and algorithm 1.
    """
    check_multiplier(noise_multiplier)
    check_clip(clip=clip)
    checks.check_whole(1, rounds=rounds)
    checks.check_whole(1, int(rounds), bands=bands)
    return private_mean(
        noise_multiplier,
        clip,
        clients_per_round,
        column_noise(best_column(int(rounds), int(bands))),
        name=name,
    )


def best_column(rounds: int, bands: int) -> np.ndarray:
    """The first column `[bands]` of the best banded Toeplitz matrix, of norm one."""
    try:
        from jax_privacy.matrix_factorization import toeplitz
    except ImportError as error:
        raise ImportError(
            "banded_noise needs jax-privacy: pip install 'fedagg[privacy]'."
        ) from error
    # jax-privacy mixes dtypes and ranks, which a user may have forbidden.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = toeplitz.optimize_banded_toeplitz(n=rounds, bands=bands)
    column = np.asarray(found, np.float64)
    return column / np.linalg.norm(column)
