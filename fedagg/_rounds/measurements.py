"""What people plot when a run goes wrong: sizes of updates, and how far they agree.

`with_measurements(zeroing(10.0), clipping(1.0), mean())` is the robust mean that it is
without, and reports norms, spread and shares of clients as well.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._rounds.chain import chain, merge_metrics
from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree
from fedagg._trees.measures import minimum_and_maximum
from fedagg._types import PyTree, Stage, Traits, Update


class MeasuredNote(NamedTuple):
    """What a client adds to its message. Summed over the present clients."""

    count: jax.Array  # [] one
    weight: jax.Array  # [] or one where clients count alike
    weight_squared: jax.Array  # []
    norm: jax.Array  # [] of the value, times the weight
    squares: jax.Array  # [] likewise, of the norm
    direction: PyTree  # the value over its norm, times the weight; or ()


@prints_as_its_call
def with_measurements(
    *stages: Stage, directions: bool = False, name: str = "measurements"
) -> Stage:
    """Reports how large clients' values are, and how far they agree on the mean.

    The stages are those of `chain`, with a `mean` among them. Values are measured
    right before it: after the clipping that comes before. They and their mean stay as
    they are. It costs about one read of the updates.

    With `x` a client's value there, `w` its weight (one where the mean has none), `m`
    the mean as it comes back, and all means over clients weighted by `w`, it reports,
    each `[]`:

    | `{name}/...` | |
    | --- | --- |
    | `clients` | how many are present |
    | `effective_clients` | `(sum w)**2 / sum w**2`: as many of equal weight would do |
    | `average_client_norm` | the mean of the norms of `x` |
    | `std_dev_client_norm` | their deviation, unbiased |
    | `server_update_norm` | the norm of `m` |
    | `server_update_min`, `server_update_max` | its least and its largest entry |
    | `spread` | root mean square distance of `x` from `m` |
    | `cosine` | of `x` and `m`, the mean with `w` times the norm of `x` for weights |
    | `mean_cosine` | the mean of the same with `w` alone, with `directions` |

    and `.../share` beside each count of clients, as `clipping/count`: the count over
    the clients present. The five with `client` and `update` in their names are those of
    TensorFlow Federated's debug measurements.

    The spread is the root of the mean of `norm(x)**2` less `norm(m)**2`, and `cosine`
    is `norm(m)` over the mean norm. Both are exact where `m` is the mean of what is
    measured, and not of what a compressor or noise makes of it. A spread below a
    thousandth of `norm(m)` is lost in the rounding of float32, and may read as zero.

    With nobody present all are zero. A NaN, or a norm above 1.8e19, makes NaN or
    infinity of what depends on it: put `zeroing` among the stages. No noise hides these
    numbers, and beside a private stage they are refused, as `zeroing` says.

    Args:
        *stages: as in `chain`, the one that divides, `mean`, among them.
        directions: whether clients send `x / norm(x)` as well, which doubles their
            messages, and reads the updates once more.
        name: what the metrics are filed under.

    Raises:
        ValueError: if no stage divides, or it bounds values as well: give the stages of
            a chain one by one; and as `chain` does.
        TypeError: if something other than a stage is given; in `client`, for a leaf
            that is not of a float dtype.

    Reference: TensorFlow Federated, `tff.learning.add_debug_measurements`; Kish,
        "Survey Sampling", 1965, section 11.7, for `effective_clients`.
    """
    plain = chain(*stages)  # for its errors
    place = next((i for i, x in enumerate(stages) if x.traits.divides), None)
    if place is None or stages[place].traits.is_bound:
        found = "there is none" if place is None else f"{stages[place]} bounds it, too"
        raise ValueError(
            f"{name}: expected a stage that divides what comes to it, as mean(); "
            f"{found}. Give the stages of a chain one by one."
        )
    probe = _probe(stages[place].traits.weighs, directions, name)
    whole = chain(*stages[:place], probe, *stages[place:])

    def server(state: PyTree, total: PyTree, note: PyTree, key: jax.Array | None):
        output = whole.server(state, total, note, key)
        clients = jnp.maximum(note[place].count, 1.0)  # nobody is a share of zero
        shares = {
            x.removesuffix("count") + "share": output.metrics[x] / clients
            for x in plain.traits.counts
        }
        return output._replace(metrics=merge_metrics(output.metrics, shares))

    return whole._replace(server=server)


def _probe(weighted: bool, directions: bool, name: str) -> Stage:
    """Measures clients' values, and what comes back as their mean."""

    def client(update: Update, key: jax.Array | None):
        del key
        checks.check_floating(update.value, name)
        weight = update.weight if weighted else jnp.float32(1.0)
        norm = pytree.norm(update.value)
        direction = ()
        if directions:
            # A value of zero has no direction, and counts as at right angles.
            over = jnp.where(norm > 0.0, weight / jnp.where(norm > 0.0, norm, 1.0), 0.0)
            direction = pytree.scale(over, update.value)
        return update, MeasuredNote(
            count=jnp.float32(1.0),
            weight=weight,
            weight_squared=weight * weight,
            norm=weight * norm,
            squares=weight * norm * norm,
            direction=direction,
        )

    def server(total: PyTree, note: MeasuredNote, key: jax.Array | None):
        del key
        measured = _of_clients(note) | _of_mean(total, note)
        if directions:
            along = pytree.dot(note.direction, total)
            measured["mean_cosine"] = _over(along, note.weight * pytree.norm(total))
        return total, {f"{name}/{x}": y for x, y in measured.items()}

    traits = Traits(name, only_reads=True, tells=True, has_sizes=True)
    return Stage.stateless(client, server, traits)


def _of_clients(note: MeasuredNote) -> dict[str, jax.Array]:
    mean, squares = (_over(x, note.weight) for x in (note.norm, note.squares))
    share = _over(note.weight_squared, note.weight) / _positive(note.weight)
    # That of a single client is one, but for rounding: it has no deviation.
    is_several = (note.count > 1.0) & (share < 1.0 - 1e-6)
    unbiased = jnp.where(is_several, 1.0 / jnp.where(is_several, 1.0 - share, 1.0), 0.0)
    return {
        "clients": note.count,
        "effective_clients": _over(jnp.float32(1.0), share),
        "average_client_norm": mean,
        "std_dev_client_norm": _root(unbiased * (squares - mean * mean)),
    }


def _of_mean(mean: PyTree, note: MeasuredNote) -> dict[str, jax.Array]:
    norm = pytree.norm(mean)
    leaves = [x for x in pytree.flatten(mean)[0] if x.size]
    low, high = minimum_and_maximum(leaves) if leaves else (norm, norm)
    return {
        "server_update_norm": norm,
        "server_update_min": low,
        "server_update_max": high,
        "spread": _root(_over(note.squares, note.weight) - norm * norm),
        "cosine": _over(norm * note.weight, note.norm),
    }


def _over(x: jax.Array, divisor: jax.Array) -> jax.Array:
    """A quotient; zero for nobody, and for values of zero."""
    return jnp.where(divisor == 0.0, 0.0, x / _positive(divisor))


def _positive(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0.0, 1.0, x)


def _root(x: jax.Array) -> jax.Array:
    """The root of what is not negative but for rounding. That of a NaN is NaN."""
    return jnp.sqrt(jnp.where(x < 0.0, 0.0, x))
