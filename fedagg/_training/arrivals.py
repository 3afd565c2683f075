"""A clock of clients that train side by side, and who of them comes back first.

It knows nothing of models: who is drawn, for how long each is away, and at how old a
version it began. Times are in seconds from the last step of the server, so that a long
run does not wear out float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedagg._trees.buffers import told

# Ends in vain, of clients lost or too late, for each place, until a step waits no more.
_PATIENCE = 100
_BLOCK = 128


class Slots(NamedTuple):
    """Who is away, and since when. A slot is free or holds one client."""

    client: jax.Array  # [m] int32, its number; any where the slot is free
    version: jax.Array  # [m] int32, the step after which it began
    end: jax.Array  # [m] float32, when it comes back or is given up; free: infinite
    is_taken: jax.Array  # [m] bool
    is_lost: jax.Array  # [m] bool, whether it does not come back


class Clock(NamedTuple):
    """What the next step needs."""

    number: jax.Array  # [] int32, steps so far
    slots: Slots
    last: jax.Array  # [clients] int32, the step each was in last; else far behind


class Arrivals(NamedTuple):
    """Who is in a step."""

    clients: jax.Array  # [k] int32, in the order in which they came back
    versions: jax.Array  # [k] int32
    count: jax.Array  # [] int32, how many there are; the rest of the rows are of nobody
    seconds: jax.Array  # [] float32 since the last step
    lost: jax.Array  # [] int32, given up
    too_stale: jax.Array  # [] int32, came back too late


class Rules(NamedTuple):
    """How clients are drawn and waited for, as `buffered_averaging` says."""

    clients: int
    buffer: int
    concurrency: int
    duration: Callable[[jax.Array, jax.Array], Any]
    max_staleness: int
    separation: int
    timeout: float


class _Step(NamedTuple):
    """A step under way."""

    slots: Slots
    last: jax.Array
    found: Arrivals
    turns: jax.Array  # [] int32, of sending one out or taking one back
    ends: jax.Array  # [] int32, how many were taken back, or given up
    is_over: jax.Array  # [] bool, as nobody is to come


def first_clock(rules: Rules) -> Clock:
    """Nobody is away yet."""
    m = rules.concurrency
    return Clock(  # each array another one, which may be donated
        jnp.int32(0),
        Slots(
            jnp.zeros(m, jnp.int32),
            jnp.zeros(m, jnp.int32),
            jnp.full(m, jnp.inf, jnp.float32),
            jnp.zeros(m, jnp.bool_),
            jnp.zeros(m, jnp.bool_),
        ),
        jnp.full(rules.clients, -rules.separation, jnp.int32),
    )


def next_arrivals(
    rules: Rules, clock: Clock, may_come: jax.Array, key: jax.Array
) -> tuple[Clock, Arrivals]:
    """Waits for a buffer of clients, and sends others out meanwhile.

    Who comes back at the same instant is taken before anybody is sent out at it: a
    client that begins when the server steps has the new model.
    """
    number, limit = clock.number, _PATIENCE * (rules.buffer + rules.concurrency)

    # As numbers, since `vmap` over a branch hands a key to it twice.
    data, kind = jax.random.key_data(key), jax.random.key_impl(key)

    def key_of(turns: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.wrap_key_data(data, impl=kind), turns)

    def goes_on(step: _Step) -> jax.Array:
        is_full = step.found.count >= rules.buffer
        return ~is_full & (step.ends < limit) & ~step.is_over

    def turn(step: _Step) -> _Step:
        slots = step.slots
        whose = jnp.where(slots.is_taken, slots.client, rules.clients)
        is_away = jnp.zeros(rules.clients, jnp.bool_).at[whose].set(True, mode="drop")
        may = may_come & ~is_away & (number - step.last >= rules.separation)
        moves_on = jnp.min(slots.end) > step.found.seconds
        step = step._replace(turns=step.turns + 1)
        return jax.lax.cond(
            moves_on & jnp.any(may) & ~jnp.all(slots.is_taken),
            lambda: _sent_out(rules, step, may, number, key_of(step.turns)),
            lambda: _taken_back(rules, step, number),
        )

    nobody, none = jnp.zeros(rules.buffer, jnp.int32), jnp.int32(0)
    found = Arrivals(nobody, nobody + number, none, jnp.float32(0.0), none, none)
    first = _Step(clock.slots, clock.last, found, none, none, jnp.bool_(False))
    step = jax.lax.while_loop(goes_on, turn, first)
    slots = step.slots._replace(end=step.slots.end - step.found.seconds)
    return Clock(number + 1, slots, step.last), step.found


def _sent_out(
    rules: Rules, step: _Step, may: jax.Array, number: jax.Array, key: jax.Array
) -> _Step:
    """One of those who may come takes a free slot."""
    slots, (draw, own) = step.slots, jax.random.split(key)
    count = jnp.sum(may, dtype=jnp.int32)
    client = _place_of(jax.random.randint(draw, (), 0, count), may)
    seconds = told("duration", rules.duration, client, own)
    # What is not a number, or below zero, is no duration: that client is lost.
    comes = (seconds >= 0.0) & (seconds < jnp.inf) & (seconds <= rules.timeout)
    until = step.found.seconds + jnp.where(comes, seconds, rules.timeout)
    i = jnp.argmin(slots.is_taken)
    slots = Slots(
        slots.client.at[i].set(client),
        slots.version.at[i].set(number),
        slots.end.at[i].set(until),
        slots.is_taken.at[i].set(True),
        slots.is_lost.at[i].set(~comes),
    )
    return step._replace(slots=slots)


def _place_of(nth: jax.Array, true: jax.Array) -> jax.Array:
    """The place of the nth, from zero, that is true, as int32."""
    # By blocks, since a running sum over many is slow on a CPU.
    blocks = jnp.pad(true, (0, -true.size % _BLOCK)).reshape(-1, _BLOCK)
    in_block = jnp.sum(blocks, axis=1, dtype=jnp.int32)
    upto = jnp.cumsum(in_block, dtype=jnp.int32)
    i = jnp.argmax(upto > nth).astype(jnp.int32)
    here = upto[i] - in_block[i] + jnp.cumsum(blocks[i], dtype=jnp.int32)
    return i * _BLOCK + jnp.argmax(here > nth).astype(jnp.int32)


def _taken_back(rules: Rules, step: _Step, number: jax.Array) -> _Step:
    """The next one is in the buffer, or given up. If there is none it is over."""
    slots, found = step.slots, step.found
    i = jnp.argmin(slots.end)
    ends = jnp.isfinite(slots.end[i])
    is_late = number - slots.version[i] > rules.max_staleness
    is_lost = slots.is_lost[i]
    counts = ends & ~is_lost & ~is_late
    # Rows of who does not count are written to a place that there is not.
    at = jnp.where(counts, found.count, rules.buffer)
    whose = jnp.where(counts, slots.client[i], rules.clients)
    return step._replace(
        slots=slots._replace(
            end=slots.end.at[i].set(jnp.inf),
            is_taken=slots.is_taken.at[i].set(slots.is_taken[i] & ~ends),
        ),
        last=step.last.at[whose].set(number, mode="drop"),
        found=Arrivals(
            found.clients.at[at].set(slots.client[i], mode="drop"),
            found.versions.at[at].set(slots.version[i], mode="drop"),
            found.count + jnp.int32(counts),
            jnp.where(ends, slots.end[i], found.seconds),
            found.lost + jnp.int32(ends & is_lost),
            found.too_stale + jnp.int32(ends & ~is_lost & is_late),
        ),
        ends=step.ends + 1,
        is_over=~ends,
    )
