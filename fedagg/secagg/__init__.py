"""Secure aggregation: a server learns the sum of clients' vectors, and no vector.

SecAgg+ of Bell et al. 2020, with that of Bonawitz et al. 2017 as the complete graph.
`Client` and `Server` take bytes and give bytes, over any transport; `simulate` runs all
in one process. SECURITY.md says what this protects from whom, and what not. Needs the
extra `secagg`: `pip install 'fedagg[secagg]'`.
"""

from fedagg.secagg._client import Client
from fedagg.secagg._context import context_of
from fedagg.secagg._demands import Demands
from fedagg.secagg._errors import (
    ContradictionError,
    MalformedMessageError,
    NotAuthenticError,
    ProtocolError,
    RecoveryError,
    TooFewClientsError,
    WrongMessageError,
    WrongStepError,
)
from fedagg.secagg._identity import generate_identity
from fedagg.secagg._ledger import Ledger
from fedagg.secagg._plan import Plan
from fedagg.secagg._server import Server
from fedagg.secagg._simulation import simulate
from fedagg.secagg._vectors import total_of, vector_of

__all__ = [
    "Client",
    "ContradictionError",
    "Demands",
    "Ledger",
    "MalformedMessageError",
    "NotAuthenticError",
    "Plan",
    "ProtocolError",
    "RecoveryError",
    "Server",
    "TooFewClientsError",
    "WrongMessageError",
    "WrongStepError",
    "context_of",
    "generate_identity",
    "simulate",
    "total_of",
    "vector_of",
]
