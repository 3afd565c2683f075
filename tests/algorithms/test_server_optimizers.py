"""The table of server optimizers on the site, against the paper in float64."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg

PAGE = (pathlib.Path(__file__).parents[2] / "docs/algorithms.md").read_text()
RATE, B1, B2, TAU = 0.1, 0.9, 0.99, 1e-3
CHANGES = np.random.default_rng(0).normal(size=(6, 5)) * np.logspace(-2, 1, 5)
START = np.linspace(-1.0, 1.0, 5)
SECOND = {
    "adagrad": lambda v, d2: v + d2,
    "yogi": lambda v, d2: v - (1 - B2) * d2 * np.sign(v - d2),
    "adam": lambda v, d2: B2 * v + (1 - B2) * d2,
}


def reddi(name, *, corrected=False, first=TAU**2, added=TAU, within=0.0, mean=0.0):
    """Reddi et al. 2021, algorithm 2; and what Optax does in other ways."""
    b1 = 0.0 if name == "adagrad" else B1
    x, m, v = START.copy(), np.full(5, mean), np.full(5, first)
    for t, change in enumerate(CHANGES, 1):
        m = b1 * m + (1 - b1) * change
        v = SECOND[name](v, change**2)
        m_now, v_now = (m / (1 - b1**t), v / (1 - B2**t)) if corrected else (m, v)
        x = x + RATE * m_now / (np.sqrt(v_now + within) + added)
    return x


def rounds_with(optimizer):
    """Rounds of one client that makes these changes."""
    training = fedagg.federated_averaging(
        lambda model, change, key: (change, {}),
        optimizer,
        fedagg.aggregator(fedagg.mean()),
    )
    state = training.init(jnp.asarray(START, jnp.float32))
    with jax.numpy_dtype_promotion("standard"):  # which Optax counts on
        for change in CHANGES.astype(np.float32):
            state = training.next(state, change[None]).state
    return np.asarray(state.variables)


def in_table(paper):
    """What the table has for an optimizer of the paper."""
    found = re.search(rf"^\| {paper} \| `([^`]+)`", PAGE, re.M)
    assert found, paper
    return eval(found[1], {"optax": optax, "rate": RATE})


def printed(name):
    """That of the page's own code."""
    (code,) = [x for x in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "tau" in x]
    names = {"optax": optax, "jax": jax, "jnp": jnp}
    exec(code[: code.index("work =")], names)
    return names[name]


@pytest.mark.parametrize("name", SECOND)
def test_the_transformation_of_the_page_is_the_paper_as_printed(name):
    np.testing.assert_allclose(rounds_with(printed(name)), reddi(name), rtol=1e-5)


def test_the_table_s_arguments_of_optax_are_the_paper_but_for_what_it_says():
    adam = reddi("adam", corrected=True, first=0.0)
    # Optax starts the mean of gradients, minus changes, at tau^2 as well.
    yogi = reddi("yogi", corrected=True, mean=-(TAU**2))
    adagrad = reddi("adagrad", added=0.0, within=1e-7)

    got = rounds_with(in_table("FedAdam"))
    np.testing.assert_allclose(got, adam, rtol=1e-5)
    np.testing.assert_allclose(rounds_with(in_table("FedYogi")), yogi, rtol=1e-5)
    np.testing.assert_allclose(rounds_with(in_table("FedAdagrad")), adagrad, rtol=1e-5)
    # Without a correction of the bias the first rounds differ by far more.
    assert np.abs(got - reddi("adam")).max() > 0.01


def test_sums_and_momentum_of_the_table_are_fedavg_and_fedavgm():
    x, velocity = START.copy(), np.zeros(5)
    for change in CHANGES:
        velocity = 0.9 * velocity + change
        x = x + RATE * velocity

    np.testing.assert_allclose(rounds_with(in_table("FedAvgM")), x, rtol=1e-5)
    mean = START + CHANGES.sum(axis=0)
    np.testing.assert_allclose(rounds_with(in_table("FedAvg")), mean, rtol=1e-5)
