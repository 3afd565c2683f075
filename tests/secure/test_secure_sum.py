"""Secure sums against integers in NumPy, and against the sums that they stand for."""

import math
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from fedagg._messages.residues import Residues
from fedagg._secure.fixed_point import FixedPoint
from tests.helpers import (
    TEMPLATE,
    WAYS,
    assert_close,
    assert_same,
    every_way,
    first_now,
    first_round_compiled,
    make_updates,
    with_absent,
    with_rows,
)

NOTHING = fedagg.chain()


def secured(
    bound: Any = 50.0, stage: Any = None, sum_over: Any = None, **options: Any
) -> fedagg.Aggregator:
    stage = fedagg.mean() if stage is None else stage
    given: dict[str, Any] = {"largest_cohort": 20, "largest_weight": 20.0} | options
    return fedagg.aggregator(
        fedagg.secure_sum(stage, bound, **given), sum_over=sum_over
    )


def leaves_of(*trees):
    """The leaves of several trees, side by side."""
    return zip(*map(jax.tree.leaves, trees), strict=True)


@pytest.mark.deep
def test_a_mean_is_the_mean_to_the_step():
    updates = make_updates()

    hidden = first_round_compiled(secured(1000.0), *updates)
    plain = first_round_compiled(fedagg.aggregator(fedagg.mean()), *updates)

    step = 1000.0 * 20 / 2**31
    for got, expected in zip(
        *map(jax.tree.leaves, (hidden.value, plain.value)), strict=True
    ):
        error = np.abs(np.asarray(got) - np.asarray(expected))
        assert np.all(error <= 11 * step / float(plain.metrics["mean/weight"]) + 1e-5)
    assert hidden.metrics["mean/weight"] == plain.metrics["mean/weight"]
    assert hidden.metrics["secure_sum/upper_clipped_count"] == 0


@first_now("bits", [8, 12, 20, 32])
def test_the_sum_of_residues_is_that_of_numpy_modulo_the_power(bits):
    updates = make_updates()
    stage = fedagg.secure_sum(NOTHING, 30.0, largest_cohort=11, bits=bits)
    shared = stage.broadcast(stage.init(TEMPLATE))

    sent, notes = jax.jit(jax.vmap(lambda x: stage.client(shared, x, None)))(updates)
    total = jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=x.dtype), sent.value)

    most = (2 ** (bits - 1) - 1) // 11
    steps = most >> max(0, most.bit_length() - 24) << max(0, most.bit_length() - 24)
    for leaf, x in updates.value.items():
        clipped = np.clip(np.asarray(x), -30.0, 30.0).astype(np.float32)
        units = np.rint(clipped * np.float32(1.0 / (30.0 / steps))).astype(np.int64)
        expected = np.clip(units, -steps, steps).sum(axis=0) % 2**bits
        off = (np.asarray(total[leaf].unsigned()).astype(np.int64) - expected) % 2**bits
        # A product of float32 has 24 bits.
        slack = 11 * max(0, steps >> 24)
        assert np.all((off <= slack) | (off >= 2**bits - slack))
    assert all(x.dtype == jnp.uint32 for x in jax.tree.leaves((sent.value, notes)))
    assert np.all(np.asarray(jax.tree.leaves(sent.value)[0]) < 2**bits)


@every_way
def test_every_way_to_sum_gives_the_same_bits(way):
    updates = with_absent(make_updates(), math.nan, [0, 4])
    bound = fedagg.quantile_bound(2.0, 0.8, 0.5)
    expected = first_round_compiled(secured(bound), *updates)

    got = first_round_compiled(secured(bound, sum_over=WAYS[way]()), *updates)

    assert_same(got, expected)


def test_entries_are_clipped_and_their_clients_counted():
    updates = {"x": jnp.array([[1.0, -7.0], [9.0, 2.0], [3.0, 3.0], [8.0, -9.0]])}

    both = first_round_compiled(secured((-5.0, 6.0), NOTHING), updates)
    one = first_round_compiled(secured(5.0, NOTHING), updates)

    np.testing.assert_allclose(both.value["x"], [16.0, -5.0], atol=1e-5)
    np.testing.assert_allclose(one.value["x"], [14.0, -5.0], atol=1e-5)
    for output, upper in ((both, 6.0), (one, 5.0)):
        assert output.metrics["secure_sum/lower_clipped_count"] == 2
        assert output.metrics["secure_sum/upper_clipped_count"] == 2
        assert output.metrics["secure_sum/lower_threshold"] == -5.0
        assert output.metrics["secure_sum/upper_threshold"] == upper


