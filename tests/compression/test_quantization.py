"""Equal steps, QSGD and TernGrad: against the papers' formulas, in float64."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from tests.helpers import (
    WAYS,
    assert_close,
    assert_same,
    every_way,
    first_now,
    first_round,
    first_round_compiled,
)


class Grid(NamedTuple):
    """The values that a vector is rounded to: `low` plus whole steps."""

    low: float
    step: float


class Method(NamedTuple):
    stage: fedagg.Stage
    grid: Callable[[np.ndarray], Grid]
    error: float  # E|x' - x|^2 / |x|^2 on normal vectors of 2**14 entries


def from_smallest_to_largest(bits: int) -> Callable[[np.ndarray], Grid]:
    def grid(x: np.ndarray) -> Grid:
        low, high = float(np.min(x)), float(np.max(x))
        return Grid(low, (high - low) / (2**bits - 1))

    return grid


def in_parts_of_the_norm(levels: int) -> Callable[[np.ndarray], Grid]:
    def grid(x: np.ndarray) -> Grid:
        return Grid(0.0, float(np.linalg.norm(x.astype(np.float64))) / levels)

    return grid


def by_the_largest(x: np.ndarray) -> Grid:
    return Grid(0.0, float(np.max(np.abs(x))))


# Errors as measured elsewhere, for each method alone.
METHODS = {
    "uniform_1": Method(
        fedagg.quantization(1, threshold=0), from_smallest_to_largest(1), 14.5
    ),
    "uniform_2": Method(
        fedagg.quantization(2, threshold=0), from_smallest_to_largest(2), 1.19
    ),
    "uniform_4": Method(
        fedagg.quantization(4, threshold=0), from_smallest_to_largest(4), 0.0462
    ),
    "uniform_8": Method(
        fedagg.quantization(8, threshold=0), from_smallest_to_largest(8), 1.6e-4
    ),
    "qsgd_16": Method(fedagg.qsgd(16), in_parts_of_the_norm(16), 5.38),
    "terngrad": Method(fedagg.terngrad(), by_the_largest, 2.28),
}
STOCHASTIC = {
    "quantization": fedagg.quantization(4, threshold=0),
    "qsgd": fedagg.qsgd(16),
    "terngrad": fedagg.terngrad(),
}
ALL = {
    **STOCHASTIC,
    "nearest": fedagg.quantization(4, threshold=0, stochastic=False),
}

every_method = first_now("name", METHODS, quick=2)
every_stage = first_now("name", ALL)
every_stage_that_draws = first_now("name", STOCHASTIC)


def sent(stage: fedagg.Stage, value: Any, key: jax.Array | None = None) -> Any:
    """The message of one client, without its notes."""
    shared = stage.broadcast(stage.init(value))
    update, _ = stage.client(shared, fedagg.Update(value, jnp.float32(1.0)), key)
    return update.value


@functools.partial(jax.jit, static_argnums=0)
def through(stage: fedagg.Stage, rows: jax.Array, seed: int | jax.Array) -> jax.Array:
    """What the server decodes of each row `[n, d]`, a key for each."""
    keys = jax.random.split(jax.random.key(seed), rows.shape[0])
    return jax.vmap(lambda x, key: sent(stage, x, key).decode())(rows, keys)


def one_through(stage: fedagg.Stage, *entries: float, seed: int = 0) -> np.ndarray:
    return np.asarray(through(stage, jnp.asarray([entries], jnp.float32), seed))[0]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def variances(x: np.ndarray, grid: Grid) -> np.ndarray:
    """Of each entry's rounding: f (1 - f) steps squared, f the way to the next step."""
    fraction = np.mod((x.astype(np.float64) - grid.low) / grid.step, 1.0)
    return grid.step**2 * fraction * (1.0 - fraction)


def squared_error(got: Any, x: np.ndarray) -> float:
    return float(np.sum((np.asarray(got, np.float64) - x.astype(np.float64)) ** 2))


