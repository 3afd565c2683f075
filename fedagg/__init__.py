"""Federated aggregation in JAX: many clients' updates into one.

An aggregator is a pair of pure functions, `init` and `next`, made of stages: what each
client computes, a sum over clients, and what the server makes of the sum. There are

- rounds: `aggregator`, `combining`, `chain`, `grouped`, `with_error_feedback`
- a look into them: `with_measurements`, `with_sample`, `MetricsWriter`, `read_metrics`,
  `plot_metrics`, `message_bits`
- recipes: `robust_aggregator`, `compression_aggregator`, `secure_aggregator`,
  `dp_aggregator`, `distributed_dp_aggregator`
- bounds: `mean`, `zeroing`, `clipping`, `quantile_bound`
- rules where clients lie: `median`, `trimmed_mean`, `mean_around_median`, `krum`,
  `multi_krum`, `bulyan`, `minimum_diameter`, `smea`, `caf`, `geometric_median`,
  `centered_clipping`; before them `nearest_neighbor_mixing`, `bucketing`,
  `adaptive_robust_clipping`; `fedagg.attacks` has what liars send
- fewer bits: `quantization`, `qsgd`, `terngrad`, `sign`, `top_k`, `random_k`, `eden`,
  `drive`, `rotation`, `discretization`, `elias_gamma`, `with_distortion`
- privacy: `gaussian_noise`, `tree_noise`, `banded_noise`, `toeplitz_noise`,
  `matrix_factorization_noise`; with a clip that is learnt `adaptive_gaussian_noise`,
  `adaptive_tree_noise`; by clients `skellam`, `discrete_gaussian`,
  `local_gaussian_noise`; `noised_metrics`, `secret_key`, `without_guarantee`; and its
  price, `guarantee`, `epsilon`, `budget`, `noise_multiplier_for`, `audit`
- who is in a round: `poisson`, `fixed_size`, `cyclic`, `separated`
- secure sums: `secure_sum`, `secure_modular_sum`, `modular_clipping`, `server_view`;
  `fedagg.secagg` is the protocol
- training: `federated_averaging`, `buffered_averaging`, `local_training`,
  `private_training`, `linen_loss`, `nnx_loss`, `trained_part`, `RememberingWork`,
  `ClientMemories`, `pad_clients`, `ClientTable`, `prefetch`, `ServerStep`;
  `fedagg.algorithms` has published ones, and `train` is a loop
- data in many hands: `partition`, `by_label`, `by_shards`, `by_quantity`
- what a model is worth to each client: `federated_evaluation`, `fedagg.metrics`
- between machines: `Wire` to bytes; servers' `RunningTotal` and `BufferedServer`
- ways to sum: `at_once`, `in_chunks`, `across`, `cpu_mesh`
- types, for parts of your own: `Stage`, `Update`, `Output`, `Traits`, `Bound`, `Rule`,
  `Payload`, `Mechanism`, `Sampler`, `Aggregator`, `Steps`

`help(fedagg.aggregator)` has how to write a round, and each function its own.
"""

