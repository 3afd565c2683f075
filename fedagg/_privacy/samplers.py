"""Who is in a round, drawn so that an accountant may count on it.

`poisson(0.01)` is what amplification by sampling is mostly proven for, `cyclic(10)`
what banded matrix factorization is made for, `separated(10, size=100)` for clients who
rest between rounds.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks
from fedagg._trees.keys import as_key, key_of_round
from fedagg._types import PyTree

# More clients than a cohort has room for come with a chance of this, at most.
_OVERFLOW = 2.0**-40


class Cohort(NamedTuple):
    """Who is in a round. Secret, where the guarantee counts on sampling."""

    rows: jax.Array  # [room] int32, numbers of clients; any number where absent
    weights: jax.Array  # [room], one, or zero of an absent client


class SamplerState(NamedTuple):
    """What the next draw needs."""

    rounds: jax.Array  # [] uint32, so far
    turns: PyTree  # [clients] uint32, each one's turn in a cycle, or when it has rested


class Sampler(NamedTuple):
    """A way to draw cohorts, and what an accountant may know of it.

    A round of a cohort, in a loop over rounds::

        table = ClientTable.of([jnp.ones((i + 1, 3)) for i in range(20)])
        sampler, key = poisson(0.3), secret_key()
        state = sampler.init(len(table), key)
        state, (rows, present) = sampler.next(state, key)
        cohort = table[rows]
        weights = jnp.where(present > 0.0, cohort.sizes, 0)

    `rows` `[room]` are numbers of clients, `present` `[room]` ones and zeros: a row
    that fills up a cohort is of any client, with a zero.

    Attributes:
        init: `(clients, key) -> state`, from a number of clients.
        next: `(state, key) -> (state, Cohort)`, for `jit` and `scan` too. The key may
            be the same in each round, which draws from one of its own.
        rate: a client's chance to be in a round in which it may be.
        separation: rounds from one in which a client is to the next in which it may be.
        times: rounds that a client is in at most, or None.
        size: of every cohort, or None where it varies. Drawn at random if the rate is
            below one.
        by_client: whether who else is in a cohort does not depend on a client.
        sentence: how it prints.
    """

    init: Callable[[int, jax.Array], SamplerState]
    next: Callable[[SamplerState, jax.Array], tuple[SamplerState, Cohort]]
    rate: float = 1.0
    separation: int = 1
    times: int | None = None
    size: int | None = None
    by_client: bool = True
    sentence: str = "Sampler()"

    def participations(self, rounds: int) -> int:
        """The most of so many rounds that a client is in."""
        times = -(-rounds // self.separation)
        return times if self.times is None else min(times, self.times)

    def __repr__(self) -> str:
        return self.sentence


@prints_as_its_call
def poisson(rate: float, *, room: int | None = None) -> Sampler:
    """Each client is in each round by itself, with the same chance.

    Cohorts vary in size, and are filled up to `room` with absent clients. A cohort that
    is larger, which comes with a chance of 2**-40 where the room is not given, is left
    out whole: nobody is there. The chance is `rate` to 2**-32, and not above it.

    Args:
        rate: the chance, in (0, 1].
        room: rows of a cohort. None chooses them by the number of clients.

    Raises:
        ValueError: if an argument is out of range.

    Reference: Abadi et al., "Deep Learning with Differential Privacy", 2016, section 3.
    """
    return cyclic(1, rate, room=room)


@prints_as_its_call
def cyclic(period: int, rate: float = 1.0, *, room: int | None = None) -> Sampler:
    """Clients come in turn, each in one round of a period, with some chance.

    Whose turn it is when is drawn at the beginning, for each client by itself and not
    by its position, so that nobody moves up where somebody leaves. Cohorts vary in size
    and are filled up as those of `poisson`, which is a period of one.

    Args:
        period: rounds from one turn of a client to the next.
        rate: the chance that it takes its turn, in (0, 1].
        room: rows of a cohort. None chooses them by the number of clients.

    Raises:
        ValueError: if an argument is out of range.

    Reference: Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A
        Unified Approach to Private Training", 2023, algorithm 2.
    """
    checks.check_whole(1, 2**31 - 1, period=period)
    checks.check_within("(0, 1]", rate=rate)
    if room is not None:
        checks.check_whole(1, room=room)
    threshold = jnp.uint32(min(math.floor(rate * 2.0**32), 2**32 - 1))

    def init(clients: int, key: jax.Array) -> SamplerState:
        checks.check_whole(1, clients=clients)
        turns = jax.random.randint(_checked(key), (clients,), 0, period).astype(
            jnp.uint32
        )
        return SamplerState(jnp.uint32(0), turns)

    def next(state: SamplerState, key: jax.Array) -> tuple[SamplerState, Cohort]:
        clients = state.turns.size
        comes = state.turns == state.rounds % period
        if rate < 1.0:
            own = key_of_round(_checked(key), state.rounds)
            comes &= jax.random.bits(own, (clients,), jnp.uint32) < threshold
        size = room_for(clients, rate / period) if room is None else room
        (rows,) = jnp.nonzero(comes, size=size, fill_value=0)
        count = jnp.sum(comes, dtype=jnp.int32)
        here = (jnp.arange(size) < count) & (count <= size)
        state = state._replace(rounds=state.rounds + 1)
        return state, Cohort(rows.astype(jnp.int32), here.astype(jnp.float32))

    return Sampler(init, next, float(rate), int(period))


@prints_as_its_call
def fixed_size(size: int, clients: int) -> Sampler:
    """As many clients in each round, drawn from all without replacement.

    Args:
        size: of a cohort.
        clients: how many there are, which is public.

    Raises:
        ValueError: if an argument is out of range; in `init`, for other `clients`.

    Reference: Wang, Balle and Kasiviswanathan, "Subsampled Rényi Differential Privacy
        and Analytical Moments Accountant", 2019, theorem 9.
    """
    checks.check_whole(1, clients=clients)
    checks.check_whole(1, clients, size=size)
    sampler = separated(1, size=size)

    def init(n: int, key: jax.Array) -> SamplerState:
        checks.check_whole(clients, clients, clients=n)
        return sampler.init(n, key)

    return sampler._replace(init=init, rate=size / clients)


@prints_as_its_call
def separated(separation: int, *, size: int, times: int | None = None) -> Sampler:
    """As many clients in each round, drawn from those who have rested.

    A client that was in a round may be in one `separation` rounds later, and in none
    between. Nothing is gained from the draw, so that the guarantee holds for clients
    who come by themselves too, as long as they rest. Where too few have rested, some of
    a cohort are absent.

    Args:
        separation: rounds from one participation of a client to the next, at least.
        size: of a cohort.
        times: rounds that a client is in at most: the run ends before, or is for fewer
            rounds. None stands for as many as the separation allows.

    Raises:
        ValueError: if an argument is out of range; in `init`, for fewer clients than a
            cohort has.

    Reference: Kairouz et al., "Practical and Private (Deep) Learning without Sampling
        or Shuffling", 2021, section 5.
    """
    checks.check_whole(1, 2**31 - 1, separation=separation)
    checks.check_whole(1, size=size)
    if times is not None:
        checks.check_whole(1, times=times)

    def init(clients: int, key: jax.Array) -> SamplerState:
        del key
        checks.check_whole(size, clients=clients)
        return SamplerState(jnp.uint32(0), jnp.zeros((clients, 2), jnp.uint32))

    def next(state: SamplerState, key: jax.Array) -> tuple[SamplerState, Cohort]:
        rested, seen = state.turns[:, 0], state.turns[:, 1]
        may = rested <= state.rounds
        if times is not None:
            may &= seen < times
        own = key_of_round(_checked(key), state.rounds)
        order = jax.random.permutation(own, may.size)
        # Those who may come first, in the order drawn.
        rows = order[jnp.argsort(~may[order], stable=True)][:size]
        here = may[rows]
        after = jnp.stack(
            [
                jnp.where(here, state.rounds + jnp.uint32(separation), rested[rows]),
                seen[rows] + here.astype(jnp.uint32),
            ],
            axis=1,
        )
        state = SamplerState(state.rounds + 1, state.turns.at[rows].set(after))
        return state, Cohort(rows.astype(jnp.int32), here.astype(jnp.float32))

    return Sampler(init, next, 1.0, int(separation), times, int(size), by_client=False)


def _checked(key: Any) -> jax.Array:
    return checks.check_key(as_key(key), "a sampler", "cohorts")


def room_for(clients: int, rate: float) -> int:
    """Rows in which a cohort of independent draws fits, but for a chance of 2**-40.

    Reference: Boucheron, Lugosi and Massart, "Concentration Inequalities", 2013,
        section 2.8 (Bernstein's inequality).
    """
    mean, log = clients * rate, -math.log(_OVERFLOW)
    beyond = log / 3.0 + math.sqrt(log**2 / 9.0 + 2.0 * log * mean * (1.0 - rate))
    return min(clients, math.ceil(mean + beyond))
