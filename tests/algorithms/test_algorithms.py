"""What every algorithm owes, over every one of them."""

import ast
import inspect
import pathlib
import re

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedagg
from fedagg import algorithms
from tests.algorithms.problems import (
    CLIENTS,
    COHORTS,
    EXAMPLES,
    D,
    rounds_of,
)
from tests.algorithms.table import CASES, N, loss_of, training_of
from tests.compiling import jit
from tests.helpers import WAYS, assert_close, assert_same, first_now
from tests.test_api import doc, entries, parameters, raised, section

# One that remembers and one that does not, of those that are quick to compile.
QUICK = ("fednova", "scaffold")

# Those that take no weights, and see for themselves who has examples.
COUNTING = {"agnostic", "feddyn", "q_fedavg", "scaffold"}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
some_cases = pytest.mark.parametrize(
    "case",
    [
        pytest.param(x, id=name, marks=() if name in QUICK else pytest.mark.deep)
        for name, x in CASES.items()
    ],
)
REMEMBERING = {name: x for name, x in CASES.items() if x.remembers}
every_memory = pytest.mark.parametrize("case", REMEMBERING.values(), ids=REMEMBERING)
every_name = pytest.mark.parametrize("name", algorithms.__all__)


def careful(**more):
    return fedagg.aggregator(
        fedagg.zeroing(1e6, keep_weight=False), fedagg.mean(), **more
    )


def test_every_algorithm_is_in_the_table():
    assert set(CASES) == set(algorithms.__all__)


@every_name
def test_an_algorithm_is_some_thirty_lines_and_says_what_it_is(name):
    function = getattr(algorithms, name)
    tree = ast.parse(inspect.getsource(function)).body[0]
    assert isinstance(tree, ast.FunctionDef)
    of_code = {
        node.lineno
        for statement in tree.body[1:]
        for node in ast.walk(statement)
        if isinstance(node, (ast.stmt, ast.expr))
    }

    assert len(of_code) <= 32
    assert section(function, "Reference")
    assert "| state | |" in doc(function)
    assert entries(function, "Args") == parameters(function)
    assert raised(function) <= set(entries(function, "Raises"))


def nan_of(client):
    """The examples, of which one client has no numbers."""
    broken = list(EXAMPLES)
    broken[client] = tuple(np.full_like(x, np.nan) for x in broken[client])
    return broken


@some_cases
def test_a_client_with_nan_is_as_one_that_is_absent_and_keeps_its_memory(case):
    training = training_of(case, careful())
    first = rounds_of(training, case.start, COHORTS[:1], case.data())

    with_nan = rounds_of(
        training, cohorts=[[1, 2, 4]], data=case.data(nan_of(2)), state=first
    )
    without = rounds_of(training, cohorts=[[1, 4]], data=case.data(), state=first)

    assert_close(with_nan, without)
    if case.remembers:
        row = jax.tree.map(lambda x: x[2], (with_nan.memories, first.memories))
        assert_same(*row)


@some_cases
def test_a_round_with_nobody_changes_nothing(case):
    training = training_of(case)
    first = rounds_of(training, case.start, COHORTS[:1], case.data())

    assert_same(rounds_of(training, cohorts=[[]], data=case.data(), state=first), first)


@first_now("name", ["scaffold", *sorted({*CASES} - {"scaffold", "diloco"})])
def test_a_client_without_examples_is_as_one_that_is_absent(name):
    case, weights = CASES[name], None
    if name not in COUNTING:
        weights = np.array([len(x) for x, _ in EMPTY], np.float32)
    training = training_of(case)
    first = rounds_of(training, case.start, COHORTS[:1], case.data())

    given = {"data": case.data(EMPTY), "weights": weights, "state": first}
    with_empty = rounds_of(training, cohorts=[[1, 2, 4]], **given)
    without = rounds_of(training, cohorts=[[1, 4]], **given)

    assert_same(with_empty, without)


EMPTY = [
    (x[: len(x) * (i != 2)], y[: len(x) * (i != 2)])
    for i, (x, y) in enumerate(EXAMPLES)
]