def test_a_pair_of_learnt_bounds_follows_either_end():
    def learnt() -> fedagg.Bound:
        return fedagg.quantile_bound(1.0, 0.5, 1.0)

    updates = {"x": jnp.tile(jnp.array([[-0.1, 20.0]]), (4, 1))}

    output = first_round_compiled(secured((learnt(), learnt()), NOTHING), updates)

    # Nobody was above the one, and everybody above the other.
    (state,) = output.state
    assert_close(state.values.lower, np.float32(math.exp(-0.5)))
    assert_close(state.values.upper, np.float32(math.exp(0.5)))


def test_integers_are_summed_as_they_are():
    updates = {"x": jnp.array([[100, -3], [7, 2], [-50, 1]], jnp.int32)}

    output = first_round_compiled(secured((-40, 90), NOTHING), updates)

    np.testing.assert_array_equal(output.value["x"], [57, 0])
    assert output.value["x"].dtype == jnp.int32
    assert output.metrics["secure_sum/upper_clipped_count"] == 1
    assert output.metrics["secure_sum/lower_clipped_count"] == 1


@pytest.mark.deep
def test_half_precision_comes_back_in_its_dtype():
    updates = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_updates().value)

    hidden = first_round_compiled(secured(100.0, NOTHING), updates)
    plain = first_round_compiled(fedagg.aggregator(), updates)

    for got, expected in zip(
        *map(jax.tree.leaves, (hidden.value, plain.value)), strict=True
    ):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            got.astype(jnp.float32), expected.astype(jnp.float32), rtol=0.01, atol=1e-4
        )


@first_now("bad", [math.nan, math.inf, -math.inf])
def test_a_client_that_is_not_finite_is_left_out_and_counted(bad):
    updates = make_updates()
    held = with_rows(updates.value["w"], 3, bad)
    weight = with_rows(updates.weight, 3, 0.0)

    dirty = first_round_compiled(secured(), updates.value | {"w": held}, updates.weight)
    without = first_round_compiled(secured(), updates.value, weight)

    assert_same(dirty.value, without.value)
    assert dirty.metrics["mean/weight"] == without.metrics["mean/weight"]
    assert dirty.metrics["secure_sum/left_out_count"] == 1
    assert without.metrics["secure_sum/left_out_count"] == 0


@pytest.mark.deep
def test_a_client_of_a_larger_weight_than_declared_is_left_out_and_counted():
    updates = make_updates()
    heavy = with_rows(updates.weight, 3, 20.5)
    absent = with_rows(updates.weight, 3, 0.0)

    got = first_round_compiled(secured(), updates.value, heavy)
    without = first_round_compiled(secured(), updates.value, absent)

    assert_same(got.value, without.value)
    assert got.metrics["secure_sum/left_out_count"] == 1


def test_more_clients_than_declared_show_as_nan_and_teach_nothing():
    updates = make_updates()
    bound = fedagg.quantile_bound(2.0, 0.8, 0.5)
    stage = fedagg.chain(fedagg.clipping(bound), fedagg.mean())
    aggregator = secured(bound, stage, largest_cohort=10)

    eleven = first_round_compiled(aggregator, *updates)
    ten = first_round_compiled(
        aggregator, updates.value, with_rows(updates.weight, 2, 0.0)
    )

    assert all(np.all(np.isnan(x)) for x in jax.tree.leaves(eleven.value))
    assert_same(eleven.state, aggregator.init(TEMPLATE))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(ten.value))
    assert eleven.metrics["mean/weight"] == 0.0


@pytest.mark.deep
def test_the_largest_sums_that_are_declared_do_not_wrap():
    for bits, cohort in ((32, 1), (32, 2), (32, 7), (20, 1000), (9, 3)):
        updates = {"x": jnp.tile(jnp.array([[5.0, -5.0]]), (cohort, 1))}
        aggregator = secured(
            5.0, NOTHING, bits=bits, largest_cohort=cohort, largest_weight=1.0
        )

        value = first_round_compiled(aggregator, updates).value["x"]

        np.testing.assert_allclose(value, [5.0 * cohort, -5.0 * cohort], rtol=1e-6)


