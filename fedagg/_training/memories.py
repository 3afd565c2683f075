"""Memories of a population on the host, of which a round reads and writes some rows."""

import contextlib
import json
import math
import mmap
import sys
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedagg._files import parsing, replaced
from fedagg._training.prefetching import fetched_ahead
from fedagg._training.undoing import UndoLog
from fedagg._trees import checks, pytree
from fedagg._types import PyTree

_FILLED_BYTES = 2**24  # at once, with what clients of no round keep


class ClientMemories:
    """What each of many clients keeps, in memory of the host or in files of a folder.

    For a `RememberingWork` whose population is too large for the device. A loop takes
    the rows of a cohort, with those of the next one read meanwhile, and writes back
    what the round returns, which here is one more::

        memories = ClientMemories(jnp.zeros(3), 1000)
        for numbers, memory in memories.rounds([[7, 3], [3, 5]]):
            memories[numbers] = memory + 1.0

    In a folder they outlive the process. `commit(step)` marks what belongs to a step;
    opened again, the memories are those of the last commit, and with `step` those of
    that one or of the one before. So commit first, then save the training's state, and
    open with the step of the state that was saved: whenever the program was stopped,
    both are of the same round.

    Args:
        memory: of a client that was in no round, as `work.init` makes it.
        clients: how many there are. Positive.
        folder: where the files are, or are to be. None keeps all in memory.
        step: the commit to go back to; None is the last one, -1 is before the first.

    Raises:
        ValueError: if `clients` is no positive integer, `memory` has no arrays, the
            folder has memories of another kind or files that are damaged, or `step` is
            neither of the last two commits, or given without a folder.
    """

    def __init__(
        self,
        memory: PyTree,
        clients: int,
        folder: str | Path | None = None,
        *,
        step: int | None = None,
    ):
        checks.check_whole(1, clients=clients)
        leaves, self._structure = pytree.flatten(jax.tree.map(np.asarray, memory))
        if not leaves:
            raise ValueError("memory: expected arrays, got a tree without any.")
        self._clients = int(clients)
        self._listeners: list[list[np.ndarray]] = []
        self._log: UndoLog | None = None
        if folder is None:
            if step is not None:
                raise ValueError(
                    f"{step=} is of memories in a folder, got folder=None."
                )
            self._leaves = [np.empty((clients, *x.shape), x.dtype) for x in leaves]
            self._fill(leaves)
            return
        folder = Path(folder)
        kind = {
            "clients": self._clients,
            "leaves": [[list(x.shape), x.dtype.name] for x in leaves],
        }
        is_new = _is_new(folder, kind, step)
        self._leaves = [
            _mapped(folder / f"leaf{i}", x.dtype, (clients, *x.shape), is_new)
            for i, x in enumerate(leaves)
        ]
        if is_new:
            self._fill(leaves)
            told = json.dumps(kind).encode()
            replaced(folder / "kind.json", lambda file: file.write(told))
        self._log = UndoLog(folder, self._leaves)
        self._log.go_back(step)

    def __repr__(self) -> str:
        return f"ClientMemories of {self._clients} clients"

    def __len__(self) -> int:
        """The number of clients."""
        return self._clients

    def __getitem__(self, numbers: Any) -> PyTree:
        """Copies of some clients' rows, NumPy arrays `[n, ...]`.

        Raises:
            IndexError: for a number that no client has.
        """
        numbers = self._checked(numbers)
        return pytree.unflatten(self._structure, [x[numbers] for x in self._leaves])

    def __setitem__(self, numbers: Any, memory: PyTree) -> None:
        """Writes what these clients keep, as a round returned it.

        Raises:
            IndexError: for a number that no client has.
            ValueError: for a number that comes twice, or memory of another structure,
                shape or dtype.
        """
        numbers = self._checked(numbers)
        if np.unique(numbers).size < numbers.size:
            raise ValueError(
                "numbers: a client is there twice, and would keep one of two memories."
            )
        rows, structure = pytree.flatten(memory)
        if structure != self._structure:
            raise ValueError(f"memory: expected {self._structure}, got {structure}.")
        rows = [np.asarray(x) for x in rows]
        for x, row in zip(self._leaves, rows, strict=True):
            expected = numbers.size, *x.shape[1:]
            if (row.shape, row.dtype) != (expected, x.dtype):
                raise ValueError(
                    f"memory: expected rows of shape {expected} and dtype {x.dtype}, "
                    f"got {row.shape} and {row.dtype}."
                )
        if self._log is not None:
            self._log.remember(numbers)
        for x, row in zip(self._leaves, rows, strict=True):
            x[numbers] = row
        for listener in self._listeners:
            listener.append(numbers)

    def rounds(self, cohorts: Iterable[Any]) -> Generator[tuple[np.ndarray, PyTree]]:
        """Yields each cohort's numbers and rows, those of the next one read meanwhile.

        A client that is in both has in the second what was written after the first.

        Args:
            cohorts: the numbers of each round's clients, `[n]`.
        """
        written: list[np.ndarray] = []

        def read() -> Iterator[tuple[np.ndarray, PyTree]]:
            for numbers in cohorts:
                numbers = np.asarray(numbers)
                yield numbers, self[numbers]

        self._listeners.append(written)
        try:
            with contextlib.closing(fetched_ahead(read(), 1)) as ahead:
                for numbers, memory in ahead:
                    if written:
                        late = np.isin(numbers, np.concatenate(written))
                        _put(memory, late, self[numbers[late]])
                    written.clear()
                    yield numbers, memory
        finally:
            self._listeners.remove(written)

    def commit(self, step: int) -> None:
        """Marks what has been written as that of a step, to which one can go back.

        Raises:
            ValueError: if `step` is no whole number, or not above the last one, or the
                memories are in no folder.
        """
        checks.check_whole(0, step=step)
        if self._log is None:
            raise ValueError("commit is of memories in a folder; these are in none.")
        self._log.commit(int(step))

    def go_back(self, step: int) -> None:
        """Undoes all that was written after the commit of a step, -1 for all.

        Raises:
            ValueError: if `step` is neither of the last two commits, a file is damaged,
                or the memories are in no folder.
        """
        if self._log is None:
            raise ValueError("go_back is of memories in a folder; these are in none.")
        self._log.go_back(step)

    def _checked(self, numbers: Any) -> np.ndarray:
        numbers = np.asarray(numbers)
        if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
            raise IndexError(
                f"numbers: expected integers [n], got {numbers.dtype} "
                f"{list(numbers.shape)}."
            )
        wrong = numbers[(numbers < 0) | (numbers >= self._clients)]
        if wrong.size:
            raise IndexError(
                f"numbers: expected 0 to {self._clients - 1}, got {wrong[0]}."
            )
        return numbers

    def _fill(self, leaves: list[np.ndarray]) -> None:
        for x, leaf in zip(self._leaves, leaves, strict=True):
            if isinstance(x, np.memmap) and not np.any(leaf):
                continue  # a new file is of zeros, and takes no room until written
            size = max(1, _FILLED_BYTES // max(1, leaf.nbytes))
            for start in range(0, self._clients, size):
                x[start : start + size] = leaf


def _mapped(path: Path, dtype: Any, shape: tuple[int, ...], is_new: bool) -> np.memmap:
    """A file as an array, of which no more is read than what is asked for."""
    size = np.dtype(dtype).itemsize * math.prod(shape)
    if not is_new and path.stat().st_size < size:  # which would be filled with zeros
        raise ValueError(f"{path}: expected {size} bytes, got a file that was cut off.")
    array = np.memmap(path, dtype, "w+" if is_new else "r+", shape=shape)
    if isinstance(array.base, mmap.mmap) and sys.platform != "win32":
        # Else the system reads some fifteen pages around each row, too.
        array.base.madvise(mmap.MADV_RANDOM)
    return array


def _put(memory: PyTree, places: np.ndarray, rows: PyTree) -> None:
    for x, row in zip(pytree.flatten(memory)[0], pytree.flatten(rows)[0], strict=True):
        x[places] = row


def _is_new(folder: Path, kind: dict, step: int | None) -> bool:
    """Whether the folder has no memories yet.

    Raises:
        ValueError: if it has those of another kind, or there are none of a step.
    """
    told = folder / "kind.json"
    if told.exists():
        data = told.read_bytes()
        with parsing(told, "what memories are of"):
            found = json.loads(data)
        if found != kind:
            raise ValueError(f"folder: {folder} has memories of {found}, not {kind}.")
        return False
    if step is not None:
        raise ValueError(f"{step=}: there are no memories in {folder}.")
    folder.mkdir(parents=True, exist_ok=True)
    return True
