"""ByzFL: clients as one matrix, a row each. It has no sum, weights or zeroing.

Its functions take NumPy arrays and torch tensors, so there is a row for each. It knows
no trees, so there are rows for one leaf only. `Clipping` writes to what it is given.
"""

import importlib
from collections.abc import Iterator

from benchmarks.peers.rounds import Clients, Round


def rounds(clients: Clients) -> Iterator[Round]:
    byzfl = importlib.import_module("byzfl")
    torch = importlib.import_module("torch")
    if len(clients.updates[0]) > 1:
        return
    clip, average = byzfl.Clipping(c=1.0), byzfl.Average()
    for form, matrix, copy in (
        ("torch", torch.tensor(clients.stack), torch.clone),
        ("NumPy", clients.stack, lambda stack: stack.copy()),
    ):
        yield Round(
            "clipped mean",
            f"Clipping, Average ({form})",
            lambda matrix: average(clip(matrix)),
            matrix,
            copy,
        )
        yield Round("median", f"Median ({form})", byzfl.Median(), matrix)