@every_method
@pytest.mark.deep
def test_the_error_is_that_of_the_formula_and_of_the_table(name):
    method = METHODS[name]
    rows = normal(64, 2**14)

    got = through(method.stage, jnp.asarray(rows), 1)

    squares = np.sum(rows.astype(np.float64) ** 2, axis=1)
    errors = [squared_error(a, b) for a, b in zip(got, rows, strict=True)]
    expected = [np.sum(variances(x, method.grid(x))) for x in rows]
    # A million draws. A wrong number of levels is off by 13 % at four bits.
    np.testing.assert_allclose(np.mean(errors), np.mean(expected), rtol=0.01)
    # The table's own vectors had other extremes: a range's square varies by a tenth
    # from vector to vector.
    np.testing.assert_allclose(np.mean(errors / squares), method.error, rtol=0.05)


@every_method
def test_every_entry_is_unbiased(name):
    method = METHODS[name]
    x, n = normal(50, seed=2), 20_000

    got = through(method.stage, jnp.tile(x, (n, 1)), 3)
    mean = np.mean(np.asarray(got, np.float64), axis=0)

    grid = method.grid(x)
    deviation = np.sqrt(variances(x, grid) / n)
    # Chances are multiples of 2**-16, and ends of a range carry float32's rounding.
    slack = grid.step * 2.0**-16 + 1e-6
    assert np.all(np.abs(mean - x) <= 5.0 * deviation + slack)
    assert abs(np.sum(mean - x)) <= 5.0 * np.linalg.norm(deviation) + 50 * slack


@every_method
def test_every_entry_goes_to_a_neighbour_on_the_grid(name):
    method = METHODS[name]
    x = normal(500, seed=4)
    grid = method.grid(x)

    got = np.asarray(through(method.stage, jnp.asarray(x[None]), 5), np.float64)[0]

    steps = (got - grid.low) / grid.step
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    assert np.all(np.abs(got - x) < grid.step * (1.0 + 1e-4))


@first_now("bits", [1, 2, 4, 8])
def test_the_error_of_equal_steps_is_within_the_bound_of_suresh(bits):
    # Theorem 2, for one client: d / (2 (k - 1)^2) of the squared norm.
    d, n = 1000, 200
    worst = np.zeros(d, np.float32)
    worst[:2] = 1.0, -1.0
    stage = fedagg.quantization(bits, threshold=0)
    bound = d / (2.0 * (2**bits - 1) ** 2)

    for x in (worst, normal(d), np.exp(normal(d))):
        rows = np.tile(x, (n, 1))
        error = squared_error(through(stage, jnp.asarray(rows), 6), rows) / n
        relative = error / float(np.sum(x.astype(np.float64) ** 2))

        # The worst vector's zeros are halfway: they reach the bound but for two
        # entries, exactly, since each is off by half a step.
        assert relative <= bound
        if x is worst:
            np.testing.assert_allclose(relative, bound * (d - 2) / d, rtol=1e-3)


@first_now("levels", [1, 4, 64, 1000])
def test_the_error_of_qsgd_is_within_the_bound_of_its_paper(levels):
    # Lemma 3.1: variance, and the number of entries that are not zero.
    d, n = 1024, 200
    stage = fedagg.qsgd(levels)

    for x in (normal(d), np.exp(2.0 * normal(d)), np.ones(d, np.float32)):
        rows = np.tile(x, (n, 1))
        got = np.asarray(through(stage, jnp.asarray(rows), 7))
        relative = squared_error(got, rows) / squared_error(rows, 0.0 * rows)

        # Draws move both by about a hundredth.
        assert relative <= 1.02 * min(d / levels**2, math.sqrt(d) / levels)
        assert np.mean(np.sum(got != 0.0, axis=1)) <= 1.02 * levels * (
            levels + math.sqrt(d)
        )


@every_method
def test_errors_of_many_clients_average_out(name):
    method = METHODS[name]
    x, n = normal(2**13, seed=8), 64
    aggregator = fedagg.aggregator(fedagg.mean(weighted=False), method.stage)

    output = jax.jit(aggregator.next)(
        aggregator.init({"x": jnp.asarray(x)}),
        {"x": jnp.tile(x, (n, 1))},
        key=jax.random.key(9),
    )

    # Of 8192 squares the sum has a deviation of 1.6 %; draws that clients shared would
    # leave up to 64 times as much.
    expected = float(np.sum(variances(x, method.grid(x)))) / n
    np.testing.assert_allclose(squared_error(output.value["x"], x), expected, rtol=0.08)