@pytest.mark.deep
@pytest.mark.parametrize("name", sorted({*CASES} - {"diloco"}))
def test_a_client_without_examples_that_has_a_weight_learns_nothing(name):
    case = CASES[name]
    training = training_of(case)
    first = rounds_of(training, case.start, COHORTS[:1], case.data())

    state = rounds_of(training, cohorts=[[1, 2, 4]], data=case.data(EMPTY), state=first)

    for x in jax.tree.leaves(state):
        assert np.isfinite(x).all()
    if case.remembers:
        assert_same(*(jax.tree.map(lambda x: x[2], y.memories) for y in (state, first)))


@pytest.mark.parametrize("way", ["at_once", "chunks_with_a_rest", "across"])
@every_case
@pytest.mark.deep
def test_every_way_to_sum_agrees(case, way):
    expected = rounds_of(training_of(case), case.start, data=case.data())

    training = training_of(case, careful(sum_over=WAYS[way]()))
    got = rounds_of(training, case.start, data=case.data())

    expected = expected._replace(aggregator=got.aggregator)
    assert_close(got, expected)


def few_bits():
    return fedagg.aggregator(fedagg.mean(), fedagg.quantization(14, 0))


def secure():
    stage = fedagg.secure_sum(
        fedagg.chain(fedagg.zeroing(1e6), fedagg.mean()),
        2000.0,
        largest_cohort=N,
        largest_weight=1000.0,
    )
    return fedagg.aggregator(stage)


@pytest.mark.parametrize("make", [few_bits, secure])
@every_case
@pytest.mark.deep
def test_it_works_in_few_bits_and_under_secure_sums(case, make):
    expected = rounds_of(training_of(case), case.start, data=case.data())

    training = training_of(case, make())
    state, next_round = training.init(case.start), jit(training.next)
    for number, cohort in enumerate(COHORTS):
        others = [i for i in range(N) if i not in cohort]
        numbers = np.array([*cohort, *others], np.int32)
        weights = np.isin(numbers, cohort).astype(np.float32)
        key = jax.random.key(number)
        state = next_round(state, case.data()(numbers), weights, key).state

    assert_close(state.variables, expected.variables, rtol=3e-2)


def noised():
    return fedagg.dp_aggregator(1.0, 100)


def by_a_rule():
    return fedagg.combining(fedagg.median())


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("scaffold", noised, "scaffold needs to know how many clients"),
        ("scaffold", by_a_rule, "scaffold needs to know how many clients"),
        ("feddyn", noised, "feddyn needs to know how many clients"),
        ("feddyn", by_a_rule, r"which combining\(median\(\)\) does not report"),
        ("q_fedavg", by_a_rule, "q_fedavg weighs clients by what they computed"),
        ("agnostic", noised, "agnostic weighs clients by what they computed"),
        ("q_fedavg", noised, "q_fedavg weighs clients by what they computed"),
        ("agnostic", by_a_rule, "agnostic weighs clients by what they computed"),
        ("ifca", by_a_rule, r"ifca divides sums .* combining\(median\(\)\) takes none"),
    ],
)
def test_what_would_be_wrong_is_refused_by_name(name, make, said):
    with pytest.raises(ValueError, match=said):
        training_of(CASES[name], make())


OTHERS = sorted({*CASES} - COUNTING - {"ifca"})


@pytest.mark.deep
@pytest.mark.parametrize("name", OTHERS)
def test_all_others_work_with_noise_and_with_a_rule(name):
    """With a clip that nobody reaches and no noise, that is the mean over clients."""
    case = CASES[name]
    private = fedagg.aggregator(fedagg.gaussian_noise(0.0, 100.0, N))
    alike = fedagg.aggregator(fedagg.mean(weighted=False))

    def after(aggregator):
        training = training_of(case, aggregator)
        state, data = training.init(case.start), case.data()(np.arange(N))
        return jit(training.next)(state, data, None, jax.random.key(0)).value

    assert_close(after(private), after(alike), rtol=2e-3)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after(by_a_rule())))


def test_the_page_has_each_with_its_paper_its_state_and_its_cost():
    root = pathlib.Path(algorithms.__file__).parents[2]
    page = (root / "docs/algorithms.md").read_text()
    lines = [x for x in page.splitlines() if x.startswith("| `")]
    rows = [[y.strip() for y in x.strip("|").split("|")] for x in lines]
    cells = {row[0].strip("`"): row for row in rows if len(row) == 6}

    assert set(cells) == set(algorithms.__all__)
    for name, (_, paper, use, *_, cost) in cells.items():
        assert re.search(r" (20\d\d)", paper) and use and cost, name
        years = re.findall(r"20\d\d", section(getattr(algorithms, name), "Reference"))
        assert set(re.findall(r"20\d\d", paper)) <= set(years)


