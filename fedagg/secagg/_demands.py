"""What a client asks of a plan before it takes part."""

import dataclasses
from typing import Any

from fedagg._aggregator import Aggregator
from fedagg._trees import checks
from fedagg._types import PyTree
from fedagg.secagg._degree import (
    Mode,
    at_most,
    check_adversary,
    corrupt_neighbours,
    is_connected,
)
from fedagg.secagg._errors import ContradictionError
from fedagg.secagg._plan import Plan
from fedagg.secagg._vectors import form_of


@dataclasses.dataclass(frozen=True)
class Demands:
    """What a client asks of a plan, which comes from a server, before it takes part.

    Bits and cohorts are those of the client's aggregator: of more bits than its own the
    sum tells what no guarantee covers, in more clients than the largest cohort it
    overflows, and in fewer than the smallest there is less noise.

    Raises:
        ValueError: for a demand that no plan could fail, or none could meet: a mode
            that there is not, a number out of range, a context of other than 32 bytes.

    Reference: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
        Overhead", 2020, section 3.
    """

    context: bytes  # `context_of` what the client was told
    bits: int  # of an entry
    smallest_cohort: int  # in a sum
    largest_cohort: int  # in a plan
    # As in `Plan.for_cohort`: a plan of a stricter mode will do too.
    adversary: float = 0.1
    mode: Mode = "semi-malicious"
    security: float = 40.0
    hybrid: bool = False  # demanded; a plan that is hybrid will always do

    def __post_init__(self):
        check_adversary(self.adversary, self.security, self.mode)
        checks.check_whole(1, 32, bits=self.bits)
        checks.check_whole(1, smallest_cohort=self.smallest_cohort)
        checks.check_whole(self.smallest_cohort, largest_cohort=self.largest_cohort)
        if type(self.context) is not bytes or len(self.context) != 32:
            raise ValueError(f"Expected context of 32 bytes, got {self.context!r}.")

    @classmethod
    def for_aggregator(
        cls,
        aggregator: Aggregator,
        template: PyTree,
        context: bytes,
        *,
        smallest_cohort: int = 2,
        **options: Any,
    ) -> "Demands":
        """What a client asks of a plan for a round of its aggregator.

        Args:
            aggregator: the round, as in `Plan.for_aggregator`.
            template: likewise.
            context: `context_of` what this client was told.
            smallest_cohort: the fewest clients in a sum, if more than the aggregator's.
            **options: adversary, mode, security and hybrid, as the fields above.

        Raises:
            ValueError: if a part of the message would be in the clear, or as above.
            TypeError: if `aggregator` is no Aggregator with a message.

        Reference: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
            Overhead", 2020, section 3.
        """
        form = form_of(aggregator, template)
        smallest = max(smallest_cohort, form.smallest_cohort)
        return cls(context, form.bits, smallest, form.largest_cohort, **options)

    def check(self, plan: Plan) -> None:
        """Passes for a plan that meets all demands.

        Args:
            plan: as offered.

        Raises:
            ContradictionError: if one is not met; it says which.
        """
        corrupt = at_most(self.adversary, plan.clients)
        for name, met in (
            ("as large as the largest cohort", plan.clients <= self.largest_cohort),
            (
                "with a quorum of the smallest cohort",
                plan.quorum >= self.smallest_cohort,
            ),
            ("with entries of as many bits", plan.bits == self.bits),
            ("for what the client was told", plan.context == self.context),
            ("that is hybrid", plan.hybrid or not self.hybrid),
            ("in which clients sign", plan.signed or self.mode != "signed"),
            (
                "in which two quorums share an honest client",
                2 * plan.quorum - plan.clients > corrupt or self.mode != "signed",
            ),
        ):
            if not met:
                raise ContradictionError(f"Expected a plan {name}, got {plan}.")
        least = corrupt_neighbours(plan.clients, plan.degree, corrupt, self.security)
        needed = least if self.mode == "semi-honest" else (plan.degree + least + 1) // 2
        removed = corrupt + plan.clients - plan.quorum
        if plan.threshold < needed or not is_connected(
            plan.clients, plan.degree, removed, self.security
        ):
            raise ContradictionError(
                f"Expected a degree and a threshold that bear {corrupt} corrupt of "
                f"{plan.clients} clients, got {plan}."
            )


class AnyPlan(Demands):
    """Takes any plan, for parties that are all in one process."""

    def __init__(self):
        super().__init__(bytes(32), 32, 2, 2)

    def check(self, plan: Plan) -> None:
        del plan
