"""Some columns of clients' values, and a few made up that keep all distances.

What a rule should give in float64 takes minutes of large inputs. A rule looks at each
column apart, or at clients' inner products: of the columns that are not in a sample, as
many as there are clients stand for those products.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.inputs import TREES, ends

_COLUMNS = 3000
_ENTRIES = 2**23  # that are widened at once


class Sample(NamedTuple):
    """What a reference is given, and which of the columns come first in it."""

    columns: np.ndarray  # [k]
    stack: np.ndarray  # [n, k] and more, with the inner products of all columns

    def expected(self, reference: Callable, weights: np.ndarray) -> np.ndarray:
        """What a reference gives in the columns `[k]`."""
        return reference(self.stack, weights.astype(np.float64))[: len(self.columns)]


def everything(stack: np.ndarray) -> Sample:
    return Sample(np.arange(stack.shape[1]), stack)


def sample(stack: np.ndarray) -> Sample:
    """About 3000 columns from all over `[n, d]`, each leaf's last among them."""
    n, d = stack.shape
    every = np.arange(0, d, max(d // _COLUMNS, 1))
    last = [np.asarray(ends(d, leaves)) - 1 for leaves in TREES]
    columns = np.unique(np.concatenate([every, *last, [d // 2]]))
    others = np.ones(d, bool)
    others[columns] = False

    gram, width = np.zeros((n, n)), max(_ENTRIES // n, 1)
    for start in range(0, d, width):
        block = slice(start, start + width)
        wide = stack[:, block][:, others[block]].astype(np.float64)
        gram += wide @ wide.T
    sizes, directions = np.linalg.eigh(gram)
    made_up = directions * np.sqrt(np.maximum(sizes, 0.0))
    return Sample(columns, np.concatenate([stack[:, columns], made_up], axis=1))
