"""What was there before it was written over, to go back to a commit."""

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fedagg._files import parsing, replaced

BEGINNING = -1  # the step before any commit
_HEAD = np.dtype([("rows", "<u8"), ("check", "<u4")])


class UndoLog:
    """Old rows of arrays in files, since the last commit and the one before it.

    A record is written before its rows are. If the program is stopped while it writes
    one, the record is torn, and its rows are still the old ones. A record that is there
    as a whole and does not check is an error, before anything goes back.
    """

    def __init__(self, folder: Path, leaves: Sequence[np.ndarray]):
        self._folder, self._leaves = folder, leaves
        self._record = sum(x[:1].nbytes for x in leaves)
        steps = folder / "steps.json"
        # The step of the last commit, and that of the one before it.
        self._steps: list[int] = [BEGINNING]
        if steps.exists():
            data = steps.read_bytes()
            with parsing(steps, "the last two commits"):
                last, *before = json.loads(data)
                self._steps = [int(last), *map(int, before)]

    def remember(self, numbers: np.ndarray) -> None:
        """Writes what these rows have now."""
        parts = [numbers.astype("<i8").tobytes()]
        parts += [x[numbers].tobytes() for x in self._leaves]
        body = b"".join(parts)
        head = np.array((len(numbers), zlib.crc32(body)), _HEAD)
        with self._path(self._steps[0]).open("ab") as log:
            log.write(head.tobytes() + body)

    def commit(self, step: int) -> None:
        """Keeps what was written, and what it was written over for one commit more.

        Raises:
            ValueError: if the step is not above the last one.
        """
        if step <= self._steps[0]:
            raise ValueError(
                f"step must be above that of the last commit, {self._steps[0]}; got "
                f"{step=}."
            )
        for x in self._leaves:
            if isinstance(x, np.memmap):
                x.flush()
        forgotten = self._steps[1:]
        self._steps = [step, self._steps[0]]
        self._path(step).write_bytes(b"")
        self._tell()
        for old in forgotten:
            self._path(old).unlink(missing_ok=True)

    def go_back(self, step: int | None) -> None:
        """Undoes what was written after a commit, None for the last one.

        Raises:
            ValueError: if the step is neither of the last two commits, or a file is
                damaged.
        """
        wanted = self._steps[0] if step is None else step
        if wanted not in self._steps:
            raise ValueError(
                f"step: expected one of the last two commits, {self._steps}; got "
                f"{step}."
            )
        while True:
            path = self._path(self._steps[0])
            for numbers, rows in reversed([*self._records(path)]):
                for x, row in zip(self._leaves, rows, strict=True):
                    x[numbers] = row
            path.write_bytes(b"")
            if self._steps[0] == wanted:
                return
            path.unlink()
            self._steps = self._steps[1:]
            self._tell()

    def _path(self, step: int) -> Path:
        """What was written over after the commit of this step."""
        return self._folder / f"after{step}"

    def _tell(self) -> None:
        told = json.dumps(self._steps).encode()
        replaced(self._folder / "steps.json", lambda file: file.write(told))

    def _records(self, path: Path) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        if not path.exists():
            return
        with path.open("rb") as file:
            while len(head := file.read(_HEAD.itemsize)) == _HEAD.itemsize:
                count, check = np.frombuffer(head, _HEAD)[0]
                size = int(count) * (8 + self._record)
                body = file.read(size) if count <= len(self._leaves[0]) else None
                if body is not None and len(body) < size:
                    return
                if body is None or zlib.crc32(body) != check:
                    raise ValueError(
                        f"{path}: expected rows as they were before, got a file that "
                        "is damaged."
                    )
                numbers = np.frombuffer(body, "<i8", count)
                start, rows = numbers.nbytes, []
                for x in self._leaves:
                    row = np.frombuffer(body, x.dtype, int(count) * x[:1].size, start)
                    rows.append(row.reshape(int(count), *x.shape[1:]))
                    start += row.nbytes
                yield numbers, rows
