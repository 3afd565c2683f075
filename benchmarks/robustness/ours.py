"""The grid through fedagg: of a rule all experiments in one compiled program."""

import functools
import itertools
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedagg
from benchmarks.robustness.settings import (
    BATCH,
    HONEST,
    MIXED,
    PLAIN,
    Digits,
    Grid,
    Run,
    split,
)
from fedagg import attacks

PyTree = Any
Cell = tuple[str, str, int]  # rule, mixer, liars: a program
_WIDTH = 100  # of the hidden layer
# Experiments side by side, but on a CPU: a step of one is too little work for a launch.
_TOGETHER = 64
_MEAN, _DEVIATION = 0.1307, 0.3081  # of MNIST's pixels

# Another rule is one more line here, and one in `byzfl.py`.
RULES: dict[str, Callable[[int], fedagg.Rule]] = {
    "mean": lambda f: _mean(),
    "median": lambda f: fedagg.median(),
    "trimmed mean": fedagg.trimmed_mean,
    "geometric median": lambda f: fedagg.geometric_median(),
    "multi-Krum": fedagg.multi_krum,
    "mean around median": fedagg.mean_around_median,
    "Krum": fedagg.krum,
    "minimum diameter": fedagg.minimum_diameter,
}
MIXERS: dict[str, Callable[[int, fedagg.Rule], fedagg.Rule]] = {
    PLAIN: lambda f, rule: rule,
    MIXED: fedagg.nearest_neighbor_mixing,
}
# Attacks of a rule that they know; the one on labels is made in the round.
ATTACKS: dict[str, Callable[[fedagg.Rule], attacks.Attack]] = {
    "sign flipping": lambda rule: attacks.sign_flipping(),
    "inner product": lambda rule: attacks.inner_product_manipulation(10.0),
    "a little": lambda rule: attacks.a_little_is_enough(1.5),
    "mimic": lambda rule: attacks.mimic(),
    "optimized a little": lambda rule: attacks.optimized(
        attacks.a_little_is_enough, rule, evaluations=20
    ),
}


class Setting(NamedTuple):
    """What experiments of one program differ in, stacked over them."""

    attack: jax.Array  # position among the grid's
    similarity: jax.Array  # the same
    seed: jax.Array
    rate: jax.Array
    momentum: jax.Array


class Examples(NamedTuple):
    images: jax.Array  # [n, 784]
    labels: jax.Array  # [n]


def runs(
    grid: Grid,
    digits: Digits,
    done: Collection[Cell] = (),
    together: int | None = None,
) -> Iterator[list[Run]]:
    """The runs of each cell that is not done, as they come.

    As many programs run at a time as there are cores, and in each so many experiments
    `together`; if it is None, one on a CPU, 64 elsewhere.
    """
    if together is None and jax.default_backend() != "cpu":
        together = _TOGETHER
    axes = [range(len(grid.attacks)), range(len(grid.similarities)), range(grid.seeds)]
    crossed = [*itertools.product(*axes, grid.rates, grid.momenta)]
    settings = Setting(*(jnp.asarray(x) for x in zip(*crossed, strict=True)))
    train, test = _examples(digits)
    splits = [
        [split(digits.labels, x, seed) for seed in range(grid.seeds)]
        for x in grid.similarities
    ]
    owned = jnp.asarray([[clients for clients, _ in x] for x in splits])
    held = jnp.asarray([[validation for _, validation in x] for x in splits])

    def run_all(cell: Cell) -> list[Run]:
        program = _program(*cell, grid, together)
        found = jax.device_get(program(settings, train, test, owned, held))
        return [
            _run(grid, cell, setting, *accuracies)
            for setting, *accuracies in zip(crossed, *found, strict=True)
        ]

    cells = itertools.product(grid.rules, grid.mixers, grid.liars)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        asked = [pool.submit(run_all, cell) for cell in cells if cell not in done]
        for found in as_completed(asked):
            yield found.result()


def _run(
    grid: Grid,
    cell: Cell,
    setting: tuple,
    validation: np.ndarray,
    test: np.ndarray,
) -> Run:
    (rule, mixer, liars), (attack, part, seed, rate, momentum) = cell, setting
    where = grid.attacks[attack], grid.similarities[part], liars
    ends = validation.tolist(), test.tolist()
    return Run(rule, mixer, *where, rate, momentum, seed, *ends)