@first_now("bits", [1, 2, 3, 4, 8])
def test_without_draws_halves_go_to_the_even_code(bits):
    x = np.arange(2 ** (bits + 1) - 1, dtype=np.float32) / 2.0
    stage = fedagg.quantization(bits, threshold=0, stochastic=False)

    got = sent(stage, jnp.asarray(x)).decode()

    assert_same(got, jnp.asarray(np.round(x.astype(np.float64)).astype(np.float32)))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.deep
def test_without_draws_every_entry_goes_to_the_nearest_value(bits):
    x = normal(1000, seed=10)
    grid = from_smallest_to_largest(bits)(x)
    stage = fedagg.quantization(bits, threshold=0, stochastic=False)

    got = np.asarray(sent(stage, jnp.asarray(x)).decode(), np.float64)

    steps = (x.astype(np.float64) - grid.low) / grid.step
    expected = grid.low + grid.step * np.round(steps)
    is_clear = np.abs(np.mod(steps, 1.0) - 0.5) > 1e-4  # float32 tells which is nearer
    assert np.mean(is_clear) > 0.99
    np.testing.assert_allclose(got[is_clear], expected[is_clear], atol=1e-6)
    assert np.all(np.abs(got - x) <= 0.5 * grid.step + 1e-6)


@pytest.mark.deep
def test_every_number_of_bits_comes_back_within_a_step():
    x = normal(64, seed=11)
    spread = float(np.ptp(x))

    @jax.jit
    def all_bits(x: jax.Array) -> list[Any]:
        keys = jax.random.split(jax.random.key(12), 16)
        stages = [fedagg.quantization(bits, threshold=0) for bits in range(1, 17)]
        return [sent(s, x, k) for s, k in zip(stages, keys, strict=True)]

    for bits, message in enumerate(all_bits(jnp.asarray(x)), start=1):
        off = np.abs(np.asarray(message.decode(), np.float64) - x)
        # Beside the step, float32's rounding of an entry of about three.
        assert np.all(off < spread / (2**bits - 1) + 1e-6)
        assert sum(part.nbytes for part in message.packed) == 64 * bits // 8
        if bits > 1:
            assert np.max(off) > 0.3 * spread / (2**bits - 1)


@pytest.mark.parametrize("levels", [1, 2, 127, 128, 32767])
@pytest.mark.deep
def test_every_number_of_levels_comes_back_within_a_step(levels):
    x = np.asarray([3.0, -4.0, 0.0, 12.0, -84.0], np.float32)  # of norm 85
    stage = fedagg.qsgd(levels)

    message = jax.jit(functools.partial(sent, stage))(
        jnp.asarray(x), jax.random.key(13)
    )

    got = np.asarray(message.decode())
    assert np.all(np.abs(got - x) < 85.0 / levels * (1.0 + 1e-5))
    assert got[2] == 0.0
    assert message.code_bits == math.ceil(math.log2(2 * levels + 1))


@pytest.mark.deep
def test_a_tensor_is_left_alone_up_to_the_threshold_and_not_above():
    stage = fedagg.quantization()
    value = {
        "at": jnp.asarray(normal(20000)),
        "above": jnp.asarray(normal(20001)),
        "square": jnp.asarray(normal(142, 142)),
        "scalar": jnp.float32(0.3),
    }

    message = sent(stage, value, jax.random.key(14))

    assert_same(message["at"], value["at"])
    assert_same(message["scalar"], value["scalar"])
    assert not hasattr(message["at"], "decode")
    for leaf in ("above", "square"):
        assert message[leaf].packed[0].nbytes == value[leaf].size
        assert message[leaf].decode().shape == value[leaf].shape


