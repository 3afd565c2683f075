"""Who runs: a table of aggregators, each in every way to sum, and their peers."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import fedagg
from benchmarks import reference
from benchmarks.alternatives import ALTERNATIVES
from benchmarks.inputs import Size
from fedagg import Aggregator, Output, Rule, Stage
from fedagg._compression.rotation import rotated_length
from fedagg._noise.integer_laws import skellam
from fedagg._noise.integer_noise import LARGEST_STDDEV, draw, table_of
from fedagg._noise.sum_grid import SumGrid, integer_noise
from fedagg._trees.template import Template

PyTree = Any
SumOver = Callable[..., PyTree]


class Case(NamedTuple):
    """An aggregator to measure."""

    make: Callable[[SumOver | None], Aggregator]  # from a way to sum
    expected: Callable[[np.ndarray, np.ndarray], np.ndarray]  # (stack, weights) -> [d]
    ways: tuple[str, ...] = ()  # the only ways to sum to measure; none: all
    spoil: Callable[[jax.Array], jax.Array] = lambda stack: stack  # done to [n, d]
    most: float = float("inf")  # entries n x d, beyond which it takes too long
    # What a compressor's squared error may be at most, of (stack, weights).
    error: Callable[[np.ndarray, np.ndarray], float] | None = None


def _compressing(stages: list[Stage], error: Callable) -> Case:
    """The mean of messages made by these stages."""
    return Case(
        lambda way: fedagg.aggregator(fedagg.mean(), *stages, sum_over=way),
        reference.mean,
        ways=("default",),
        error=error,
    )


def _ruling(rule: Rule, expected: Callable, most: float = float("inf")) -> Case:
    """A rule, which takes no way to sum."""
    return Case(
        lambda way: fedagg.combining(rule), expected, ways=("default",), most=most
    )


def _noising(
    make: Callable[[float], Stage], deviation: float = 1.0, clients: bool = False
) -> Case:
    """The sum of values clipped to one, noised by a stage made for one client a round.

    Of the deviation given, at the server or at each of the clients.
    """
    return Case(
        lambda way: fedagg.aggregator(make(1.0), sum_over=way),
        reference.clipped_total,
        ways=("default",),
        error=functools.partial(
            reference.error_of_noise, deviation=deviation, clients=clients
        ),
    )


def _normal(key: jax.Array, tree: PyTree) -> PyTree:
    """Normal draws like the leaves, all at once."""
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))


def _taking_back() -> optax.GradientTransformation:
    """A privatizer that takes half of each round's noise back in the next."""

    def init(params: PyTree) -> PyTree:
        return jax.random.key(0), jax.tree.map(jnp.zeros_like, params)

    def update(updates: PyTree, state: PyTree, params: PyTree = None):
        key, before = state
        noise = _normal(key, before)
        noised = jax.tree.map(lambda x, y, z: x + y - 0.5 * z, updates, noise, before)
        return noised, (key, noise)

    return optax.GradientTransformation(init, update)


def _skellam(n: float) -> Stage:
    """Noise at the clients, under a secure sum."""
    noise = fedagg.skellam_noise(1.0, 1.0, n, smallest_cohort=1, largest_cohort=1000)
    return fedagg.secure_modular_sum(noise, bits=20, largest_cohort=1000)


def _draw(state: PyTree, updates: PyTree, weights: jax.Array, key: jax.Array) -> Output:
    """As many normal draws as one client has entries."""
    row = jax.tree.map(lambda x: x[0], updates)
    return Output(state, _normal(key, row), {})


def _draw_for_server(
    state: PyTree, updates: PyTree, weights: jax.Array, key: jax.Array
) -> Output:
    """As many discrete Gaussian draws as one client has entries."""
    row = jax.tree.map(lambda x: x[0], updates)
    grid = SumGrid.of(1.0, 1.0)
    draws = integer_noise(grid.deviation, key, row)
    return Output(state, jax.tree.map(lambda x: x / grid.deviation, draws), {})


def _draw_integers(
    state: PyTree, updates: PyTree, weights: jax.Array, key: jax.Array
) -> Output:
    """As many Skellam draws as all clients have entries, filled up for a rotation.

    They are summed in steps of which a deviation has 1800.
    """
    row = jax.tree.map(lambda x: x[0], updates)
    template = Template.of(row)
    length = rotated_length("hadamard", template.size)
    table = table_of(skellam, LARGEST_STDDEV)

    def of_client(client: jax.Array) -> jax.Array:
        return draw(table, jax.random.fold_in(key, client), length)

    clients = jnp.arange(len(weights), dtype=jnp.uint32)
    total = fedagg.in_chunks(1)(of_client, clients)[: template.size]
    return Output(
        state, template.unravel(total.astype(jnp.float32) / LARGEST_STDDEV), {}
    )


