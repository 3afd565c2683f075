"""What all parties of a round know and agree on."""

import dataclasses
import secrets
from typing import Any

from fedagg._aggregator import Aggregator
from fedagg._types import PyTree
from fedagg.secagg._degree import Bounds, Mode, pick
from fedagg.secagg._fields import MOST_CLIENTS, Fields
from fedagg.secagg._vectors import form_of


@dataclasses.dataclass(frozen=True)
class Plan(Fields):
    """A round: its clients, their vectors, the graph of neighbours, the thresholds.

    Public, and the same for all. Clients are numbered from zero. A plan is for
    one round: `renewed` gives the next one. Make it by `Plan.for_cohort`, or by
    `Plan.complete` for the graph of Bonawitz et al. 2017.

    Raises:
        ValueError: if a number is out of range, or if in a signed plan two quorums, or
            two groups that open a client's secrets, may have no client in common.
    """

    @classmethod
    def for_aggregator(
        cls,
        aggregator: Aggregator,
        template: PyTree,
        clients: int,
        context: bytes,
        *,
        smallest_cohort: int = 2,
        complete: bool = False,
        **options: Any,
    ) -> "Plan":
        """A plan for a round of an aggregator, of which the server sees sums alone.

        Length, bits and the largest cohort are those of the aggregator's secure sum,
        and the smallest cohort is at least that which its noise is calibrated to.
        `vector_of` makes a client's message a vector of such a plan.

        Args:
            aggregator: the round, `secure_aggregator()` say.
            template: one client's value, arrays or `jax.ShapeDtypeStruct`; of a
                training, the model.
            clients: how many there are.
            context: 32 bytes, `context_of` what clients were told.
            smallest_cohort: the fewest clients in a sum, if more than the aggregator's.
            complete: whether all clients are neighbours, as in `Plan.complete`.
            **options: what else `for_cohort` takes, number, mode, dropout and so on, or
                `Plan.complete`, number, threshold, signed.

        Raises:
            ValueError: if a part of the message would be in the clear, with its name;
                if there are more clients than the sum has room for; and as `for_cohort`
                and `Plan.complete` do.
            TypeError: if `aggregator` is no Aggregator with a message.

        Reference: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
            Overhead", 2020, section 3.
        """
        form = form_of(aggregator, template)
        if clients > form.largest_cohort:
            raise ValueError(
                f"Expected at most {form.largest_cohort} clients, for which the "
                f"aggregator's sum has room, got {clients=}."
            )
        smallest = max(smallest_cohort, form.smallest_cohort)
        make = cls.complete if complete else cls.for_cohort
        sizes = clients, form.length, form.bits
        return make(*sizes, context, smallest_cohort=smallest, **options)

    @classmethod
    def for_cohort(
        cls,
        clients: int,
        length: int,
        bits: int,
        context: bytes,
        *,
        number: int = 0,
        smallest_cohort: int = 2,
        dropout: float = 0.1,
        adversary: float = 0.1,
        security: float = 40.0,
        failure: float = 2.0**-20,
        mode: Mode = "semi-malicious",
        hybrid: bool = False,
    ) -> "Plan":
        """A plan with the least degree that keeps inputs private and rounds alive.

        But for a probability of 2 ** -security, no client's neighbours who collude with
        the server can open its secrets, and the clients that are left hang together.
        But for a probability of `failure`, the secrets of all can be opened when a
        round ends. Both hold for a graph that is drawn independently of who is corrupt
        and of who drops out. If more drop out than `dropout`, or fewer than
        `smallest_cohort` are left, the round ends in an error. Session and seed are
        fresh.

        Args:
            clients: how many there are.
            length: entries of a vector.
            bits: of an entry, as many as the aggregator's sum has.
            context: 32 bytes, `context_of` what clients were told.
            number: of the round.
            smallest_cohort: the fewest clients in a sum. Noise of clients is calibrated
                to it.
            dropout: the largest fraction of clients that drop out.
            adversary: the largest fraction of clients that collude with the server.
            security: bits of statistical security.
            failure: of the round, though not too many drop out.
            mode: "semi-malicious" takes a threshold at which no two groups of
                neighbours open two secrets of one client. "semi-honest" is cheaper, and
                only for where all follow the protocol. "signed" has a round in which
                clients sign who survived; this alone is for a server that lies.
            hybrid: whether clients agree on keys by X25519 and ML-KEM-768 together, so
                that who breaks one of the two opens nothing of a recorded round.

        Raises:
            ValueError: if no graph does, or an argument is out of range.

        Reference: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic
            Overhead", 2020, section 3.
        """
        if not 2 <= clients <= MOST_CLIENTS:
            raise ValueError(f"Expected 2 to {MOST_CLIENTS} clients, got {clients=}.")
        bounds = Bounds(dropout, adversary, security, failure, mode)
        degree, threshold, quorum = pick(clients, bounds)
        return cls(
            *(clients, length, bits, degree, threshold),
            max(quorum, smallest_cohort),
            *(mode == "signed", number, context),
            *_fresh(),
            hybrid,
        )

    @classmethod
    def complete(
        cls,
        clients: int,
        length: int,
        bits: int,
        context: bytes,
        *,
        number: int = 0,
        smallest_cohort: int = 2,
        threshold: int | None = None,
        signed: bool = False,
        hybrid: bool = False,
    ) -> "Plan":
        """A plan in which all are neighbours. Session and seed are fresh.

        Args:
            clients: how many there are.
            length: entries of a vector.
            bits: of an entry, as many as the aggregator's sum has.
            context: 32 bytes, `context_of` what clients were told.
            number: of the round.
            smallest_cohort: the fewest clients in a sum. More than the threshold are
                anyway.
            threshold: by default one more than two thirds of a client's neighbours,
                which holds against a third of them that lie together with the server.
            signed: whether clients sign their keys, and who survived.
            hybrid: as in `for_cohort`.

        Raises:
            ValueError: if an argument is out of range.

        Reference: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving
            Machine Learning", 2017, figure 4.
        """
        if clients < 2:
            raise ValueError(f"Expected at least two clients, got {clients=}.")
        degree = clients - 1
        threshold = 2 * degree // 3 + 1 if threshold is None else threshold
        shared = (clients + degree // 3) // 2 + 1 if signed else 2
        quorum = max(shared, threshold + 1, smallest_cohort)
        return cls(
            *(clients, length, bits, degree, threshold, quorum, signed),
            *(number, context),
            *_fresh(),
            hybrid,
        )

    def renewed(self, context: bytes) -> "Plan":
        """The same plan for the next round, with a session and a seed of its own.

        Args:
            context: 32 bytes, `context_of` what clients were told for that round.
        """
        new = dict(zip(("session", "graph_seed"), _fresh(), strict=True))
        number = self.number + 1
        return dataclasses.replace(self, number=number, context=context, **new)


def _fresh() -> tuple[bytes, bytes]:
    """A session and a seed."""
    return secrets.token_bytes(32), secrets.token_bytes(32)