from fedagg._aggregator import Aggregator, Steps
from fedagg._bounding.bounding import clipping, zeroing
from fedagg._bounding.bounds import quantile_bound
from fedagg._client_noise.discrete_gaussian import (
    discrete_gaussian,
    discrete_gaussian_curve,
    discrete_gaussian_noise,
)
from fedagg._client_noise.local_noise import local_gaussian_noise
from fedagg._client_noise.mechanism import ClientNoise
from fedagg._client_noise.skellam import skellam, skellam_curve, skellam_noise
from fedagg._compression.discretization import discretization
from fedagg._compression.eden import drive, eden
from fedagg._compression.elias_gamma import (
    elias_gamma_bits,
    elias_gamma_decode,
    elias_gamma_encode,
)
from fedagg._compression.elias_gamma_size import elias_gamma
from fedagg._compression.quantization import qsgd, quantization, terngrad
from fedagg._compression.rotation import rotation
from fedagg._compression.sign import sign
from fedagg._compression.sparsification import random_k, top_k
from fedagg._deployment.buffered_server import BufferedServer
from fedagg._deployment.running_total import RunningTotal
from fedagg._deployment.wire import Wire
from fedagg._execution.across import across
from fedagg._execution.cores import cpu_mesh
from fedagg._execution.ways import at_once, in_chunks
from fedagg._folders import __getattr__ as __getattr__
from fedagg._logs import MetricsWriter, plot_metrics, read_metrics
from fedagg._mechanism import Mechanism
from fedagg._payload import Payload
from fedagg._privacy.accounting import epsilon, noise_multiplier_for
from fedagg._privacy.audit import Audit, audit
from fedagg._privacy.banded import banded_noise
from fedagg._privacy.budget import Budget, budget
from fedagg._privacy.gaussian import adaptive_gaussian_noise, gaussian_noise
from fedagg._privacy.guarantee import Guarantee, guarantee
from fedagg._privacy.matrix_factorization import matrix_factorization_noise
from fedagg._privacy.noised_metrics import noised_metrics
from fedagg._privacy.samplers import Sampler, cyclic, fixed_size, poisson, separated
from fedagg._privacy.secret import secret_key
from fedagg._privacy.toeplitz import toeplitz_noise
from fedagg._privacy.tree_noise import adaptive_tree_noise, tree_noise
from fedagg._recipes.private import distributed_dp_aggregator, dp_aggregator
from fedagg._recipes.robust import compression_aggregator, robust_aggregator
from fedagg._recipes.secure import secure_aggregator
from fedagg._rounds.aggregator import aggregator
from fedagg._rounds.chain import chain
from fedagg._rounds.combining import combining
from fedagg._rounds.distortion import with_distortion
from fedagg._rounds.feedback import with_error_feedback
from fedagg._rounds.groups import grouped
from fedagg._rounds.mean import mean
from fedagg._rounds.measurements import with_measurements
from fedagg._rounds.order import without_guarantee
from fedagg._rounds.sample import with_sample
from fedagg._rounds.view import message_bits, server_view
from fedagg._rules.coordinatewise import mean_around_median, median, trimmed_mean
from fedagg._rules.filtering import caf
from fedagg._rules.geometric import centered_clipping, geometric_median
from fedagg._rules.krum import bulyan, krum, multi_krum
from fedagg._rules.mixing import (
    adaptive_robust_clipping,
    bucketing,
    nearest_neighbor_mixing,
)
from fedagg._rules.subsets import minimum_diameter, smea
from fedagg._secure.modular_clipping import modular_clipping
from fedagg._secure.secure_sum import secure_modular_sum, secure_sum
from fedagg._train import train
from fedagg._training.buffered_averaging import buffered_averaging
from fedagg._training.data import pad_clients
from fedagg._training.evaluation import federated_evaluation
from fedagg._training.federated_averaging import federated_averaging
from fedagg._training.local_training import local_training
from fedagg._training.losses import linen_loss, nnx_loss
from fedagg._training.memories import ClientMemories
from fedagg._training.partition import by_label, by_quantity, by_shards, partition
from fedagg._training.population import RememberingWork
from fedagg._training.prefetching import prefetch
from fedagg._training.private_training import private_training
from fedagg._training.server_step import ServerStep
from fedagg._training.trained_part import trained_part
from fedagg._trees.table import ClientTable
from fedagg._types import Bound, Output, Rule, Stage, Traits, Update
from fedagg._version import __version__ as __version__

__all__ = [
    "Aggregator",
    "Audit",
    "Bound",
    "Budget",
    "BufferedServer",
    "ClientMemories",
    "ClientNoise",
    "ClientTable",
    "Guarantee",
    "Mechanism",
    "MetricsWriter",
    "Output",
    "Payload",
    "RememberingWork",
    "Rule",
    "RunningTotal",
    "Sampler",
    "ServerStep",
    "Stage",
    "Steps",
    "Traits",
    "Update",
    "Wire",
    "across",
    "adaptive_gaussian_noise",
    "adaptive_robust_clipping",
    "adaptive_tree_noise",
    "aggregator",
    "at_once",
    "audit",
    "banded_noise",
    "bucketing",
    "budget",
    "buffered_averaging",
    "bulyan",
    "by_label",
    "by_quantity",
    "by_shards",
    "caf",
    "centered_clipping",
    "chain",
    "clipping",
    "combining",
    "compression_aggregator",
    "cpu_mesh",
    "cyclic",
    "discrete_gaussian",
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
    "federated_evaluation",
    "fixed_size",
    "gaussian_noise",
    "geometric_median",
    "grouped",
    "guarantee",
    "in_chunks",
    "krum",
    "linen_loss",
    "local_gaussian_noise",
    "local_training",
    "matrix_factorization_noise",
    "mean",
    "mean_around_median",
    "median",
    "message_bits",
    "minimum_diameter",
    "modular_clipping",
    "multi_krum",
    "nearest_neighbor_mixing",
    "nnx_loss",
    "noise_multiplier_for",
    "noised_metrics",
    "pad_clients",
    "partition",
    "plot_metrics",
    "poisson",
    "prefetch",
    "private_training",
    "qsgd",
    "quantile_bound",
    "quantization",
    "random_k",
    "read_metrics",
    "robust_aggregator",
    "rotation",
    "secret_key",
    "secure_aggregator",
    "secure_modular_sum",
    "secure_sum",
    "separated",
    "server_view",
    "sign",
    "skellam",
    "skellam_curve",
    "skellam_noise",
    "smea",
    "terngrad",
    "toeplitz_noise",
    "top_k",
    "train",
    "trained_part",
    "tree_noise",
    "trimmed_mean",
    "with_distortion",
    "with_error_feedback",
    "with_measurements",
    "with_sample",
    "without_guarantee",
    "zeroing",
]
