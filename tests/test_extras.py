"""Whatever an extra installs is named by the error of whoever lacks it."""

import ast
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import fedagg
from tests.test_api import MODULES

ROOT = pathlib.Path(__file__).parents[1]
LAYER = jax.ShapeDtypeStruct((3,), jnp.float32)
PLAN = {"neighbors": "add_or_remove"}


def private() -> fedagg.Aggregator:
    return fedagg.dp_aggregator(2.0, 100)


def a_round(**options: Any) -> None:
    """A round of nothing much."""
    training = fedagg.federated_averaging(
        lambda variables, row, key: (row, {}),
        optax.sgd(1.0),
        fedagg.aggregator(fedagg.mean()),
    )
    sampler, key = fedagg.fixed_size(1, 2), jax.random.key(0)
    rounds = fedagg.train(
        *(training, jnp.zeros(3), jnp.ones((2, 3)), sampler),
        rounds=1,
        key=key,
        **options,
    )
    next(rounds)


# What is asked for, the module that it imports, and the extra that has it.
NEEDS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "epsilon": (
        lambda: fedagg.epsilon(2.0, 10, 1e-5, **PLAN),
        "dp_accounting",
        "privacy",
    ),
    "noise_multiplier_for": (
        lambda: fedagg.noise_multiplier_for(2.0, 10, 1e-5, **PLAN),
        "dp_accounting",
        "privacy",
    ),
    "guarantee": (
        lambda: fedagg.guarantee(private(), LAYER, 10, 1e-5, **PLAN),
        "dp_accounting",
        "privacy",
    ),
    "budget": (
        lambda: fedagg.budget(
            private(), LAYER, target_epsilon=2.0, delta=1e-5, **PLAN
        ).init(),
        "dp_accounting",
        "privacy",
    ),
    "banded_noise": (
        lambda: fedagg.banded_noise(0.5, 1.0, 10.0, bands=2, rounds=3),
        "jax_privacy",
        "privacy",
    ),
    "MetricsWriter": (
        lambda: fedagg.MetricsWriter(tempfile.mkdtemp(), tensorboard=True),
        "tensorboardX",
        "logs",
    ),
    "train": (
        lambda: a_round(folder=tempfile.mkdtemp()),
        "orbax",
        "train",
    ),
    "train with a bar": (lambda: a_round(progress=True), "tqdm", "train"),
    "plot_metrics": (
        lambda: fedagg.plot_metrics([{"step": 0, "loss": 1.0}]),
        "matplotlib",
        "logs",
    ),
}
DISTRIBUTIONS = {"orbax": "orbax-checkpoint"}
# Packages of ours that need an extra whole.
PACKAGES = [
    ("import fedagg.secagg", "cryptography", "secagg"),
    ("import fedagg.flower", "flwr", "flower"),
]


def extras() -> dict[str, list[str]]:
    """What each extra of the package installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["optional-dependencies"]


def needed_at_times() -> set[str]:
    """What some module imports within `try`, to say which extra has it."""
    return {
        name.split(".")[0]
        for path in MODULES.values()
        for tried in ast.walk(ast.parse(path.read_text()))
        if isinstance(tried, ast.Try)
        for node in ast.walk(tried)
        for name in (
            [x.name for x in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }


@pytest.mark.parametrize("name", NEEDS)
def test_who_lacks_an_extra_is_told_its_name(name, monkeypatch):
    ask, module, extra = NEEDS[name]
    for loaded in [x for x in sys.modules if x.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, loaded, None)
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ImportError, match=rf"pip install 'fedagg\[{extra}\]'"):
        ask()


@pytest.mark.parametrize(("program", "module", "extra"), PACKAGES)
def test_a_package_names_its_extra(program, module, extra):
    program = f"import sys; sys.modules[{module!r}] = None; {program}"

    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )

    assert run.returncode == 1 and f"pip install 'fedagg[{extra}]'" in run.stderr


def test_the_table_above_has_every_import_that_may_fail():
    modules = {module for _, module, _ in [*NEEDS.values(), *PACKAGES]}

    assert modules == needed_at_times()


def test_the_extras_have_what_is_asked_for():
    for _, module, extra in [*NEEDS.values(), *PACKAGES]:
        installed = [re.split(r"[>=\[]", x)[0] for x in extras()[extra]]
        assert DISTRIBUTIONS.get(module, module).replace("_", "-") in installed


def test_what_is_slow_to_import_is_imported_by_who_uses_it():
    program = "import sys, jax, optax, fedagg; print(*sys.modules)"

    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )

    loaded = set(run.stdout.split())
    assert loaded & {"flax", "scipy.special", "scipy.optimize"} == set()