# Another aggregator is one more line here, and its peers, if any, one in ALTERNATIVES.
CASES = {
    "sum": Case(lambda way: fedagg.aggregator(sum_over=way), reference.total),
    "mean": Case(
        lambda way: fedagg.aggregator(fedagg.mean(), sum_over=way), reference.mean
    ),
    "clipped mean": Case(
        lambda way: fedagg.aggregator(
            fedagg.clipping(1.0), fedagg.mean(weighted=False), sum_over=way
        ),
        reference.clipped_mean,
    ),
    "adaptive clipped mean": Case(
        lambda way: fedagg.robust_aggregator(zeroing=False, sum_over=way),
        reference.weighted_clipped_mean,
    ),
    "robust": Case(
        lambda way: fedagg.robust_aggregator(sum_over=way), reference.robust_mean
    ),
    "robust, one NaN": Case(
        lambda way: fedagg.robust_aggregator(sum_over=way),
        reference.robust_mean,
        ways=("default", "in_chunks(1)"),
        spoil=lambda stack: stack.at[-1, 0].set(jnp.nan),
    ),
    "clipped mean, measured": Case(
        lambda way: fedagg.aggregator(
            fedagg.with_measurements(fedagg.clipping(1.0), fedagg.mean(weighted=False)),
            sum_over=way,
        ),
        reference.clipped_mean,
        ways=("default",),
    ),
    "8-bit quantization": _compressing(
        [fedagg.quantization()], reference.error_of_steps
    ),
    "4-bit quantization": _compressing(
        [fedagg.quantization(4)], functools.partial(reference.error_of_steps, bits=4)
    ),
    "rotation, 8 bits": _compressing(
        [fedagg.rotation("hadamard"), fedagg.quantization()],
        functools.partial(reference.error_in_parts, part=1e-3),
    ),
    "EDEN, 1 bit": _compressing(
        [fedagg.eden(1)], functools.partial(reference.error_in_parts, part=0.6)
    ),
    "EDEN, 4 bits": _compressing(
        [fedagg.eden(4)], functools.partial(reference.error_in_parts, part=0.01)
    ),
    "secure mean": Case(
        lambda way: fedagg.aggregator(
            fedagg.secure_sum(
                fedagg.mean(), 1000.0, largest_cohort=1000, largest_weight=7.0
            ),
            sum_over=way,
        ),
        reference.mean,
        ways=("default", "in_chunks(1)"),
        error=functools.partial(reference.error_of_secure_sum, bound=1000.0),
    ),
    "secure_aggregator": Case(
        lambda way: fedagg.secure_aggregator(sum_over=way),
        reference.robust_mean,
        ways=("default", "in_chunks(1)"),
        error=functools.partial(reference.error_of_secure_sum, bound=100.0),
    ),
    "Gaussian noise": _noising(lambda n: fedagg.gaussian_noise(1.0, 1.0, n)),
    "Gaussian noise, adaptive": _noising(
        lambda n: fedagg.adaptive_gaussian_noise(
            1.0, n, initial_clip=1.0, count_stddev=1.0
        ),
        deviation=0.75**-0.5,
    ),
    "tree noise": _noising(
        lambda n: fedagg.tree_noise(1.0, 1.0, n, restart_every=1024)
    ),
    "Toeplitz noise": _noising(
        lambda n: fedagg.toeplitz_noise(1.0, 1.0, n, [1.0, 0.5])
    ),
    "noise by a privatizer": _noising(
        lambda n: fedagg.matrix_factorization_noise(_taking_back(), 1.0, n)
    ),
    "local noise": _noising(
        lambda n: fedagg.local_gaussian_noise(1.0, 1.0), clients=True
    ),
    "normal draws alone": Case(
        lambda way: Aggregator(lambda template: (), _draw),
        lambda stack, weights: np.zeros(stack.shape[1]),
        ways=("default",),
        error=functools.partial(reference.error_of_noise, deviation=1.0),
    ),
    "integer draws alone": Case(
        lambda way: Aggregator(lambda template: (), _draw_for_server),
        lambda stack, weights: np.zeros(stack.shape[1]),
        ways=("default",),
        error=functools.partial(reference.error_of_noise, deviation=1.0),
    ),
    "Skellam noise": _noising(_skellam, clients=True),
    "Skellam draws alone": Case(
        lambda way: Aggregator(lambda template: (), _draw_integers),
        lambda stack, weights: np.zeros(stack.shape[1]),
        ways=("default",),
        error=functools.partial(reference.error_of_noise, deviation=1.0, clients=True),
    ),
    "median": _ruling(fedagg.median(), reference.median, 1e8),
    "trimmed mean": _ruling(fedagg.trimmed_mean(1), reference.trimmed_mean, 1e8),
    "weighted median": _ruling(
        fedagg.median(weighted=True), reference.weighted_median, 1e8
    ),
    "weighted trimmed mean": _ruling(
        fedagg.trimmed_mean(1, weighted=True), reference.weighted_trimmed_mean, 1e8
    ),
    "mean around median": _ruling(
        fedagg.mean_around_median(1), reference.mean_around_median, 1e8
    ),
    "Krum": _ruling(fedagg.krum(1), reference.krum),
    "multi-Krum": _ruling(fedagg.multi_krum(1), reference.multi_krum),
    "Bulyan": _ruling(fedagg.bulyan(1), reference.bulyan, 1e8),
    "geometric median": _ruling(fedagg.geometric_median(), reference.geometric_median),
    "centered clipping": _ruling(fedagg.centered_clipping(1.0), reference.clipped_mean),
}


