"""Metrics of clients' work, clipped and noised: one more part of a private round."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedagg._mechanism import Mechanism
from fedagg._messages.marks import NoisedModulo
from fedagg._noise.sum_grid import (
    BITS,
    SumGrid,
    accounted,
    draw_error,
    integer_noise,
    noised,
)
from fedagg._privacy.private import check_multiplier, check_positive
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree
from fedagg._trees.keys import key_of_round
from fedagg._trees.kinds import described
from fedagg._types import Output, PyTree, Stage, Traits, Update

# Sums of steps are multiplied by this power of two, which is exact, and not by less.
_STEPS = 2.0**-24


@prints_as_its_call
def noised_metrics(
    noise_multiplier: float,
    clips: Mapping[str, float],
    clients_per_round: float,
    *,
    name: str = "noised_metrics",
) -> Stage:
    """Lets metrics of the clients' work out of a private round, with noise.

    `aggregator(noised_metrics(4.0, {"training/loss": 5.0}, 100), private)` reports the
    losses as sum over `clients_per_round`. Each client's metric is clipped to within
    plus and minus its clip. A client moves all `k` metrics, in units of their clips, by
    at most `sqrt(k)`, and each gets noise of `noise_multiplier * sqrt(k)` clips: in all
    one Gaussian mechanism, which `guarantee` composes with the other stages'.

    | guarantee | |
    | --- | --- |
    | protected | a client, with all that its work reports in these metrics |
    | relation | that of the private stage beside it |
    | against | all who see what comes out; not the server, which sees sums |
    | sampling | that of the private stage beside it |
    | outside | other metrics, which do not come out; a key that is known |

    | | |
    | --- | --- |
    | a metric that is NaN or infinite, an absent client | counts as zero |
    | weights | leave metrics as they are: every present client counts once |
    | `next` without work | reports noise |

    Values and weights pass as they are. The key is as in `gaussian_noise`, and so are
    sums and noise, integers on a grid. A stage of its own, to be put beside a secure
    sum and not in it.

    Reports each metric under the name that the work gives it, `[]`, and
    `{name}/stddev` `[]`, its noise in units of its clip.

    Args:
        noise_multiplier: standard deviation of the noise, in units of what a client
            moves: that of all metrics together.
        clips: for each metric the largest size that counts. Positive.
        clients_per_round: the denominator, a number that is known beforehand.
        name: what the stage's own metric is filed under.

    Raises:
        ValueError: if an argument is out of range, or there is no metric; in `client`,
            if the work has no metric of such a name; in `server`, without a key.
        TypeError: if an argument is of another type.

    Reference: Dwork and Roth, "The Algorithmic Foundations of Differential Privacy",
        2014, section 3.5 and appendix A.
    """
    check_multiplier(noise_multiplier)
    check_positive(clients_per_round=clients_per_round)
    if not isinstance(clips, Mapping):
        raise TypeError(
            "clips: expected a dict with the largest size of each metric, as "
            f"{{'training/loss': 5.0}}, got {described(clips)}."
        )
    check_positive(**{f"clips[{metric!r}]": x for metric, x in clips.items()})
    if not clips:
        raise ValueError("clips: expected a clip for each metric, got none.")
    limits = {metric: jnp.float32(x) for metric, x in clips.items()}
    grid = SumGrid.of(noise_multiplier, clients_per_round)
    # Of each clip, so that all together move by the clip of the grid at most.
    steps = math.floor(grid.steps / math.sqrt(len(limits)))
    if steps < 1:
        raise ValueError(
            f"clips: {len(limits)} are too many for {clients_per_round:g} clients, "
            f"whose sums leave {grid.steps:.0f} steps for all of them together."
        )
    stddev = grid.deviation / steps / clients_per_round
    # What so many steps of a sum are worth, rounded once.
    worth = 1.0 / (_STEPS * steps * clients_per_round)
    sizes = {metric: jnp.float32(float(x) * worth) for metric, x in clips.items()}

    def with_metrics(note: NoisedModulo, metrics: dict[str, Any]):
        del note
        if missing := sorted(limits.keys() - metrics.keys()):
            raise ValueError(
                f"{name}: the work reports no {missing[0]!r}, but {sorted(metrics)}."
            )
        left = {metric: x for metric, x in metrics.items() if metric not in limits}
        taken = {metric: share(metrics[metric], x) for metric, x in limits.items()}
        return NoisedModulo(taken, BITS), left

    def share(x: Any, limit: jax.Array) -> jax.Array:
        """The metric in steps, within a clip of them."""
        x = jnp.asarray(x).astype(jnp.float32)
        # A clip may be so small that a quotient overflows, which is beyond one.
        clips = jnp.where(jnp.isfinite(x), jnp.clip(x, -limit, limit) / limit, 0.0)
        return jnp.round(clips * steps).astype(jnp.int32)

    def client(shared: PyTree, update: Update, key: jax.Array | None):
        del shared, key
        return update, NoisedModulo({x: jnp.int32(0) for x in limits}, BITS)

    def server(
        rounds: jax.Array, total: PyTree, note: NoisedModulo, key: jax.Array | None
    ):
        key = key_of_round(checks.check_key(key, name, "noise"), rounds)
        noise = pytree.zeros(note.value)
        if grid.deviation > 0.0:
            noise = integer_noise(grid.deviation, key, noise)
        sums = noised(note, noise)
        metrics = {metric: sizes[metric] * (_STEPS * sums[metric]) for metric in limits}
        metrics[f"{name}/stddev"] = jnp.float32(stddev)
        return Output(rounds + 1, total, metrics)

    mechanism = Mechanism.gaussian(accounted((grid,)))._replace(
        draw_error=lambda template: len(limits) * draw_error(grid.deviation)
    )
    traits = Traits(
        name,
        only_reads=True,
        mechanisms=(mechanism,),
        with_metrics=with_metrics,
    )
    return Stage(
        lambda template: jnp.uint32(0), lambda state: (), client, server, traits
    )
