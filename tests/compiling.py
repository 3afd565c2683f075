"""How hard the compiler tries: in haste, but for tests that are marked `thorough`."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jaxlib
from jax.experimental.compilation_cache import compilation_cache

# Part of what JAX knows a compiled program by, so that none serves both kinds of tests.
HASTE = jax.make_user_context(None)

OPTIONS: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if jaxlib.__version__.startswith("0.10."):  # gone since
    OPTIONS["xla_cpu_use_fusion_emitters"] = False

# The same for all that a process compiles, steps outside of `jit` among it.
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())


def set_haste(is_in_haste: bool) -> None:
    """Whether what is compiled from now on is compiled without optimization.

    If so, a file may have it already. What is thorough is always compiled, since what
    comes from a file does not tell of its memory.
    """
    if HASTE.value is not is_in_haste:
        jax.config.update("jax_disable_most_optimizations", is_in_haste)
        jax.config.update("jax_enable_compilation_cache", is_in_haste)
        compilation_cache.reset_cache()  # which would go by what was so at first
        HASTE.set_global(is_in_haste)


@contextlib.contextmanager
def in_haste() -> Iterator[None]:
    """For what a thorough test compares its own programs with."""
    was_in_haste = HASTE.value
    set_haste(True)
    try:
        yield
    finally:
        set_haste(was_in_haste)


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` with the quickest options if the test that calls it is in haste.

    It is for the outermost function, since JAX takes no options for those within.
    """
    hasty = jax.jit(function, compiler_options=OPTIONS, **options)
    thorough = jax.jit(function, **options)

    def call(*arguments: Any) -> Any:
        return (hasty if HASTE.value else thorough)(*arguments)

    return call