@pytest.mark.parametrize("largest", [1.0, 20.0, 2.0**20 - 1])
@pytest.mark.parametrize("bits, cohort", [(32, 1), (32, 1000), (32, 65536), (24, 100)])
@pytest.mark.deep
def test_notes_are_exact_multiples_of_their_unit(bits, cohort, largest):
    fixed_point = FixedPoint.of(bits, cohort, largest)
    draw = np.random.default_rng(1)
    units = draw.integers(-(2**20), 2**20, 50) * 2.0**-fixed_point.fraction_bits
    notes = np.concatenate([units, [0.5, -0.5, 1.0, -1.0, 0.0, largest, -largest]])
    notes = notes[np.abs(notes) <= largest].astype(np.float32)

    encoded, fits = fixed_point.encode(jnp.asarray(notes))
    words = np.asarray(encoded.words).astype(np.uint64)
    # As if the whole cohort had sent the same, in the ring.
    total = Residues(
        jnp.asarray((words * cohort % 2**32).astype(np.uint32)), bits, "float32"
    )

    assert bool(fits)
    expected = notes.astype(np.float64) * cohort
    np.testing.assert_allclose(
        np.asarray(fixed_point.decode(total)), expected, rtol=1e-7
    )


@hypothesis.given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9),
    st.sampled_from([jnp.int32, jnp.uint32]),
)
@hypothesis.settings(deadline=None, max_examples=50)
@pytest.mark.deep
def test_integer_notes_sum_as_integers_do(numbers, dtype):
    fixed_point = FixedPoint.of(32, 9, 1.0)
    notes = np.asarray(numbers, np.int64).astype(dtype)

    encoded = [fixed_point.encode(jnp.asarray(x)) for x in notes]
    words = sum((x.words for x, _ in encoded), jnp.uint32(0))

    assert all(bool(fits) for _, fits in encoded)
    got = fixed_point.decode(Residues(words, 32, str(np.dtype(dtype))))
    assert got == notes.sum(dtype=dtype)


@pytest.mark.deep
def test_a_stage_that_rotates_or_rounds_or_picks_commutes_with_the_sum():
    updates = make_updates()
    for inner, bound in (
        (fedagg.rotation("hadamard"), 1000.0),
        (fedagg.random_k(0.5), 1000.0),
        (fedagg.discretization(0.001, stochastic=False), 10_000_000),
    ):
        stage = fedagg.chain(fedagg.mean(), inner)
        # A note of discretization is the largest size, in steps.
        hidden = secured(bound, stage, largest_weight=2.0**24)

        got = first_round_compiled(hidden, *updates)
        plain = first_round_compiled(fedagg.aggregator(stage), *updates)

        for x, y in leaves_of(got.value, plain.value):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    "stage, named",
    [
        (fedagg.quantization(8, 0), "quantization"),
        (fedagg.quantization(8, 0, name="codes"), "codes"),
        (fedagg.qsgd(3), "qsgd"),
        (fedagg.terngrad(), "terngrad"),
        (fedagg.sign(), "sign"),
        (fedagg.top_k(0.5), "top_k"),
        (fedagg.eden(2), "eden"),
        (fedagg.drive(), "drive"),
    ],
)
def test_a_stage_that_does_not_commute_is_refused_by_name(stage, named):
    with pytest.raises(ValueError, match=f"messages of .*{named}.* cannot be added"):
        secured(1.0, fedagg.chain(fedagg.clipping(1.0), stage))


def test_a_compressor_after_a_secure_sum_is_refused():
    hidden = fedagg.secure_sum(NOTHING, 1.0, largest_cohort=9)

    with pytest.raises(ValueError, match="qsgd comes after secure_sum"):
        fedagg.aggregator(hidden, fedagg.qsgd(3))


def test_a_secure_sum_in_another_is_refused():
    hidden = fedagg.secure_sum(NOTHING, 1.0, largest_cohort=9)

    with pytest.raises(ValueError, match="the sum of secure_sum is a secure one"):
        secured(1.0, hidden)


def test_a_stage_that_weighs_needs_the_largest_weight():
    with pytest.raises(ValueError, match="give largest_weight, .* mean multiplies"):
        fedagg.secure_sum(fedagg.mean(), 1.0, largest_cohort=9)


def test_a_rule_is_refused():
    hidden = fedagg.secure_sum(NOTHING, 1.0, largest_cohort=20)

    with pytest.raises(ValueError, match="secure"):
        fedagg.combining(fedagg.median(), hidden)


def test_integers_that_could_wrap_are_refused_with_the_numbers():
    with pytest.raises(ValueError, match="-300 to 300, where 204 is the largest"):
        secured(300, NOTHING, bits=12, largest_cohort=10).init(jnp.zeros(3, jnp.int32))