@every_stage
@pytest.mark.parametrize("entries", [(0.0,), (0.1,), (-3.3,), (0.0, 0.0, 0.0)], ids=str)
@pytest.mark.deep
def test_one_entry_and_zeros_are_exact(name, entries):
    got = one_through(ALL[name], *entries)

    assert_same(got, np.asarray(entries, np.float32))


@first_now("name", ["quantization", "nearest", "terngrad"])
@first_now("entry", [0.1, -3.3, 1e30, 1e-29])
def test_equal_entries_are_exact(name, entry):
    assert_same(
        one_through(ALL[name], *[entry] * 7), np.asarray([entry] * 7, np.float32)
    )


@every_stage_that_draws
def test_an_empty_tensor_stays_empty(name):
    value = {"x": jnp.zeros((3, 0, 2)), "y": jnp.ones((3, 2))}

    output = first_round_compiled(
        fedagg.aggregator(fedagg.mean(), STOCHASTIC[name]),
        value,
        key=jax.random.key(15),
    )

    assert output.value["x"].shape == (0, 2)


@first_now("name", ["qsgd", "terngrad"])
def test_zeros_among_other_entries_stay_zero(name):
    x = normal(200, 50)
    x[:, ::2] = 0.0

    got = np.asarray(through(STOCHASTIC[name], jnp.asarray(x), 16))

    assert np.all(got[:, ::2] == 0.0)
    assert np.any(got[:, 1::2] != 0.0)


@every_stage
@first_now("bad", [math.nan, math.inf, -math.inf])
@first_now("size", [2, 30_000])
def test_one_bad_entry_makes_the_tensor_nan_throughout(name, bad, size):
    # XLA's maximum over many entries leaves a NaN out on a CPU.
    x = normal(2, size)
    x[0, size // 2] = bad

    alone = jax.jit(lambda x, key: sent(ALL[name], x, key).decode())(
        jnp.asarray(x[0]), jax.random.key(17)
    )
    together = np.asarray(through(ALL[name], jnp.asarray(x), 18))

    assert np.all(np.isnan(alone))
    assert np.all(np.isnan(together[0]))
    assert np.all(np.isfinite(together[1]))


@every_stage
@pytest.mark.deep
def test_several_bad_entries_do_not_cancel_and_other_tensors_are_kept(name):
    value = {
        "bad": jnp.asarray([math.inf, -math.inf, math.nan, 1.0]),
        "good": jnp.asarray([1.0, -1.0]),
    }

    message = sent(ALL[name], value, jax.random.key(19))

    assert np.all(np.isnan(message["bad"].decode()))
    assert np.all(np.abs(message["good"].decode()) <= math.sqrt(2.0) + 1e-6)


@first_now(
    "name, size",
    [("quantization", 1e38), ("nearest", 1e38), ("terngrad", 3e38), ("qsgd", 1e18)],
)
def test_huge_entries_come_back_within_a_step(name, size):
    x = size * np.asarray([1.0, -1.0, 0.5, 0.0, -0.01], np.float32)
    step = {"terngrad": size, "qsgd": 1.6 * size / 16}.get(name, 2.0 * size / 15)

    got = one_through(ALL[name], *x)

    assert np.all(np.abs(got / size - x / size) < step / size * (1.0 + 1e-5))


@first_now("name, size", [("quantization", 2e38), ("nearest", 2e38), ("qsgd", 1e20)])
def test_a_range_or_norm_that_overflows_shows_as_nan(name, size):
    assert np.all(np.isnan(one_through(ALL[name], size, -size, 0.0)))


@every_stage
@first_now("size", [1e-35, 1e-40])
def test_tiny_entries_stay_tiny(name, size):
    got = one_through(ALL[name], size, -size, 0.5 * size, 0.0)

    # Their steps count as zero, since one over a step would overflow.
    assert np.all(np.abs(got) <= 1e-35)


@every_stage
@first_now("dtype", ["bfloat16", "float16"])
def test_half_precision_is_sent_as_float32_would_be(name, dtype):
    x = jnp.asarray(normal(3, 40)).astype(dtype)
    aggregator = fedagg.aggregator(fedagg.mean(), ALL[name])

    half = first_round_compiled(aggregator, {"x": x}, None, jax.random.key(20))
    wide = first_round_compiled(
        aggregator, {"x": x.astype(jnp.float32)}, None, jax.random.key(20)
    )

    assert_same(half.value["x"], wide.value["x"].astype(dtype))


@every_stage
@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_a_leaf_of_integers_is_refused_by_its_path(name, dtype):
    value = {"a": jnp.ones(3), "b": [jnp.ones(3, dtype)]}

    with pytest.raises(TypeError, match=rf"\['b'\]\[0\] has dtype {dtype}"):
        sent(ALL[name], value, jax.random.key(0))


@pytest.mark.parametrize("make", [fedagg.quantization, fedagg.terngrad])
def test_a_missing_key_is_an_error_that_names_the_stage(make):
    value = {"x": jnp.ones((2, 3))}

    for stage, name in ((make(), make.__name__), (make(name="own"), "own")):
        with pytest.raises(ValueError, match=f"^{name} draws .* key=None"):
            first_round(fedagg.aggregator(stage), value)


def test_qsgd_without_a_key_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="^own draws .* key=None"):
        first_round(fedagg.aggregator(fedagg.qsgd(2, name="own")), {"x": jnp.ones(2)})


