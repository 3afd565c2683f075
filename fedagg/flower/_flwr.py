"""All that is used of Flower."""

try:
    from flwr.app import (
        ArrayRecord,
        ConfigRecord,
        Context,
        Message,
        MessageType,
        MetricRecord,
        RecordDict,
    )
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import FedAvg, Result
except ImportError as error:
    raise ImportError(
        "fedagg.flower needs Flower: pip install 'fedagg[flower]'."
    ) from error

__all__ = [
    "ArrayRecord",
    "ConfigRecord",
    "Context",
    "FedAvg",
    "Grid",
    "Message",
    "MessageType",
    "MetricRecord",
    "RecordDict",
    "Result",
]
