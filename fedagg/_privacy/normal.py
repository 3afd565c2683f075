"""Normal draws for privacy, from JAX's generator; the hash of compressors is weaker."""

import jax
import numpy as np

from fedagg._trees import pytree
from fedagg._trees.reductions import cut
from fedagg._types import PyTree


def normal(key: jax.Array, tree: PyTree) -> PyTree:
    """Standard normal draws like the leaves, each in float32 or wider.

    All are drawn at once: a draw for each of 150 leaves takes half a minute to compile.
    """
    leaves, structure = pytree.flatten(pytree.widen(tree))
    dtypes = [np.dtype(np.float32), *(x.dtype for x in leaves)]
    widest = max(dtypes, key=lambda dtype: dtype.itemsize)
    drawn = jax.random.normal(key, (sum(x.size for x in leaves),), widest)
    parts = zip(leaves, cut(drawn, [x.size for x in leaves]), strict=True)
    shaped = [part.reshape(x.shape).astype(x.dtype) for x, part in parts]
    return pytree.unflatten(structure, shaped)
