"""A strict JAX with eight CPU devices, for every test."""

import importlib.metadata
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
)
if os.environ.get("FEDAGG_TESTS") == "hurried":  # nearly all time is the compiler's
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # gone since
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import hypothesis
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)

# What is drawn must not change from run to run, and an example costs a compilation.
hypothesis.settings.register_profile(
    "fedagg", deadline=None, derandomize=True, database=None, max_examples=10
)
hypothesis.settings.load_profile("fedagg")
