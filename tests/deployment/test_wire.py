"""Messages are bytes and come back; whatever else comes is refused."""

import functools
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedagg
from fedagg._deployment import residue_bits
from tests.deployment.messages import AGGREGATORS, TEMPLATE, messages_of
from tests.helpers import assert_same

QUICK = ("mean",)
every_kind = pytest.mark.parametrize(
    "name",
    [x if x in QUICK else pytest.param(x, marks=pytest.mark.deep) for x in AGGREGATORS],
)


@functools.cache
def sent_of(name: str):
    return messages_of(name, 2)


@every_kind
def test_a_message_is_as_many_bytes_as_it_has_bits_and_comes_back(name):
    aggregator = AGGREGATORS[name]
    wire = fedagg.Wire(aggregator, TEMPLATE)
    bits = fedagg.message_bits(aggregator, TEMPLATE)

    for message in sent_of(name)[1]:
        data = wire.encode(message, 6)
        back = wire.decode(data, 6)

        assert len(data) == fedagg.Wire.header + -(-bits // 8)
        assert jax.tree.structure(back) == jax.tree.structure(message)
        assert_same(back, message)
        added = [aggregator.steps.add(None, x) for x in (back, message)]
        assert_same(*added)


@every_kind
def test_what_clients_are_told_comes_back(name):
    aggregator = AGGREGATORS[name]
    wire = fedagg.Wire(aggregator, TEMPLATE)
    shared = aggregator.steps.broadcast(sent_of(name)[0])

    back = wire.decode_shared(wire.encode_shared(shared, 2), 2)

    assert jax.tree.structure(back) == jax.tree.structure(shared)
    assert_same(back, shared)


@pytest.mark.deep
def test_whether_a_client_counts_is_in_the_header():
    aggregator = fedagg.aggregator(fedagg.quantization(8, 0, stochastic=False))
    wire, client = (
        fedagg.Wire(aggregator, jnp.zeros(3)),
        jax.jit(aggregator.steps.client),
    )

    for weight in (0.0, 1.0):
        message = client(((),), jnp.ones(3), weight)
        assert bool(wire.decode(wire.encode(message, 0), 0).present) == (weight > 0.0)


@functools.cache
def wire_of_three() -> fedagg.Wire:
    return fedagg.Wire(mean(), jnp.zeros(3))


def mean(sum_over=None, **more) -> fedagg.Aggregator:
    return fedagg.aggregator(fedagg.mean(**more), sum_over=sum_over)


OTHERS = {
    "aggregator": (fedagg.Wire(mean(weighted=False), TEMPLATE), 4),
    "template": (fedagg.Wire(mean(), {**TEMPLATE, "w": TEMPLATE["h"]}), 4),
    "round": (fedagg.Wire(mean(), TEMPLATE), 5),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_of_another_round_is_refused_by_what_is_another(name):
    wire = fedagg.Wire(mean(), TEMPLATE)
    shared = wire.aggregator.steps.broadcast(wire.aggregator.init(TEMPLATE))
    value = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), TEMPLATE)
    message = wire.aggregator.steps.client(shared, value)
    other, number = OTHERS[name]

    with pytest.raises(ValueError, match=f"this {name}"):
        other.decode(wire.encode(message, 4), number)
    with pytest.raises(ValueError, match=f"this {name}"):
        other.decode_shared(wire.encode_shared(shared, 4), number)


def test_another_version_is_refused(monkeypatch):
    wire = fedagg.Wire(mean(), TEMPLATE)
    monkeypatch.setattr("fedagg._deployment.wire.__version__", "0.0.9")
    other = fedagg.Wire(mean(), TEMPLATE)

    with pytest.raises(ValueError, match="this version of fedagg"):
        other.decode_shared(wire.encode_shared(((),), 1), 1)


def test_what_clients_are_told_is_no_message_and_the_other_way_round():
    wire = fedagg.Wire(mean(), TEMPLATE)
    _, (message, _) = messages_of("mean", 2)

    with pytest.raises(ValueError, match="something else was sent"):
        wire.decode(wire.encode_shared(((),), 1), 1)
    with pytest.raises(ValueError, match="expected what is like the template's"):
        wire.encode(message, 1)
    with pytest.raises(TypeError, match="memory"):
        wire.encode((message, None), 1)


def test_metrics_of_the_work_travel_if_they_are_named():
    aggregator = mean()
    steps, state = aggregator.steps, aggregator.init(jnp.zeros(3))
    message = steps.client(
        steps.broadcast(state),
        jnp.ones(3),
        2.0,
        work=lambda row, key: (row, {"loss": jnp.float32(1.5)}),
    )

    wire = fedagg.Wire(aggregator, jnp.zeros(3), metrics=["loss"])
    total = steps.add(None, wire.decode(wire.encode(message, 1), 1))

    assert steps.server(state, total).metrics["loss"] == 1.5
    with pytest.raises(ValueError, match=re.escape("Wire(..., metrics=...)")):
        fedagg.Wire(aggregator, jnp.zeros(3)).encode(message, 1)


