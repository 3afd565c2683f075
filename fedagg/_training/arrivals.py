"""A clock of clients that train side by side, and who of them comes back first.

It knows nothing of models: who is drawn, for how long each is away, and at how old a
version it began. Times are in seconds from the last step of the server, so that a long
run does not wear out float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Ends in vain, of clients lost or too late, for each place, until a step waits no more.
_PATIENCE = 100


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
    ends: jax.Array  # [] int32, of slots so far
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

    def goes_on(step: _Step) -> jax.Array:
        is_full = step.found.count >= rules.buffer
        return ~is_full & (step.ends < limit) & ~step.is_over

    def end_of_one(step: _Step) -> _Step:
        now = step.found.seconds
        moves_on = jnp.min(step.slots.end) > now
        slots = jax.lax.cond(
            moves_on & ~jnp.all(step.slots.is_taken),
            lambda: _sent_out(
                rules, step, may_come, number, jax.random.fold_in(key, step.ends)
            ),
            lambda: step.slots,
        )
        i = jnp.argmin(slots.end)
        ends = jnp.isfinite(slots.end[i])
        is_late = number - slots.version[i] > rules.max_staleness
        is_lost = slots.is_lost[i]
        counts = ends & ~is_lost & ~is_late
        # Rows of who does not count are written to a place that there is not.
        at = jnp.where(counts, step.found.count, rules.buffer)
        whose = jnp.where(counts, slots.client[i], rules.clients)
        found = Arrivals(
            step.found.clients.at[at].set(slots.client[i], mode="drop"),
            step.found.versions.at[at].set(slots.version[i], mode="drop"),
            step.found.count + jnp.int32(counts),
            jnp.where(ends, slots.end[i], now),
            step.found.lost + jnp.int32(ends & is_lost),
            step.found.too_stale + jnp.int32(ends & ~is_lost & is_late),
        )
        slots = slots._replace(
            end=slots.end.at[i].set(jnp.inf),
            is_taken=slots.is_taken.at[i].set(slots.is_taken[i] & ~ends),
        )
        last = step.last.at[whose].set(number, mode="drop")
        return _Step(slots, last, found, step.ends + 1, ~ends)

    nobody, none = jnp.zeros(rules.buffer, jnp.int32), jnp.int32(0)
    found = Arrivals(nobody, nobody + number, none, jnp.float32(0.0), none, none)
    first = _Step(clock.slots, clock.last, found, none, jnp.bool_(False))
    step = jax.lax.while_loop(goes_on, end_of_one, first)
    slots = step.slots._replace(end=step.slots.end - step.found.seconds)
    return Clock(number + 1, slots, step.last), step.found


def _sent_out(
    rules: Rules, step: _Step, may_come: jax.Array, number: jax.Array, key: jax.Array
) -> Slots:
    """The slots, with clients in those that were free, as far as there are any."""
    slots, last, now = step.slots, step.last, step.found.seconds
    draw, durations = jax.random.split(key)
    whose = jnp.where(slots.is_taken, slots.client, rules.clients)
    is_away = jnp.zeros(rules.clients, jnp.bool_).at[whose].set(True, mode="drop")
    may = may_come & ~is_away & (number - last >= rules.separation)
    # The free slots in their order take the clients in the order drawn.
    order = jax.random.permutation(draw, rules.clients)
    order = order[jnp.argsort(~may[order], stable=True)]
    turn = jnp.cumsum(~slots.is_taken, dtype=jnp.int32) - 1
    takes = ~slots.is_taken & (turn < jnp.sum(may, dtype=jnp.int32))
    drawn = order[jnp.clip(turn, 0, rules.clients - 1)].astype(jnp.int32)
    keys = jax.random.split(durations, rules.concurrency)
    seconds = jax.vmap(rules.duration)(drawn, keys)
    seconds = jnp.asarray(seconds).astype(jnp.float32)
    # What is not a number, or below zero, is no duration: that client is lost.
    comes = (seconds >= 0.0) & (seconds < jnp.inf) & (seconds <= rules.timeout)
    until = now + jnp.where(comes, seconds, rules.timeout)
    return Slots(
        jnp.where(takes, drawn, slots.client),
        jnp.where(takes, number, slots.version),
        jnp.where(takes, until, slots.end),
        slots.is_taken | takes,
        jnp.where(takes, ~comes, slots.is_lost),
    )
