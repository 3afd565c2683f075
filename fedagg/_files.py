"""Files that are there as a whole or not at all, also where a program is killed."""

import os
import pathlib
from collections.abc import Callable
from typing import BinaryIO


def replaced(path: pathlib.Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file anew. Until all of it is on the disk, the one before is there."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
