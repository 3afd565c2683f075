"""Published algorithms of federated training, each a function of public parts.

Every one returns a training, as `federated_averaging` does: `state = init(model)`, and
`next(state, client_data, weights, key)`. Where clients remember, client data are a pair
`(client_data, numbers)`.
"""

from fedagg.algorithms._clustered import ifca
from fedagg.algorithms._diloco import diloco
from fedagg.algorithms._fair import agnostic, q_fedavg
from fedagg.algorithms._feddyn import feddyn
from fedagg.algorithms._fednova import fednova
from fedagg.algorithms._layers import fedrep, personal_layers
from fedagg.algorithms._lora import fedex_lora
from fedagg.algorithms._mime import mime_lite
from fedagg.algorithms._personal import apfl, ditto
from fedagg.algorithms._reconstruction import fedrecon
from fedagg.algorithms._scaffold import scaffold

__all__ = [
    "agnostic",
    "apfl",
    "diloco",
    "ditto",
    "feddyn",
    "fedex_lora",
    "fednova",
    "fedrecon",
    "fedrep",
    "ifca",
    "mime_lite",
    "personal_layers",
    "q_fedavg",
    "scaffold",
]
