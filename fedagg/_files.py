"""Files that are there as a whole or not at all, also where a program is killed."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import BinaryIO


def replaced(path: pathlib.Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file anew. Until all of it is on the disk, the one before is there."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


@contextlib.contextmanager
def parsing(path: pathlib.Path, expected: str) -> Iterator[None]:
    """Makes whatever goes wrong in the block a ValueError that names the file.

    Of damaged bytes a parser may raise anything.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{path}: expected {expected}, got a file that is damaged or of something "
            f"else: {error!r}"
        ) from error