def _program(
    rule: str, mixer: str, liars: int, grid: Grid, together: int | None
) -> Callable:
    """A function of settings `[e]` and data to accuracies `[e, looks]`, twice.

    So many settings run side by side, or one after the other.
    """
    ruled = MIXERS[mixer](liars, RULES[rule](liars))
    aggregator = fedagg.combining(ruled)
    branches = [_attack(name, ruled, liars) for name in grid.attacks]

    def experiment(
        train: Examples, test: Examples, owned: jax.Array, held: jax.Array, at: Setting
    ) -> tuple[jax.Array, jax.Array]:
        start_key, key = jax.random.split(jax.random.key(at.seed))
        own, validation = owned[at.similarity, at.seed], held[at.similarity, at.seed]
        validation = jax.tree.map(lambda x: x[validation], train)

        def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            model, moving, state = carry
            picks, attack_key, rule_key = jax.random.split(key, 3)
            pick = functools.partial(jax.random.choice, replace=False, shape=(BATCH,))
            places = jax.vmap(pick)(jax.random.split(picks, HONEST), own)
            batch = jax.tree.map(lambda x: x[places], train)
            gradients = jax.vmap(jax.grad(_loss), (None, 0))(model, batch)
            # In ByzFL a client's momentum is a running mean of its gradients.
            moving = optax.tree.update_moment(gradients, moving, at.momentum, 1)
            sent = jax.lax.switch(at.attack, branches, model, batch, moving, attack_key)
            everyone = jax.tree.map(lambda *x: jnp.concatenate(x), moving, sent)
            output = aggregator.next(state, everyone, key=rule_key)
            model = optax.tree.add_scale(model, -at.rate, output.value)
            return (model, moving, output.state), None

        def look(carry: tuple) -> tuple[jax.Array, jax.Array]:
            return _accuracy(carry[0], validation), _accuracy(carry[0], test)

        def stretch(carry: tuple, keys: jax.Array) -> tuple:
            carry, _ = jax.lax.scan(step, carry, keys)
            return carry, look(carry)

        model = _start(start_key)
        moving = jax.tree.map(lambda x: jnp.zeros((HONEST, *x.shape), x.dtype), model)
        carry = model, moving, aggregator.init(model)
        keys = jax.random.split(key, (grid.steps // grid.every, grid.every))
        _, looks = jax.lax.scan(stretch, carry, keys)
        return jax.tree.map(lambda x, y: jnp.append(x, y), look(carry), looks)

    @jax.jit
    def program(settings, train, test, owned, held):
        one = functools.partial(experiment, train, test, owned, held)
        return jax.lax.map(one, settings, batch_size=together)

    return program


def _attack(name: str, rule: fedagg.Rule, liars: int) -> Callable:
    """What liars send `[liars, ...]`, of `(model, batch, honest, key)`."""

    def on_labels(model: PyTree, batch: Examples, honest: PyTree, key: jax.Array):
        flipped = batch._replace(labels=attacks.flipped_labels(batch.labels, 10))
        gradients = jax.vmap(jax.grad(_loss), (None, 0))(model, flipped)
        return jax.tree.map(lambda x: jnp.stack(liars * [x.mean(axis=0)]), gradients)

    def on_values(model: PyTree, batch: Examples, honest: PyTree, key: jax.Array):
        return ATTACKS[name](rule)(honest, liars, key)

    return on_labels if name == "label flipping" else on_values


def _mean() -> fedagg.Rule:
    def combine(state: PyTree, updates: fedagg.Update, key: jax.Array | None):
        value = jax.tree.map(lambda x: x.mean(axis=0), updates.value)
        return fedagg.Output(state, value, {})

    return fedagg.Rule(lambda template: (), combine)


def _examples(digits: Digits) -> tuple[Examples, Examples]:
    def scaled(images: np.ndarray) -> jax.Array:
        flat = images.reshape(len(images), -1).astype(np.float32) / 255.0
        return jnp.asarray((flat - _MEAN) / _DEVIATION)

    def whole(labels: np.ndarray) -> jax.Array:
        return jnp.asarray(labels, jnp.int32)

    return (
        Examples(scaled(digits.images), whole(digits.labels)),
        Examples(scaled(digits.test_images), whole(digits.test_labels)),
    )


def _start(key: jax.Array) -> PyTree:
    """Two layers, of weights as PyTorch draws them."""
    model = {}
    sizes = {"first": (784, _WIDTH), "last": (_WIDTH, 10)}
    keys = jax.random.split(key)
    for own, (name, (inputs, outputs)) in zip(keys, sizes.items(), strict=True):
        bound = inputs**-0.5
        shape = inputs + 1, outputs
        drawn = jax.random.uniform(own, shape, minval=-bound, maxval=bound)
        model[name] = {"kernel": drawn[:-1], "bias": drawn[-1]}
    return model


def _logits(model: PyTree, images: jax.Array) -> jax.Array:
    hidden = images @ model["first"]["kernel"] + model["first"]["bias"][None]
    return jax.nn.relu(hidden) @ model["last"]["kernel"] + model["last"]["bias"][None]


def _loss(model: PyTree, batch: Examples) -> jax.Array:
    logits = _logits(model, batch.images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    return jnp.mean(losses)


def _accuracy(model: PyTree, examples: Examples) -> jax.Array:
    hits = _logits(model, examples.images).argmax(axis=-1) == examples.labels
    return jnp.mean(hits.astype(jnp.float32))
