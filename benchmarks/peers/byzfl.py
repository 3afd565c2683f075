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
        yield Round("trimmed mean", f"TrMean ({form})", byzfl.TrMean(1), matrix)
        yield Round("mean around median", f"Meamed ({form})", byzfl.Meamed(1), matrix)
        yield Round("Krum", f"Krum ({form})", byzfl.Krum(1), matrix)
        yield Round("multi-Krum", f"MultiKrum ({form})", byzfl.MultiKrum(1), matrix)
        yield Round(
            "centered clipping",
            f"CenteredClipping ({form})",
            lambda matrix: byzfl.CenteredClipping(tau=1.0)(matrix),
            matrix,
        )
