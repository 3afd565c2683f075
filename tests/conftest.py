"""A strict JAX with eight CPU devices, and a compiler in haste, for every test."""

import importlib.util
import os
import pathlib
import tempfile
from collections import Counter
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
)

import hypothesis
import jax
import pytest

from tests.compiling import FLAGS, set_haste

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)

# These have an environment of their own: `make test-flower`.
collect_ignore = [] if importlib.util.find_spec("flwr") else ["flower"]

done: Counter[pathlib.Path] = Counter()  # tests of each file

# Few tests, each of which takes long.
FIRST = {"test_packaging.py", "test_programs.py", "test_pages.py"}

# What is drawn must not change from run to run, and an example costs a compilation.
hypothesis.settings.register_profile(
    "fedagg", deadline=None, derandomize=True, database=None, max_examples=10
)
hypothesis.settings.load_profile("fedagg")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--hasty",
        action="store_true",
        help="compile everything with the quickest options; not for thorough tests",
    )


def pytest_configure(config: pytest.Config) -> None:
    """A worker compiles nothing twice, and reads nothing that another writes."""
    if config.getoption("hasty"):
        os.environ["XLA_FLAGS"] += f" {FLAGS}"  # which are read when JAX first compiles
    folder = tempfile.TemporaryDirectory(prefix="fedagg-compiled-")
    config.add_cleanup(folder.cleanup)
    jax.config.update("jax_compilation_cache_dir", folder.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    set_haste(True)  # for what modules make when they are imported


def is_thorough(item: pytest.Item) -> bool:
    return item.get_closest_marker("thorough") is not None


@pytest.hookimpl(trylast=True)  # when what `-m` leaves out has gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starts what takes long first, a file at a time, so that workers end together."""
    size = Counter(item.path for item in items)
    items.sort(key=lambda x: (x.path.name not in FIRST, -size[x.path], x.path))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """Compiles as users have it for a test that is marked thorough."""
    set_haste(not is_thorough(item))
    return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.config.getoption("hasty") and is_thorough(item):
        pytest.fail("A thorough test is compiled as users have it: without --hasty.")


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Lets go what is compiled, now and then: each program takes memory maps of a
    process, of which Linux gives it 65,530."""
    done[item.path] += 1
    if nextitem is None or nextitem.path != item.path or done[item.path] % 200 == 0:
        jax.clear_caches()