@pytest.mark.parametrize("bits", [0, 17, -1, 1.5, "8", None])
def test_another_number_of_bits_is_refused(bits):
    with pytest.raises(ValueError, match="bits must be a whole number, 1 to 16, got"):
        fedagg.quantization(bits)


@pytest.mark.parametrize("threshold", [-1, 0.5, None])
def test_another_threshold_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold must be a whole number, 0 or more"):
        fedagg.quantization(8, threshold)


@pytest.mark.parametrize("levels", [0, 2**15, -1, 2.0, None])
def test_another_number_of_levels_is_refused(levels):
    with pytest.raises(ValueError, match="levels must be a whole number, 1 to 32767"):
        fedagg.qsgd(levels)


@every_stage_that_draws
def test_draws_are_those_of_the_key_and_of_no_other(name):
    rows = jnp.asarray(np.tile(normal(200, seed=21), (2, 1)))

    first, again, other = (through(STOCHASTIC[name], rows, s) for s in (22, 22, 23))

    assert_same(first, again)
    assert np.any(first != other)
    assert np.any(first[0] != first[1])


@every_method
def test_equal_clients_and_equal_tensors_are_rounded_apart(name):
    method = METHODS[name]
    x = normal(200, seed=24)
    grid = method.grid(x)
    values = {leaf: jnp.asarray(np.stack([x, x])) for leaf in "ab"}

    total = first_round_compiled(
        fedagg.aggregator(method.stage), values, None, jax.random.key(25)
    ).value

    # Of two clients rounded alike, every sum would be an even number of steps.
    steps = np.round((np.asarray(total["a"]) - 2.0 * grid.low) / grid.step)
    assert np.sum(steps % 2.0) > 10
    assert np.any(total["a"] != total["b"])


@every_way
@pytest.mark.deep
def test_draws_are_the_same_bits_in_every_way_to_sum(way):
    # Steps of 1, 1 and 2.5, so that sums are exact in any order.
    draw = np.random.default_rng(27)
    uniform = draw.uniform(0.0, 15.0, (11, 16)).astype(np.float32)
    uniform[:, :2] = 0.0, 15.0
    ternary = draw.uniform(-1.0, 1.0, (11, 16)).astype(np.float32)
    ternary[:, 0] = -1.0
    halves = np.full((11, 16), 1.25, np.float32)
    parts = [
        (fedagg.quantization(4, threshold=0), uniform),
        (fedagg.terngrad(), ternary),
        (fedagg.qsgd(2), halves),
    ]

    def sums(sum_over: Callable[[], Any]) -> list[jax.Array]:
        return [
            fedagg.aggregator(stage, sum_over=sum_over())
            .next(((),), jnp.asarray(x), None, jax.random.key(i))
            .value
            for i, (stage, x) in enumerate(parts)
        ]

    got = jax.jit(lambda: sums(WAYS[way]))()
    expected = jax.jit(lambda: sums(fedagg.at_once))()

    assert_same(got, expected)
    assert all(np.ptp(x) > 0.0 for x in got)


