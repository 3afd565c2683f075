"""Some coordinates of all clients, where others are on other devices.

Sums over coordinates, squares of norms and inner products, are then added up over
devices. What looks at each coordinate apart needs nothing of the others.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from fedagg._types import Output, PyTree, Rule, Update


class Share(NamedTuple):
    """What a rule asks of the other shares."""

    add: Callable[[jax.Array], jax.Array]  # the sum over all shares
    cut: Callable[[PyTree], PyTree]  # of one client's whole tree, this share
    join: Callable[[PyTree], PyTree]  # the inverse


def _same(x: PyTree) -> PyTree:
    return x


WHOLE = Share(_same, _same, _same)  # all coordinates are here


def rule_of_shares(
    init: Callable[[PyTree], PyTree],
    combine_share: Callable[[PyTree, Update, jax.Array | None, Share], Output],
) -> Rule:
    """A rule that works on a share of the coordinates, and so on all of them."""

    def combine(state: PyTree, updates: Update, key: jax.Array | None) -> Output:
        return combine_share(state, updates, key, WHOLE)

    return Rule(init, combine, combine_share=combine_share)


def mixed_before(
    rule: Rule,
    mix: Callable[[Update, jax.Array | None, Share], tuple[Update, jax.Array | None]],
) -> Rule:
    """A rule of what `mix` makes of the clients, and of the key that it leaves."""

    def mixed(updates: Update, key: jax.Array | None, share: Share):
        updates, key = mix(updates, key, share)
        # As in `combining`: the same bits, wherever the rule reads them.
        return jax.lax.optimization_barrier(updates), key

    def combine(state: PyTree, updates: Update, key: jax.Array | None) -> Output:
        return rule.combine(state, *mixed(updates, key, WHOLE))

    of_share = rule.combine_share
    if of_share is None:
        return Rule(rule.init, combine)

    def combine_share(
        state: PyTree, updates: Update, key: jax.Array | None, share: Share
    ) -> Output:
        return of_share(state, *mixed(updates, key, share), share)

    return Rule(rule.init, combine, combine_share=combine_share)
