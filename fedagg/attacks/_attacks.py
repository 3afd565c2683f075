"""Attacks of the literature, each a function of the honest clients' values."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedagg._sentence import prints_as_its_call
from fedagg._trees import checks, pytree, rowwise
from fedagg._types import PyTree

Attack = Callable[[PyTree, int, jax.Array | None], PyTree]
"""`(honest, liars, key) -> malicious`, of trees stacked over clients."""


@prints_as_its_call
def sign_flipping() -> Attack:
    """Sends the honest mean with its sign flipped.

    Raises:
        TypeError: when it is called, for a leaf that is not of a float dtype.

    Reference: Allen-Zhu et al., "Byzantine-Resilient Non-Convex Stochastic Gradient
        Descent", 2020, section 5.
    """
    return _the_same(
        "sign_flipping", lambda honest: _map_rows(lambda x: -_mean(x), honest)
    )


@prints_as_its_call
def inner_product_manipulation(scale: float | jax.Array = 2.0) -> Attack:
    """Sends the honest mean times minus `scale`, so that the sum points backwards.

    Args:
        scale: how much longer than the mean. Of either sign, and finite.

    Raises:
        ValueError: if `scale` is not finite.
        TypeError: if `scale` is no number; when it is called, for a leaf that is not of
            a float dtype.

    Reference: Xie et al., "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner
        Product Manipulation", 2019, section 4.
    """
    _check_scale(scale)

    def longer(x: jax.Array) -> jax.Array:
        return -_scaled(scale, _mean(x))

    return _the_same(
        "inner_product_manipulation", lambda honest: _map_rows(longer, honest)
    )


@prints_as_its_call
def a_little_is_enough(scale: float | jax.Array = 1.5) -> Attack:
    """Sends the honest mean, moved in every coordinate by some standard deviations.

    It hides among honest clients, and moves all coordinates alike. The deviation is
    that of a sample, zero of one client.

    Args:
        scale: how many standard deviations. Of either sign, and finite. The paper's,
            with `n` clients in all of whom `m` lie, is where the normal distribution
            function is `(n - m - s) / (n - m)`, with `s = n // 2 + 1 - m`.

    Raises:
        ValueError: if `scale` is not finite.
        TypeError: if `scale` is no number; when it is called, for a leaf that is not of
            a float dtype.

    Reference: Baruch et al., "A Little Is Enough: Circumventing Defenses For
        Distributed Learning", 2019, algorithm 3.
    """
    _check_scale(scale)

    def moved(x: jax.Array) -> jax.Array:
        squares = jnp.sum(jnp.square(x - _mean(x)[None]), axis=0)
        return _mean(x) + _scaled(scale, jnp.sqrt(squares / max(len(x) - 1, 1)))

    return _the_same("a_little_is_enough", lambda honest: _map_rows(moved, honest))


@prints_as_its_call
def mimic(client: int = 0) -> Attack:
    """Sends what one honest client sends, which then counts for many.

    Args:
        client: the honest one's position.

    Raises:
        ValueError: if `client` is not a whole number, or when it is called, if there is
            no such client.
        TypeError: when it is called, for a leaf that is not of a float dtype.

    Reference: Karimireddy et al., "Byzantine-Robust Learning on Heterogeneous Datasets
        via Bucketing", 2022, section 4.
    """
    checks.check_whole(0, client=client)

    def one(honest: PyTree) -> PyTree:
        checks.check_whole(0, rowwise.count_rows(honest) - 1, client=client)
        return rowwise.take(honest, client)

    return _the_same("mimic", one)


@prints_as_its_call
def gaussian(stddev: float, *, mean: float = 0.0) -> Attack:
    """Sends normal noise, each liar its own, whatever the others send.

    Args:
        stddev: the standard deviation of each entry. Not negative.
        mean: the mean of each entry. Finite.

    Raises:
        ValueError: if `stddev` is negative, or either not finite; when it is called,
            without a key.
        TypeError: if either is no number; when it is called, for a leaf that is not of
            a float dtype.

    Reference: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant
        Gradient Descent", 2017, section 6.
    """
    checks.check_not_negative(stddev=stddev)
    checks.check_finite(mean=mean)

    def attack(honest: PyTree, liars: int, key: jax.Array | None = None) -> PyTree:
        _check_called("gaussian", honest, liars)
        key = checks.check_key(key, "gaussian", "noise")
        leaves, structure = pytree.flatten(honest)
        rows = []
        for i, x in enumerate(leaves):
            shape = (liars, *x.shape[1:])
            own = jax.random.fold_in(key, i)
            noise = jax.random.normal(own, shape, pytree.wide(x).dtype)
            rows.append((mean + stddev * noise).astype(x.dtype))
        return pytree.unflatten(structure, rows)

    return attack


@prints_as_its_call
def infinity() -> Attack:
    """Sends infinity throughout.

    Raises:
        TypeError: when it is called, for a leaf that is not of a float dtype.

    Reference: Guerraoui et al., "ByzFL: Research Framework for Robust Federated
        Learning", 2025, attacks.
    """
    return _the_same("infinity", lambda honest: _filled(honest, math.inf))


@prints_as_its_call
def not_a_number() -> Attack:
    """Sends NaN throughout, as a client does whose training diverged.

    Raises:
        TypeError: when it is called, for a leaf that is not of a float dtype.

    Reference: Guerraoui et al., "ByzFL: Research Framework for Robust Federated
        Learning", 2025, attacks.
    """
    return _the_same("not_a_number", lambda honest: _filled(honest, math.nan))


def flipped_labels(labels: jax.typing.ArrayLike, classes: int) -> jax.Array:
    """Labels `[...]` that a liar trains on: the last class for the first, and so on.

    Args:
        labels: whole numbers from zero to below `classes`.
        classes: how many there are.

    Raises:
        ValueError: if `classes` is not a positive whole number, or too many for the
            dtype of `labels`.
        TypeError: if `labels` are not of an integer dtype.

    Reference: Fang et al., "Local Model Poisoning Attacks to Byzantine-Robust Federated
        Learning", 2020, section 6.
    """
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"labels must be of an integer dtype, got dtype {labels.dtype}."
        )
    checks.check_whole(1, int(jnp.iinfo(labels.dtype).max) + 1, classes=classes)
    return int(classes) - 1 - labels


def _the_same(name: str, one: Callable[[PyTree], PyTree]) -> Attack:
    """All liars send the same."""

    def attack(honest: PyTree, liars: int, key: jax.Array | None = None) -> PyTree:
        del key
        _check_called(name, honest, liars)
        return rowwise.repeat(one(honest), liars)

    return attack


def _check_called(name: str, honest: PyTree, liars: int) -> None:
    checks.count_clients(honest, "honest")
    checks.check_floating(honest, name)
    checks.check_whole(0, liars=liars)


def _check_scale(scale: float | jax.Array) -> None:
    if not isinstance(scale, jax.core.Tracer):  # which `optimized` tries
        checks.check_finite(scale=scale)


def _map_rows(fn: Callable[[jax.Array], jax.Array], honest: PyTree) -> PyTree:
    """A value of each leaf, worked out in float32 or wider."""
    return pytree.cast_like(jax.tree.map(lambda x: fn(pytree.wide(x)), honest), honest)


def _filled(honest: PyTree, held: float) -> PyTree:
    return jax.tree.map(lambda x: jnp.full(x.shape[1:], held, x.dtype), honest)


def _mean(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=0)


def _scaled(scale: float | jax.Array, x: jax.Array) -> jax.Array:
    return jnp.asarray(scale, x.dtype) * x
