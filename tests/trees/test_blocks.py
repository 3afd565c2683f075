"""Blocks of columns: each column of all matrices is looked at, and summed once."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedagg._trees import blocks, cutting, squares
from fedagg._trees.matrix import Layout

N = 3  # clients
LEAVES = [
    ([150, 0, 33, 40, 5], "bfloat16"),
    pytest.param([7], "float32", marks=pytest.mark.deep),
    pytest.param([0], "float16", marks=pytest.mark.deep),
    pytest.param([16, 16, 31, 32], "float16", marks=pytest.mark.deep),
    pytest.param([64, 96], "bfloat16", marks=pytest.mark.deep),
]
cases = pytest.mark.parametrize("widths, dtype", LEAVES)


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Of 32 columns at most, so that there are many."""
    with pytest.MonkeyPatch.context() as patch:
        for entries in (cutting.ENTRIES, cutting.SUMMED):
            patch.setitem(entries, "cpu", 32 * N)
        yield


def leaves(widths: list[int], dtype: str) -> list:
    """Whole numbers, no two columns alike, whose sums are exact."""
    columns = np.cumsum([0, *widths])
    return [
        jnp.asarray(np.arange(start, start + width) % 97 + np.arange(N)[:, None], dtype)
        for start, width in zip(columns, widths, strict=False)
    ]


@cases
def test_each_column_is_summed_once(widths, dtype):
    tree = [*leaves(widths, dtype), *leaves([40, 5], "float32")]
    layout = Layout.of(tree)
    matrices = layout.matrices(tree)
    vectors = layout.vectors([x[0] for x in tree])

    found = blocks.sum_over_blocks(
        lambda x, row: jnp.sum(x * row[None], axis=1), matrices, vectors
    )
    along = squares.squares_along_rows(lambda x, row: x - row[None], matrices, vectors)

    whole = np.concatenate([np.asarray(x, np.float64) for x in tree], axis=1)
    np.testing.assert_array_equal(found, np.sum(whole * whole[0], axis=1))
    np.testing.assert_array_equal(along, np.sum((whole - whole[0]) ** 2, axis=1))


@cases
@pytest.mark.parametrize("apart", [False, True])
def test_results_of_blocks_are_where_their_columns_are(widths, dtype, apart):
    tree = [*leaves(widths, dtype), *leaves([40, 5], "float32")]
    layout = Layout.of(tree)
    matrices = layout.matrices(tree)

    row = layout.tree(blocks.over_blocks(lambda x: 2.0 * x[1], matrices, apart=apart))
    rows = layout.tree(blocks.over_each(lambda x: x[:2], matrices))

    for x, one, two in zip(tree, row, rows, strict=True):
        np.testing.assert_array_equal(one, 2.0 * np.asarray(x[1], np.float32))
        np.testing.assert_array_equal(two, np.asarray(x[:2], np.float32))


@given(st.integers(32, 500), st.integers(32, 500), st.integers(0, 31))
@settings(max_examples=200, deadline=None)
def test_no_matrix_but_that_of_small_leaves_is_narrower_than_a_block(one, other, few):
    width = cutting._width([one, other, few], 32, N, cutting.ODD_LINES)

    assert 1 <= width <= min(one, other, 32)
