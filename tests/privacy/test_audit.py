"""An audit in one run: the epsilon that canaries show stays under the one claimed.

Half of the canaries, drawn by coin, are clients of one round, each with a value of the
clip's norm along an axis of its own. Who sees the mean guesses of those whose axes came
out largest that they took part, and of the smallest that they did not. The more guesses
are right, the larger epsilon must be: Steinke, Nasr and Jagielski, "Privacy Auditing
with One (1) Training Run", 2023, theorem 5.2.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

import fedagg

CANARIES, GUESSES, DELTA, TRUST = 10_000, 300, 1e-5, 0.95
NOISE = 1.5  # where an audit tells it from half of it most surely


def least_epsilon(guesses: int, right: int) -> float:
    """With a chance of TRUST, no epsilon below this explains so many right guesses."""

    def chance(epsilon: float) -> float:
        q = 1.0 / (1.0 + math.exp(-epsilon))
        tail = float(scipy.stats.binom.sf(right - 1, guesses, q))
        # What delta adds: it makes up for a few guesses, with the chance that so few
        # are missing.
        missing = scipy.stats.binom.pmf(np.arange(right)[::-1], guesses, q)
        most = max([0.0, *(np.cumsum(missing) / np.arange(1, right + 1))])
        return tail + 2.0 * CANARIES * DELTA * most

    if chance(0.0) >= 1.0 - TRUST:
        return 0.0
    found: Any = scipy.optimize.brentq(lambda x: chance(x) - (1.0 - TRUST), 0.0, 20.0)
    return float(found)


def audited(stage: fedagg.Stage, seed: int = 0) -> float:
    """The least epsilon of one round of the stage, whose clip is one."""
    coins = np.random.default_rng(seed).integers(0, 2, CANARIES).astype(bool)
    aggregator = fedagg.aggregator(stage, sum_over=fedagg.in_chunks(250))

    def canary(axis: jax.Array, key: jax.Array | None):
        return jax.nn.one_hot(axis, CANARIES), {}

    seen = jax.jit(functools.partial(aggregator.next, work=canary))(
        aggregator.init(jnp.zeros(CANARIES)),
        jnp.arange(CANARIES, dtype=jnp.int32),
        jnp.asarray(coins, jnp.float32),
        jax.random.key(seed),
    ).value

    order = np.argsort(np.asarray(seen))
    out, took_part = order[: GUESSES // 2], order[-GUESSES // 2 :]
    right = int(np.sum(~coins[out]) + np.sum(coins[took_part]))
    return least_epsilon(GUESSES, right)


STAGES: dict[str, Callable[[float], fedagg.Stage]] = {
    "gaussian_noise": lambda z: fedagg.gaussian_noise(z, 1.0, CANARIES / 2),
    "adaptive_gaussian_noise": lambda z: fedagg.adaptive_gaussian_noise(
        z, CANARIES / 2, initial_clip=1.0
    ),
    "tree_noise": lambda z: fedagg.tree_noise(z, 1.0, CANARIES / 2, restart_every=1),
}


@pytest.mark.parametrize("name", STAGES)
def test_canaries_show_less_than_what_is_claimed_and_more_of_half_the_noise(name):
    promised, of_half = (
        fedagg.epsilon(z, 1, DELTA, neighbors="add_or_remove")
        for z in (NOISE, NOISE / 2)
    )

    shown, shown_of_half = (
        audited(STAGES[name](NOISE)),
        audited(STAGES[name](NOISE / 2)),
    )

    assert 0.4 * promised < shown < promised
    assert promised < shown_of_half < of_half
