"""Rules inside federated averaging: whole rounds against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedagg
from tests.compiling import jit
from tests.helpers import first_now
from tests.rules import references
from tests.rules.test_rules import RULES

N, D, STEPS = 11, 4, 3
DRAW = np.random.default_rng(0)
EXAMPLES = DRAW.normal(size=(N, STEPS, D)).astype(np.float32)
WEIGHTS = DRAW.integers(1, 9, size=(5, N)).astype(np.float32)
WEIGHTS[1, [0, 4]] = 0.0
WEIGHTS[2] = 0.0  # nobody comes
WEIGHTS[3, [2, 5]] = np.nan, -1.0
WEIGHTS[4, np.arange(N) != 7] = 0.0  # one client

# By a name: the rule of `f` liars, and what it makes of `[n, d]` and weights `[n]`.
WEIGHED = {
    "weighted_trimmed_mean": (
        lambda f: fedagg.trimmed_mean(f, weighted=True),
        lambda x, w, f: references.weighted_trimmed_mean(x, w, f),
    ),
    "weighted_median": (
        lambda f: fedagg.median(weighted=True),
        lambda x, w, f: references.weighted_median(x, w),
    ),
    "geometric_median": (
        lambda f: fedagg.geometric_median(),
        lambda x, w, f: references.geometric_median(x, w),
    ),
}
ALL = {
    name: (make, lambda x, w, f, of=of: of(x, f)) for name, (make, of) in RULES.items()
} | WEIGHED


def parted(x):
    return {"a": x[..., 0], "b": x[..., 1:]}


def joined(tree):
    return np.concatenate([np.asarray(tree["a"])[None], np.asarray(tree["b"])])


def work(variables, examples, key):
    """Steps towards the client's examples, one after the other."""
    del key
    start = jnp.concatenate([variables["a"][None], variables["b"]])
    at = start
    for i in range(STEPS):
        at = at - 0.2 * (at - examples[i])
    return parted(at - start), {}


def change_by_hand(at, examples):
    end = at.copy()
    for example in examples.astype(np.float64):
        end = end - 0.2 * (end - example)
    return end - at


@first_now(
    "name", ["weighted_trimmed_mean", *[x for x in ALL if x != "weighted_trimmed_mean"]]
)
def test_rounds_of_training_take_the_step_of_the_rule_of_their_clients(name):
    make, rule = ALL[name]
    f = 1
    training = fedagg.federated_averaging(
        work, optax.sgd(0.5, momentum=0.9), fedagg.combining(make(f))
    )
    next_round = jit(training.next)
    state = training.init(parted(jnp.asarray([0.3, 0.0, 0.0, 0.0])))
    at, momentum = np.asarray([0.3, 0.0, 0.0, 0.0]), np.zeros(D)

    for i, weights in enumerate(WEIGHTS):
        state, value, metrics = next_round(
            state, jnp.asarray(EXAMPLES), jnp.asarray(weights), jax.random.key(i)
        )

        there = weights > 0.0
        if there.any():  # else the model and the momentum stay
            x = np.stack([change_by_hand(at, y) for y in EXAMPLES[there]])
            of_one = len(x) == 1
            change = x[0] if of_one else rule(x, weights[there].astype(float), f)
            momentum = 0.9 * momentum + change
            at = at + 0.5 * momentum
        np.testing.assert_allclose(joined(value), at, rtol=3e-5, atol=3e-5)
        assert metrics["training/not_finite"] == 0.0
