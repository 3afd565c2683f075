"""Federated aggregation in JAX: many clients' updates into one.

An aggregator is a pair of pure functions, `init` and `next`, made of stages: what each
client computes, a sum over clients, and what the server makes of the sum.
"""

from fedagg._accounting import epsilon, noise_multiplier_for
from fedagg._aggregator import aggregator
from fedagg._bounding import clipping, zeroing
from fedagg._bounds import quantile_bound
from fedagg._chain import chain
from fedagg._cost import elias_gamma, with_distortion
from fedagg._discrete_gaussian import (
    discrete_gaussian_curve,
    discrete_gaussian_noise,
)
from fedagg._discretization import discretization
from fedagg._eden import drive, eden
from fedagg._elias_gamma import (
    elias_gamma_bits,
    elias_gamma_decode,
    elias_gamma_encode,
)
from fedagg._execution import across, at_once, in_chunks
from fedagg._feedback import with_error_feedback
from fedagg._gaussian import adaptive_gaussian_noise, gaussian_noise
from fedagg._local_noise import local_gaussian_noise
from fedagg._local_training import linen_loss, local_training, nnx_loss
from fedagg._matrix_factorization import matrix_factorization_noise
from fedagg._mean import mean
from fedagg._median import median
from fedagg._message import message_bits
from fedagg._modular_clipping import modular_clipping
from fedagg._quantization import qsgd, quantization, terngrad
from fedagg._recipes import (
    compression_aggregator,
    distributed_dp_aggregator,
    dp_aggregator,
    robust_aggregator,
    secure_aggregator,
)
from fedagg._rotation import rotation
from fedagg._secure_sum import secure_modular_sum, secure_sum
from fedagg._sign import sign
from fedagg._skellam import skellam_curve, skellam_noise
from fedagg._sparsification import random_k, top_k
from fedagg._training import federated_averaging, pad_clients
from fedagg._tree_noise import (
    adaptive_tree_noise,
    tree_noise,
    tree_noise_multiplier,
)
from fedagg._types import Aggregator, Bound, Output, Rule, Stage, Update
from fedagg._view import server_view

__all__ = [
    "Aggregator",
    "Bound",
    "Output",
    "Rule",
    "Stage",
    "Update",
    "across",
    "adaptive_gaussian_noise",
    "adaptive_tree_noise",
    "aggregator",
    "at_once",
    "chain",
    "clipping",
    "compression_aggregator",
    "discrete_gaussian_curve",
    "discrete_gaussian_noise",
    "discretization",
    "distributed_dp_aggregator",
    "dp_aggregator",
    "drive",
    "eden",
    "elias_gamma",
    "elias_gamma_bits",
    "elias_gamma_decode",
    "elias_gamma_encode",
    "epsilon",
    "federated_averaging",
    "gaussian_noise",
    "in_chunks",
    "linen_loss",
    "local_gaussian_noise",
    "local_training",
    "matrix_factorization_noise",
    "mean",
    "median",
    "message_bits",
    "modular_clipping",
    "nnx_loss",
    "noise_multiplier_for",
    "pad_clients",
    "qsgd",
    "quantile_bound",
    "quantization",
    "random_k",
    "robust_aggregator",
    "rotation",
    "secure_aggregator",
    "secure_modular_sum",
    "secure_sum",
    "server_view",
    "sign",
    "skellam_curve",
    "skellam_noise",
    "terngrad",
    "top_k",
    "tree_noise",
    "tree_noise_multiplier",
    "with_distortion",
    "with_error_feedback",
    "zeroing",
]
