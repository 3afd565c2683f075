"""Sums of which the server learns nothing but the sum, as integers that wrap around.

`secure_sum` clips floats to a bound and rounds them, as for a mean of models;
`secure_modular_sum` takes integers as they are, as for noise that clients add.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedagg._messages.payload import coded_parts
from fedagg._messages.residues import Residues
from fedagg._rounds.chain import merge_metrics
from fedagg._secure.fixed_point import FixedPoint
from fedagg._secure.values import Ends, Values, within, wrapping
from fedagg._sentence import prints_as_its_call
from fedagg._trees import pytree
from fedagg._trees.keys import split_key
from fedagg._trees.kinds import check_kind
from fedagg._trees.weights import is_present
from fedagg._types import Output, PyTree, Stage, Update


class SecureState(NamedTuple):
    """State of `secure_sum`."""

    stage: PyTree
    values: PyTree  # of the bounds


class SecureNote(NamedTuple):
    """What a client adds to its message, all of it residues. Summed over clients."""

    stage: PyTree
    values: PyTree  # what the bounds learn from, and who was clipped
    left_out: PyTree  # [] one if nothing else of the client is added
    present: PyTree  # [] one


@prints_as_its_call
def secure_sum(
    stage: Stage,
    bound: Ends,
    *,
    largest_cohort: int,
    largest_weight: float | None = None,
    bits: int = 32,
    name: str = "secure_sum",
) -> Stage:
    """Makes the whole message of a stage integers modulo `2**bits`, to be added only.

    It stands for the protocol in `fedagg.secagg`, and behaves as that does to the bit:
    what leaves a client is integers that wrap around when added, its notes (weights,
    counts, what bounds learn from) as well as its value. `server_view` lists it.

    Entries are clipped to `bound` and rounded to whole steps, which are as fine as sums
    of `largest_cohort` clients allow without wrapping: the larger end of the bound is
    `2**(bits - 1) / largest_cohort` steps. Integers stay as they are. Notes are in
    units of `2**-24`, coarser where bits are few or weights large, and multiples of the
    unit are exact. A client with an entry that is not finite, or with a note above
    `largest_weight`, as `mean` makes of a larger weight, is left out and counted. If
    more clients are present than `largest_cohort`, floats are NaN and integers zero
    throughout, and the state stays.

    Reports, each `[]`, `{name}/lower_threshold` and `{name}/upper_threshold`, this
    round's bounds; `{name}/lower_clipped_count` and `{name}/upper_clipped_count`, the
    numbers of clients with an entry beyond them; `{name}/left_out_count`.

    Args:
        stage: what comes before the sum, a `chain` with its `mean`. It may not code.
        bound: the largest size of an entry, a number or a `Bound` that learns from each
            client's largest; or a pair for the smallest and the largest entry, of two
            numbers, or of two `Bound`s, the first for the negative of the smallest.
        largest_cohort: the most clients that may be present in a round.
        largest_weight: the largest size of a note, of clients' weights above all. One
            or more. A stage that weighs, as `mean()` does, needs it.
        bits: the modulus is `2**bits`, from 2 to 32.
        name: what the metrics are filed under.

    Raises:
        ValueError: if an argument is out of range, or not given and needed; for a stage
            that codes, or is under a secure sum already; if a sum could wrap around,
            with the numbers; in `init` and `client`, for messages that must be decoded.
        TypeError: if the stage or the bound is of another type; in `init` and `client`,
            for integers with a learnt bound.

    Reference: Bonawitz et al., "Federated Learning with Autotuned Communication-
        Efficient Secure Aggregation", 2019, section 3; TensorFlow Federated,
        `tff.aggregators.SecureSumFactory`.
    """
    _check_stage(stage, name)
    if largest_weight is None:
        if stage.traits.weighs:
            raise ValueError(
                f"{name}: give largest_weight, the largest weight of a client, as the "
                f"number of its examples: {stage.traits.name} multiplies by weights, "
                "and clients whose weight is larger are left out."
            )
        largest_weight = 1.0
    fixed_point = FixedPoint.of(bits, largest_cohort, largest_weight)
    fixed_point.check(name)
    values = within(bound, fixed_point.bits, fixed_point.largest_cohort, name)
    hidden = _hidden(stage, values, fixed_point, name)
    # Who had an entry beyond the bound is counted, whatever the stage makes private.
    return hidden._replace(traits=hidden.traits._replace(tells=True))


@prints_as_its_call
def secure_modular_sum(
    stage: Stage,
    *,
    bits: int,
    largest_cohort: int,
    largest_weight: float = 1.0,
    name: str = "secure_modular_sum",
) -> Stage:
    """Sums integers modulo `2**bits`, as they wrap around, with notes as `secure_sum`.

    The sum comes back from `-2**(bits - 1)` to `2**(bits - 1) - 1`. It is that of the
    integers where that is in this range, as it is with a known chance where noise is
    among them. A client with a note above `largest_weight` is left out and counted. If
    more clients are present than `largest_cohort`, the sum is zero and the state stays;
    that of private stages counts the round as one with nobody present, so that no two
    rounds have the same noise.

    Reports `{name}/left_out_count` `[]`, the number of clients left out.

    Args:
        stage: what comes before the sum, and makes integers, as `discretization` does.
        bits: the modulus is `2**bits`, from 2 to 32.
        largest_cohort: the most clients that may be present in a round.
        largest_weight: the largest size of a note. At least one.
        name: what the metric is filed under.

    Raises:
        ValueError: if an argument is out of range; for a stage that codes, or is under
            a secure sum already; in `init` and `client`, for messages that must be
            decoded, and if a sum of notes could wrap around.
        TypeError: in `init` and `client`, for a value that is not of integers.

    Reference: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving
        Machine Learning", 2017, section 4; TensorFlow Federated,
        `tff.aggregators.SecureModularSumFactory`.
    """
    _check_stage(stage, name)
    fixed_point = FixedPoint.of(bits, largest_cohort, largest_weight)
    return _hidden(stage, wrapping(fixed_point.bits, name), fixed_point, name)


def _hidden(stage: Stage, values: Values, fixed_point: FixedPoint, name: str) -> Stage:
    """The stage whose messages are residues throughout."""

    def init(template: PyTree) -> SecureState:
        state = SecureState(stage.init(template), values.init())
        update = Update(pytree.zeros(template), jnp.float32(0.0))
        # For its errors, before there is a round.
        jax.eval_shape(client, broadcast(state), update, jax.random.key(0))
        return state

    def broadcast(state: SecureState) -> SecureState:
        return SecureState(stage.broadcast(state.stage), values.broadcast(state.values))

    def client(shared: SecureState, update: Update, key: jax.Array | None):
        sent, note = stage.client(shared.stage, update, key)
        _check_addable(sent.value, name)
        value, note_of_value, is_finite = values.encode(shared.values, sent.value)
        here = is_present(sent.weight)
        notes = SecureNote(note, pytree.keep(here, note_of_value), (), ())
        notes, in_range = fixed_point.encode_all(notes, name)
        fits = in_range & (is_finite | ~here)
        value, notes = pytree.keep(fits, (value, notes))
        one = Residues.of(jnp.uint32(1), fixed_point.bits, jnp.dtype(jnp.uint32))
        notes = notes._replace(left_out=pytree.keep(~fits, one), present=one)
        return Update(value, jnp.where(fits, sent.weight, 0.0)), notes

    def server(
        state: SecureState, total: PyTree, note: SecureNote, key: jax.Array | None
    ):
        is_sound = note.present.unsigned() <= fixed_point.largest_cohort
        value = _or_nothing(is_sound, values.decode(state.values, total))
        notes = fixed_point.decode_all((note.stage, note.values))
        of_stage, of_values = pytree.keep(is_sound, notes)
        stage_key, values_key = split_key(key, 2)
        output = stage.server(state.stage, value, of_stage, stage_key)
        after = SecureState(
            output.state, values.update(state.values, of_values, values_key)
        )
        metrics = {
            **values.metrics(state.values, of_values),
            f"{name}/left_out_count": note.left_out.unsigned().astype(jnp.float32),
        }
        # A state that stays would have the same noise drawn again in the next round.
        if not stage.traits.is_private:
            after = pytree.where(is_sound, after, state)
        return Output(after, output.value, merge_metrics(output.metrics, metrics))

    def refused(note: SecureNote) -> jax.Array:
        left_out = note.left_out.unsigned() > 0
        if stage.traits.refused is None:
            return left_out
        return left_out | stage.traits.refused(fixed_point.decode_all(note.stage))

    traits = stage.traits._replace(name=name, only_reads=False, is_secret=True)
    room = min(fixed_point.largest_cohort, traits.largest_cohort or 2**32)
    traits = traits._replace(refused=refused, largest_cohort=room)
    return Stage(init, broadcast, client, server, traits)


def _or_nothing(is_sound: jax.Array, value: PyTree) -> PyTree:
    """The value, or NaN, and zero for integers, where it is not sound."""

    def leaf(x: jax.Array) -> jax.Array:
        other = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0
        return jnp.where(is_sound, x, jnp.asarray(other, x.dtype))

    return jax.tree.map(leaf, value)


def _check_addable(value: PyTree, name: str) -> None:
    """Raises a ValueError for a message that must be decoded before it is added."""
    for path, x in coded_parts(value):
        raise ValueError(
            f"{name}: {path or 'the value'} is a {type(x).__name__}, which the server "
            "has to decode for each client, and a secure sum shows it none."
        )


def _check_stage(stage: Stage, name: str) -> None:
    """Raises an error for what is no stage, or one that cannot be made secret."""
    check_kind(Stage, stage=stage)
    named = stage.traits.name or str(stage)
    if stage.traits.codes:
        raise ValueError(
            f"{name}: messages of {named} cannot be added: the server has to decode "
            "each client's, and a secure sum shows it none. discretization, rotation "
            "and random_k commute with the sum."
        )
    if stage.traits.with_metrics is not None:
        raise ValueError(
            f"{name}: {named} takes metrics of the clients' work, which are no "
            "integers: put it beside the secure sum and not in it."
        )
    if stage.traits.has_sizes:
        raise ValueError(
            f"{name}: {named} notes sizes without a bound, for which a secure sum has "
            "no room: leave out what measures."
        )
    if stage.traits.is_secret:
        raise ValueError(f"{name}: the sum of {named} is a secure one already.")
