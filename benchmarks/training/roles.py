"""Shakespeare's roles as clients, each with all that it says."""

import importlib

import numpy as np

from benchmarks.training.workloads import Examples


def read_roles(number: int, tokens: int, seed: int) -> list[Examples]:
    """Roles drawn at random from those of 400 characters or more.

    An example is a stretch of so many characters, and the same a character later.

    Raises:
        ImportError: if a package that reads the plays is missing.
    """
    notebook = importlib.import_module("notebooks.plays")
    try:
        texts = notebook.coded_roles()
    except SystemExit as missing:
        raise ImportError(str(missing)) from missing
    chosen = np.random.default_rng(seed).choice(len(texts), number, replace=False)
    return [_examples(texts[x].astype(np.int32), tokens) for x in chosen]


def _examples(text: np.ndarray, tokens: int) -> Examples:
    rows = (len(text) - 1) // tokens
    first, following = text[: rows * tokens], text[1 : rows * tokens + 1]
    return first.reshape(rows, tokens), following.reshape(rows, tokens)