def test_the_page_s_algorithm_with_memory_is_scaffold_s_code_in_ten_lines():
    page = pathlib.Path(inspect.getfile(algorithms.scaffold)).read_text()
    shown = page.split("docs/algorithms.md shows")[1].split("# The change of the")[0]
    lines = [x for x in shown.splitlines()[1:] if x.strip()]

    assert [x.strip()[:9] for x in (lines[0], lines[2])] == ["def begin", "def work("]
    assert len(lines) == 10


@pytest.mark.parametrize("name", ["q_fedavg", "agnostic"])
def test_a_mean_that_does_not_weigh_is_refused(name):
    mean = fedagg.aggregator(fedagg.mean(weighted=False))

    with pytest.raises(ValueError, match="takes no weights"):
        training_of(CASES[name], mean)


@every_name
def test_something_else_than_an_aggregator_is_refused(name):
    with pytest.raises(TypeError, match="aggregator: expected an Aggregator"):
        training_of(CASES[name], fedagg.mean())


@every_case
@pytest.mark.deep
def test_resumed_is_as_uninterrupted_to_the_bit(case):
    training = training_of(case)
    whole = rounds_of(training, case.start, data=case.data())

    half = rounds_of(training, case.start, COHORTS[:2], case.data())
    saved = flax.serialization.to_bytes(half)
    restored = flax.serialization.from_bytes(training.init(case.start), saved)
    rest = rounds_of(training, cohorts=COHORTS[2:], data=case.data(), state=restored)

    assert_same(rest, whole)


@every_memory
@pytest.mark.deep
def test_memories_on_the_host_are_as_those_in_the_state(case):
    expected = rounds_of(training_of(case), case.start, data=case.data())
    training = training_of(case, on_host=True)
    state = training.init(case.start)
    next_round = jit(
        lambda state, rows, memory: training.next(state, rows, memory=memory)
    )
    first = training_of(case).init(case.start).memories
    memories = fedagg.ClientMemories(jax.tree.map(lambda x: x[0], first), N)

    for cohort in COHORTS:
        rows, numbers = case.data()(np.array(cohort, np.int32))
        output, memories[numbers] = next_round(state, rows, memories[numbers])
        state = output.state

    assert state.memories is None
    assert_close(state.variables, expected.variables)
    assert_close(memories[range(N)], jax.tree.map(np.asarray, expected.memories))


def with_statistics(case):
    """The same loss of a model that keeps the mean of its examples."""

    def loss_and_mean(model, examples, key):
        losses, _ = loss_of(case)(model["params"], examples, key)
        return losses, {"stats": {"mean": jnp.mean(examples[1], axis=0)}}

    return loss_and_mean


@some_cases
def test_batch_statistics_are_averaged_as_they_are(case):
    shape = (2, D) if case is CASES["ifca"] else (D,)
    start = {"params": case.start, "stats": {"mean": np.zeros(shape)}}
    training = case.make(with_statistics(case), careful(), {"shuffle": False})

    state = rounds_of(training, start, COHORTS[1:2], case.data())

    model = state.variables
    got = (model if "params" in model else model["model"])["stats"]["mean"]
    # A batch is filled up with other examples of the client.
    own = np.stack([np.resize(EXAMPLES[i][1], (6, D)).mean(axis=0) for i in COHORTS[1]])
    if case is CASES["diloco"]:
        own = case.data()(np.array(COHORTS[1]))[0][1][:, -1].mean(axis=1)
    if case is CASES["ifca"]:
        losses = [[CLIENTS[i].loss(x) for x in case.start] for i in COHORTS[1]]
        chosen = np.argmin(losses, axis=1)
        expected = [own[chosen == j].mean(axis=0) for j in (0, 1)]
        assert set(chosen) == {0, 1}
    elif case is CASES["fedex_lora"]:  # which moves weights and adapters alone
        expected = np.zeros(D)
    elif case is CASES["q_fedavg"]:  # whose weights are its own
        expected = np.clip(got, own.min(axis=0), own.max(axis=0))
        assert np.all(np.abs(got) > 0.0)
    else:
        expected = own.mean(axis=0)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
