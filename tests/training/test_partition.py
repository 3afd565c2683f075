"""One data set in many clients' hands."""

import jax
import numpy as np
import pytest

import fedagg

LABELS = np.random.default_rng(0).integers(0, 10, 5000)
INPUTS = np.arange(5000, dtype=np.float32)
KEY = jax.random.key(0)


def test_a_natural_key_makes_a_client_of_each_owner_in_order():
    speakers = np.array(["puck", "anna", "puck", "zoe", "anna", "puck"])
    words = np.arange(6)

    table = fedagg.partition(words, speakers)

    own = [np.asarray(table.padded()[0][i])[: table.sizes[i]] for i in range(3)]
    assert [x.tolist() for x in own] == [[1, 4], [0, 2, 5], [3]]


def test_clients_without_examples_are_there():
    table = fedagg.partition(np.arange(3), np.array([4, 1, 4]), 6, on_host=True)

    assert table.sizes.tolist() == [0, 1, 0, 0, 2, 0]
    assert isinstance(table.examples, np.ndarray)


DRAWS = {
    "by_label": lambda key: fedagg.by_label(LABELS, 30, 0.3, key),
    "by_shards": lambda key: fedagg.by_shards(LABELS, 30, 2, key),
    "by_quantity": lambda key: fedagg.by_quantity(5000, 30, 0.3, key),
}


@pytest.mark.parametrize("name", DRAWS)
def test_each_example_has_one_owner_which_is_drawn_by_the_key(name):
    owners = DRAWS[name](KEY)

    table = fedagg.partition((INPUTS, LABELS), owners, 30)

    assert sorted(np.asarray(table.examples[0])) == INPUTS.tolist()
    places = np.asarray(table.examples[0]).astype(int)
    assert (LABELS[places] == table.examples[1]).all()
    assert (DRAWS[name](KEY) == owners).all()
    assert (DRAWS[name](jax.random.key(1)) != owners).any()


def counts(owners, clients):
    """[client, label]"""
    found = np.zeros((clients, 10))
    np.add.at(found, (owners, LABELS), 1)
    return found


def test_shards_are_of_equal_size_and_of_few_labels():
    found = counts(fedagg.by_shards(LABELS, 30, 2, KEY), 30)

    sizes = found.sum(axis=1)
    assert sizes.max() - sizes.min() <= 2
    # A shard of 83 in runs of some 500 has one label, or two where one run ends.
    assert (found > 0).sum(axis=1).max() <= 4
    assert (found > 0).sum() <= 60 + 9


@pytest.mark.deep
def test_shares_of_a_label_are_those_of_the_dirichlet():
    concentration, clients = 0.5, 20

    shares = []
    for seed in range(40):
        owners = fedagg.by_label(LABELS, clients, concentration, jax.random.key(seed))
        found = counts(owners, clients)
        shares.append(found / found.sum(axis=0))

    # The variance of a share: a symmetric Dirichlet's in closed form.
    variance = (1 - 1 / clients) / clients / (clients * concentration + 1)
    drawn = np.array(shares)
    np.testing.assert_allclose(drawn.mean(), 1 / clients)
    np.testing.assert_allclose(np.mean((drawn - 1 / clients) ** 2), variance, rtol=0.06)


def test_an_infinite_concentration_makes_clients_of_equal_size():
    sizes = np.bincount(fedagg.by_quantity(5000, 30, np.inf, KEY))
    skewed = np.bincount(fedagg.by_quantity(5000, 30, 0.3, KEY), minlength=30)
    alike = counts(fedagg.by_label(LABELS, 10, np.inf, KEY), 10)

    assert sizes.max() - sizes.min() <= 1
    assert skewed.max() > 3 * 5000 / 30
    assert (alike.max(axis=0) - alike.min(axis=0)).max() <= 1


REFUSED = {
    "unknown": (
        lambda: fedagg.partition(INPUTS, LABELS, 9),
        ValueError,
        "owners: expected 0 to 8",
    ),
    "names and a number": (
        lambda: fedagg.partition(np.ones(2), np.array(["a", "b"]), 2),
        TypeError,
        "owners: expected numbers of clients",
    ),
    "too few": (
        lambda: fedagg.partition(INPUTS, LABELS[1:]),
        ValueError,
        r"owners: expected one for each example, \(5000,\)",
    ),
    "shards": (
        lambda: fedagg.by_shards(LABELS[:5], 3, 2, KEY),
        ValueError,
        "5 examples for 6 shards",
    ),
    "labels": (
        lambda: fedagg.by_label(np.ones((2, 2)), 3, 1.0, KEY),
        ValueError,
        "labels: expected one for each example",
    ),
    "concentration": (
        lambda: fedagg.by_quantity(5, 3, 0.0, KEY),
        ValueError,
        "concentration must be positive",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_parted_is_refused(name):
    call, kind, match = REFUSED[name]

    with pytest.raises(kind, match=match):
        call()
