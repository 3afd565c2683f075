"""What server and clients find in each other's messages, beside the model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedagg import secagg
from fedagg._aggregator import Aggregator
from fedagg.flower._flwr import ArrayRecord, ConfigRecord, RecordDict

KEY = "fedagg"  # of the record that has what is ours


def arrays_of(record: ArrayRecord) -> list[np.ndarray]:
    """A model, in the order of its record."""
    return [x.numpy() for x in record.values()]


def content_of(**ours: Any) -> RecordDict:
    """A message's content that is ours alone."""
    return RecordDict({KEY: ConfigRecord(ours)})


def is_secure(aggregator: Aggregator) -> bool:
    """Whether its sums are to be secure, so that messages are masked."""
    return aggregator.stage is not None and aggregator.stage.traits.is_secret


def context_of(cohort: Sequence[int], content: RecordDict, told: bytes) -> bytes:
    """What a plan is bound to: which nodes there are, and all that they were told.

    That is the model, with its names, shapes and dtypes, what else an app is told, a
    rate say, and what the aggregator broadcasts.
    """
    nodes = [node.to_bytes(8) for node in cohort]
    plain = {**content.config_records, **content.metric_records}
    options = [(x, sorted(plain[x].items())) for x in sorted(plain) if x != KEY]
    arrays = content.array_records
    found = [(x, name, y) for x in sorted(arrays) for name, y in arrays[x].items()]
    forms = [(x, name, y.dtype, [*y.shape], y.stype) for x, name, y in found]
    written = repr((options, forms)).encode()
    return secagg.context_of(nodes, told, written, *(y.data for *_, y in found))