def training_of(aggregator) -> fedagg.Aggregator:
    """One whose functions have addresses of their own, as in another process."""
    return fedagg.federated_averaging(
        lambda variables, row, key: (row, {}), optax.sgd(1.0), aggregator
    )


def by_a_rule(f: int = 1, **options) -> fedagg.Aggregator:
    return fedagg.combining(fedagg.trimmed_mean(f), fedagg.clipping(1.0), **options)


@pytest.mark.parametrize("made", [lambda x: x, training_of], ids=["round", "training"])
@pytest.mark.parametrize("of", [mean, by_a_rule])
def test_machines_agree_on_what_is_sent_however_each_runs_its_part(made, of):
    wires = [
        fedagg.Wire(made(x), jnp.zeros(3))
        for x in (of(), of(), of(sum_over=fedagg.in_chunks(2)))
    ]

    assert len({x.identity for x in wires}) == 1
    others = mean(weighted=False), by_a_rule(2), fedagg.combining(fedagg.median())
    for other in others:
        assert fedagg.Wire(made(other), jnp.zeros(3)).identity != wires[0].identity


def scaling(factor: float, name: str) -> fedagg.Stage:
    return fedagg.Stage.stateless(
        lambda update, key: (update._replace(value=factor * update.value), ()),
        traits=fedagg.Traits(name),
    )


def test_stages_of_ones_own_are_known_by_their_names():
    identities = {
        fedagg.Wire(fedagg.aggregator(scaling(2.0, x)), jnp.zeros(3)).identity
        for x in ("doubling", "halving", "MyStage()")
    }

    assert len(identities) == 3


def test_a_training_has_a_wire_too():
    training = training_of(mean())
    wire, state = fedagg.Wire(training, jnp.zeros(3)), training.init(jnp.ones(3))

    shared = wire.decode_shared(
        wire.encode_shared(training.steps.broadcast(state), 0), 0
    )
    message = training.steps.client(shared, jnp.arange(3.0))
    total = training.steps.add(None, wire.decode(wire.encode(message, 0), 0))

    assert_same(training.steps.server(state, total).value, jnp.float32([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("name", [x for x in AGGREGATORS if x != "median"])
@pytest.mark.deep
def test_bytes_that_are_changed_are_refused_or_another_message(name):
    aggregator = AGGREGATORS[name]
    wire = fedagg.Wire(aggregator, TEMPLATE)
    whole = wire.encode(sent_of(name)[1][0], 9)

    @hypothesis.settings(max_examples=400, deadline=None)
    @hypothesis.given(st.data())
    def fuzzed(data):
        wrong = bytearray(whole)
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, len(wrong) - 1))
            wrong[at] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(wrong)))
        wrong = bytes(wrong[:cut]) if data.draw(st.booleans()) else bytes(wrong)
        wrong += data.draw(st.binary(max_size=3))
        try:
            message = wire.decode(wrong, 9)
        except ValueError:
            assert wrong != whole
            return
        # One form only: what is read is what would have been written.
        assert wire.encode(message, 9) == wrong

    fuzzed()


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.binary(max_size=200))
def test_any_bytes_are_refused(data):
    wire = wire_of_three()

    with pytest.raises(ValueError):
        wire.decode(data, 0)


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 32)), max_size=5),
    st.integers(0, 2**32 - 1),
)
def test_integers_take_their_bits_and_come_back(parts, seed):
    draw = np.random.default_rng(seed)
    words = [
        draw.integers(0, 2**bits, size, dtype=np.uint64).astype(np.uint32)
        for size, bits in parts
    ]
    bits = [x for _, x in parts]

    packed = residue_bits.pack(list(zip(words, bits, strict=True)))
    shapes = [((size,), x) for size, x in parts]

    assert len(packed) == -(-sum(n * x for n, x in parts) // 8)
    # As one number, the first entry lowest.
    number, at = 0, 0
    for x, width in zip(words, bits, strict=True):
        for entry in x.tolist():
            number, at = number | entry << at, at + width
    assert int.from_bytes(packed, "little") == number
    for x, y in zip(residue_bits.unpack(packed, shapes), words, strict=True):
        np.testing.assert_array_equal(x, y)


def test_long_vectors_are_packed_in_pieces():
    words = np.random.default_rng(0).integers(0, 2**7, 200_003, dtype=np.uint32)

    packed = residue_bits.pack([(words[:70_001], 7), (words[70_001:], 7)])

    assert packed == residue_bits.pack([(words, 7)])
    np.testing.assert_array_equal(
        residue_bits.unpack(packed, [((200_003,), 7)])[0], words
    )
    with pytest.raises(ValueError, match="zeros after the last"):
        residue_bits.unpack(packed[:-1] + b"\xff", [((200_003,), 7)])
