"""Any aggregator of fedagg in a Flower deployment: a strategy, and a mod for clients.

`FedAgg` is a strategy of Flower's server, `fedagg_mod` what makes messages of what its
clients trained. Needs the extra `flower`: `pip install 'fedagg[flower]'`.
"""

from fedagg.flower._mod import fedagg_mod
from fedagg.flower._strategy import FedAgg

__all__ = ["FedAgg", "fedagg_mod"]
