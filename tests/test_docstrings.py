"""What docstrings say in code and in tables: that it runs, and that it is there."""

import inspect
import math
import re
import textwrap
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from tests.helpers import assert_same, first_now, make_updates

SIGNATURES = {
    name: inspect.signature(getattr(fedagg, name))
    for name in fedagg.__all__
    if inspect.isfunction(getattr(fedagg, name))
}

# What makes noise of the options that a name takes, with options that make some.
NOISED = fedagg.quantile_bound(
    1.0, 0.5, 0.2, below_estimate_stddev=5.0, expected_num_clients=100
)
PRIVATE: dict[str, Any] = {
    "adaptive_gaussian_noise": lambda: fedagg.adaptive_gaussian_noise(1.0, 100),
    "adaptive_tree_noise": lambda: fedagg.adaptive_tree_noise(1.0, 100),
    "banded_noise": lambda: fedagg.banded_noise(1.0, 1.0, 10, bands=2, rounds=4),
    "clipping": lambda: fedagg.clipping(NOISED, counted=False),
    "discrete_gaussian": lambda: fedagg.discrete_gaussian(1.0, 1.0, 10).stage(),
    "discrete_gaussian_noise": lambda: fedagg.discrete_gaussian_noise(1.0, 1.0, 10),
    "distributed_dp_aggregator": lambda: fedagg.distributed_dp_aggregator(1.0, 100),
    "dp_aggregator": lambda: fedagg.dp_aggregator(1.0, 100),
    "gaussian_noise": lambda: fedagg.gaussian_noise(1.0, 1.0, 10),
    "local_gaussian_noise": None,  # declares none: each message is private by itself
    "matrix_factorization_noise": lambda: fedagg.matrix_factorization_noise(
        optax.identity(), 1.0, 10, mechanism=fedagg.Mechanism.gaussian(1.0)
    ),
    "noised_metrics": lambda: fedagg.noised_metrics(1.0, {"loss": 1.0}, 10),
    "quantile_bound": lambda: NOISED,
    "skellam": lambda: fedagg.skellam(1.0, 1.0, 10).stage(),
    "skellam_noise": lambda: fedagg.skellam_noise(1.0, 1.0, 10),
    "toeplitz_noise": lambda: fedagg.toeplitz_noise(1.0, 1.0, 10, [1.0, 0.5]),
    "tree_noise": lambda: fedagg.tree_noise(1.0, 1.0, 10, restart_every=8),
    "zeroing": lambda: fedagg.zeroing(NOISED, counted=False),
}
ROWS = ["guarantee", "---", "protected", "relation", "against", "sampling", "outside"]


def doc(name: str) -> str:
    return inspect.cleandoc(getattr(fedagg, name).__doc__ or "")


def blocks(text: str) -> list[tuple[str, str]]:
    """The code after a `::`, each with the line that the colons end."""
    found = re.findall(r"^(.*::)\n\n((?:    .*\n|\n)+)", text + "\n", re.M)
    return [(line, textwrap.dedent(code)) for line, code in found]


WITH_CODE = [name for name in fedagg.__all__ if blocks(doc(name))]
EQUIVALENT = [
    name
    for name in fedagg.__all__
    if any(re.search("quivalent to::$", line) for line, _ in blocks(doc(name)))
]


def namespace() -> dict[str, Any]:
    """What code of docstrings may use: public names, and the usual modules."""
    public = {name: getattr(fedagg, name) for name in fedagg.__all__}
    datasets = [(np.ones((2 + i, 3)), np.ones(2 + i)) for i in range(20)]
    modules = {"flax": flax, "jax": jax, "jnp": jnp, "math": math, "optax": optax}
    return {**public, **modules, "fedagg": fedagg, "datasets": datasets}


def value_of(code: str) -> Any:
    """What the last expression of some code is."""
    lines = code.strip().splitlines()
    starts = [i for i, line in enumerate(lines) if not line.startswith((" ", ")"))]
    names = namespace()
    exec("\n".join(lines[: starts[-1]]), names)
    return eval("\n".join(lines[starts[-1] :]), names)