@every_stage
def test_a_message_that_crossed_the_wire_decodes_to_the_same(name):
    value = {"x": jnp.asarray(normal(7, 5)), "y": jnp.asarray(normal(9))}

    def decoded(message: Any) -> Any:
        return {leaf: x.decode() for leaf, x in message.items()}

    @jax.jit
    def client(key: jax.Array) -> tuple[Any, Any]:
        message = sent(ALL[name], value, key)
        return message, decoded(message)

    message, expected = client(jax.random.key(28))
    leaves, structure = jax.tree.flatten(message)
    wire = [(np.asarray(x).tobytes(), x.dtype, x.shape) for x in leaves]
    arrived = [jnp.asarray(np.frombuffer(b, d).reshape(s)) for b, d, s in wire]

    got = decoded(jax.tree.unflatten(structure, arrived))

    # A compiler may fuse the product with the sum, which saves a rounding.
    assert_close(got, expected, rtol=1e-6)


@pytest.mark.deep
def test_codes_of_four_bits_take_half_a_byte_an_entry():
    stage = fedagg.quantization(4, threshold=0)

    even = sent(stage, jnp.asarray(normal(100)), jax.random.key(29))
    odd = sent(stage, jnp.asarray(normal(101)), jax.random.key(29))

    assert sum(x.nbytes for x in jax.tree.leaves(even)) == 50 + 4 + 4
    assert sum(x.nbytes for x in jax.tree.leaves(odd)) == 51 + 4 + 4


@pytest.mark.deep
def test_terngrad_and_qsgd_send_two_bits_and_no_smallest_entry():
    for stage in (fedagg.terngrad(), fedagg.qsgd(1)):
        message = sent(stage, jnp.asarray(normal(100)), jax.random.key(30))

        assert sum(x.nbytes for x in jax.tree.leaves(message)) == 25 + 4


@every_stage
@pytest.mark.deep
def test_an_absent_client_that_holds_a_nan_is_left_out(name):
    rows = np.ones((3, 4), np.float32)
    rows[1] = math.nan
    aggregator = fedagg.aggregator(fedagg.mean(), ALL[name])

    output = first_round(
        aggregator,
        {"x": jnp.asarray(rows)},
        jnp.asarray([1.0, 0.0, 2.0]),
        jax.random.key(31),
    )

    assert np.all(np.isfinite(output.value["x"]))
    assert output.metrics == {"mean/weight": 3.0}


def test_after_a_mean_the_error_is_below_the_steps_of_the_weighted_values():
    # Value times weight is what is rounded: its range grows with the weight.
    rows, weights = normal(2, 300, seed=32), np.asarray([1.0, 9.0], np.float32)
    stage = fedagg.quantization(8, threshold=0)
    aggregator = fedagg.aggregator(fedagg.mean(), stage)

    output = first_round_compiled(
        aggregator, {"x": jnp.asarray(rows)}, jnp.asarray(weights), jax.random.key(33)
    )

    steps = np.ptp(rows, axis=1) * weights / 255.0
    expected = weights.astype(np.float64) @ rows / 10.0
    assert np.max(np.abs(output.value["x"] - expected)) < np.sum(steps) / 10.0


@pytest.mark.parametrize(
    "stage", [fedagg.quantization(8, threshold=0), fedagg.qsgd(5), fedagg.terngrad()]
)
@pytest.mark.deep
def test_values_of_64_bits_are_quantized_in_32(stage):
    with jax.enable_x64(True):
        value = jnp.linspace(-1.0, 1.0, 3 * 50, dtype=jnp.float64).reshape(3, 50)
        aggregator = fedagg.aggregator(fedagg.mean(), stage)
        arguments = aggregator.init(value[0]), value, None, jax.random.key(0)

        got = jax.jit(aggregator.next)(*arguments).value

    assert got.dtype == jnp.float64
    assert np.all(np.isfinite(got))