def test_integers_with_a_learnt_bound_are_refused():
    aggregator = secured(fedagg.quantile_bound(1.0, 0.5, 0.1), NOTHING)

    with pytest.raises(TypeError, match="integers take a bound of numbers"):
        aggregator.init(jnp.zeros(3, jnp.int32))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bits": 33}, "bits must be a whole number, 2 to 32"),
        ({"bits": 1}, "bits must be a whole number, 2 to 32"),
        ({"largest_cohort": 0}, "largest_cohort must be a whole number, 1 or more"),
        ({"largest_cohort": 300, "bits": 8}, "below 2\\*\\*bits"),
        ({"largest_weight": 0.5}, r"largest_weight must be in \[1, inf\)"),
        ({"largest_weight": math.inf}, r"largest_weight must be in \[1, inf\)"),
        (
            {"largest_cohort": 1000, "bits": 16, "largest_weight": 1e6},
            "has? 6 bits and needs 11|6 bits and needs 11",
        ),
    ],
)
def test_arguments_out_of_range_are_refused_with_the_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        secured(1.0, NOTHING, **options)


@pytest.mark.parametrize(
    "bound", [0.0, -1.0, (1.0, 1.0), (2.0, 1.0), (1.0, math.inf), (1.0, 2.0, 3.0)]
)
def test_a_bound_out_of_range_is_refused(bound):
    with pytest.raises(ValueError, match="bound must be"):
        secured(bound, NOTHING)


def test_modular_sums_wrap_around():
    updates = jnp.array([[100, -120, 5], [100, -120, 6], [0, 0, -30]], jnp.int32)
    stage = fedagg.secure_modular_sum(NOTHING, bits=8, largest_cohort=3)

    value = first_round_compiled(fedagg.aggregator(stage), updates).value

    np.testing.assert_array_equal(value, [200 - 256, -240 + 256, -19])


def test_modular_sums_take_integers_only():
    stage = fedagg.secure_modular_sum(NOTHING, bits=8, largest_cohort=3)

    with pytest.raises(TypeError, match="such as discretization"):
        fedagg.aggregator(stage).init(jnp.zeros(3))


def test_residues_are_of_the_bits_that_travel():
    stage = fedagg.secure_modular_sum(NOTHING, bits=20, largest_cohort=3)

    bits = fedagg.message_bits(stage, jnp.zeros(100, jnp.int32))

    assert bits == 100 * 20 + 2 * 20  # with who is present, and who left out


@pytest.mark.deep
def test_the_recipe_is_the_robust_one_to_the_step():
    updates = make_updates()
    updates = updates._replace(value=with_absent(updates, 1e6, [2]).value)

    hidden = first_round_compiled(fedagg.secure_aggregator(), *updates)
    robust = first_round_compiled(fedagg.robust_aggregator(), *updates)

    step = 100.0 * 1000 / 2**31
    weight = float(robust.metrics["mean/weight"])
    for x, y in leaves_of(hidden.value, robust.value):
        assert np.all(
            np.abs(np.asarray(x) - np.asarray(y)) <= 11 * step / weight + 1e-6
        )
    for name, x in robust.metrics.items():
        assert_close(hidden.metrics[name], x)
    (state,) = hidden.state
    assert_same(state.stage, tuple(robust.state))


def noting(note: Any) -> fedagg.Stage:
    """A user's own stage with this note, whose sum is a metric."""
    return fedagg.Stage.stateless(
        lambda update, key: (update, jnp.asarray(note)),
        lambda total, note, key: (total, {"note": note}),
    )


@first_now(
    "note, total",
    [(True, 11), (np.int8(100), 1100), (np.uint16(3), 33), (np.float16(0.5), 5.5)],
)
def test_a_note_of_a_narrow_dtype_is_summed_as_a_number(note, total):
    output = first_round_compiled(
        secured(50.0, noting(note), largest_weight=200.0), *make_updates()
    )

    assert output.metrics["note"] == total


def test_integers_of_64_bits_are_summed_as_those_of_32():
    narrow = np.arange(-11, 22).reshape(11, 3)

    with jax.enable_x64(True):
        wide = {"k": jnp.asarray(narrow, jnp.int64)}
        within = secured(50.0, NOTHING)
        modulo = fedagg.aggregator(
            fedagg.secure_modular_sum(NOTHING, bits=8, largest_cohort=11)
        )
        for aggregator in (within, modulo):
            got = first_round_compiled(aggregator, wide).value["k"]
            far = first_round_compiled(modulo, {"k": wide["k"] + 2**40}).value["k"]

            assert got.dtype == far.dtype == jnp.int64
            np.testing.assert_array_equal(got, narrow.sum(axis=0))
            np.testing.assert_array_equal(far, narrow.sum(axis=0))


def test_a_note_beyond_32_bits_leaves_its_client_out():
    with jax.enable_x64(True):
        output = first_round_compiled(
            secured(50.0, noting(np.int64(2**33 + 1))), *make_updates()
        )

        assert output.metrics["secure_sum/left_out_count"] == 11
        assert output.metrics["note"] == 0