class Row(NamedTuple):
    """One line of the table, ready to run."""

    aggregator: str
    way: str
    round: Callable[..., Output]  # (state, updates, weights)
    init: Callable[[PyTree], PyTree]  # template -> state
    mesh: jax.sharding.Mesh | None = None  # what its clients are spread over


class Skipped(NamedTuple):
    """One line of the table that does not run."""

    aggregator: str
    way: str
    reason: str


def rows(size: Size) -> Iterator[Row | Skipped]:
    """Each aggregator in each way to sum, and its peers."""
    for name, case in CASES.items():
        if size.clients * size.parameters > case.most:
            yield Skipped(name, "all", f"slow above {case.most:,.0f} entries")
            continue
        for way, (sum_over, mesh) in _ways(size).items():
            if way in (case.ways or (way,)):
                yield _row(name, way, sum_over, mesh)
        for peer, fn in ALTERNATIVES.get(name, {}).items():
            if fn is None:
                yield Skipped(name, peer, "install fedagg[bench]")
            else:
                yield Row(name, peer, _as_round(fn), lambda template: ())


def default_row(name: str) -> Row:
    """An aggregator by the default way to sum."""
    return _row(name, "default", None, None)


def is_picked(way: str) -> bool:
    """Whether this is a way to sum that a user may pick by hand, on one device."""
    return way.startswith(("at_once(", "in_chunks("))


def _row(
    name: str, way: str, sum_over: SumOver | None, mesh: jax.sharding.Mesh | None
) -> Row:
    aggregator = CASES[name].make(sum_over)
    return Row(name, way, _with_key(aggregator), aggregator.init, mesh)


def _ways(size: Size) -> dict[str, tuple]:
    """Per way to sum, the argument for it and the mesh for its clients."""
    ways: dict[str, tuple] = {
        "default": (None, None),
        "at_once()": (fedagg.at_once(), None),
    }
    for chunk in (1, 8, 64):
        if chunk < size.clients:  # else it is at_once()
            ways[f"in_chunks({chunk})"] = (fedagg.in_chunks(chunk), None)
    devices = jax.device_count()
    if devices > 1 and size.clients % devices == 0:
        mesh = jax.make_mesh((devices,), ("clients",))
        ways[f"across({devices} devices)"] = (fedagg.across(mesh), mesh)
    return ways


def _with_key(aggregator: Aggregator) -> Callable:
    def run(state: PyTree, updates: PyTree, weights: jax.Array) -> Output:
        return aggregator.next(state, updates, weights, jax.random.key(0))

    return run


def _as_round(peer: Callable[[PyTree, jax.Array], PyTree]) -> Callable:
    def run(state: PyTree, updates: PyTree, weights: jax.Array) -> Output:
        return Output(state, peer(updates, weights), {})

    return run