def test_docstrings_have_the_code_that_is_looked_for():
    recipes = [name for name in fedagg.__all__ if name.endswith("_aggregator")]

    assert set(recipes) <= set(EQUIVALENT)
    assert {"Bound", "Payload", "Rule", "pad_clients"} <= set(WITH_CODE)


@pytest.mark.parametrize("name", WITH_CODE)
def test_the_code_of_a_docstring_runs(name):
    for _, code in blocks(doc(name)):
        exec(code, namespace())


def rounds_of(aggregator: fedagg.Aggregator) -> list[Any]:
    template = {"w": jax.ShapeDtypeStruct((201, 100), jnp.float32)}
    state, outputs = aggregator.init(template), []
    for i in range(2):
        values, weights = make_updates(30, seed=i, template=template)
        key = jax.random.key(i)
        outputs.append(jax.jit(aggregator.next)(state, values, weights, key))
        state = outputs[-1].state
    return outputs


@first_now("name", EQUIVALENT)
def test_what_is_called_equivalent_gives_the_same_bits(name):
    arguments = {
        "adaptive_gaussian_noise": (1.0, 100),
        "distributed_dp_aggregator": (1.0, 100),
        "dp_aggregator": (1.0, 100),
    }
    (code,) = [x for line, x in blocks(doc(name)) if line.endswith("quivalent to::")]
    made, equal = getattr(fedagg, name)(*arguments.get(name, ())), value_of(code)
    if isinstance(made, fedagg.Stage):
        made, equal = fedagg.aggregator(made), fedagg.aggregator(equal)

    assert_same(rounds_of(made), rounds_of(equal))


@first_now(
    "docs",
    [fedagg.Bound, fedagg.Rule, fedagg.Payload],
    ids=lambda x: x.__name__,
)
def test_a_part_that_a_docstring_writes_makes_a_round(docs):
    (code,) = [code for _, code in blocks(inspect.cleandoc(docs.__doc__))]
    written = value_of(code)
    values, weights = make_updates(4)
    state = written.init(jax.tree.map(lambda x: x[0], values))

    with_nobody = written.next(state, values, 0.0 * weights)
    absent = {"b": values["b"].at[0].set(jnp.nan), "w": values["w"]}
    some = written.next(state, values, weights.at[0].set(0.0))

    assert all(jnp.all(x == 0.0) for x in jax.tree.leaves(with_nobody.value))
    assert_same(written.next(state, absent, weights.at[0].set(0.0)), some)


def test_every_name_that_makes_noise_is_in_the_table():
    takes = {"noise_multiplier", "below_estimate_stddev", "privatizer"}
    made = {"Stage", "Aggregator", "ClientNoise", "Bound"}

    found = {
        name
        for name, signature in SIGNATURES.items()
        if takes & set(signature.parameters)
        and signature.return_annotation.__name__ in made
    }

    assert found <= set(PRIVATE)


@pytest.mark.parametrize("name", [x for x in PRIVATE if PRIVATE[x] is not None])
def test_names_of_the_table_declare_mechanisms(name):
    made = PRIVATE[name]()

    if isinstance(made, fedagg.Bound):
        assert made.mechanism is not None
    else:
        stage: Any = made.stage if isinstance(made, fedagg.Aggregator) else made
        assert stage.traits.mechanisms


@pytest.mark.parametrize("name", PRIVATE)
def test_the_docstring_of_what_is_private_has_its_guarantee_as_a_table(name):
    tables = re.findall(r"^\| guarantee \|.*\n(?:\|.*\n)+", doc(name), re.M)

    (table,) = tables
    assert [x.split("|")[1].strip() for x in table.splitlines()] == ROWS
    assert all(len(x.split("|")) == 4 for x in table.splitlines())


def test_help_begins_with_what_there_is():
    text = fedagg.__doc__

    named = set(re.findall(r"`(?:fedagg\.)?(\w+)`", text))
    functions = {x for x in SIGNATURES if not x.startswith("elias_gamma_")}
    short = {"skellam_noise", "discrete_gaussian_noise"}
    curves = {"skellam_curve", "discrete_gaussian_curve"}
    assert functions - named <= short | curves
    assert len(text.splitlines()) <= 45
